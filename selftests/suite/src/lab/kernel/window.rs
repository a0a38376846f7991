// SPDX-License-Identifier: GPL-2.0

//! Ranges of address space in which files are mapped, moved, and accessed from outside.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::mm::{MapFlags, MremapFlags, ProtFlags};

/// A shared mapping of a file with unknown contents: an access may raise `SIGBUS`.
///
/// This program never accesses the mapped memory itself. Only the kernel
/// ([`Prober`](super::memory::Prober)) or a child process, which may be killed, accesses it.
#[derive(Debug)]
pub struct Window {
    base: *mut u8,
    len: usize,
}

impl Window {
    /// Maps `len` bytes of a file at an offset. Both must be multiples of the page size.
    pub fn new(file: BorrowedFd<'_>, offset: u64, len: usize, writable: bool) -> io::Result<Self> {
        let mut prot = ProtFlags::READ;
        prot.set(ProtFlags::WRITE, writable);
        // SAFETY: A new mapping at an address of the kernel's choice touches no other memory.
        let base = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                len,
                prot,
                MapFlags::SHARED,
                file,
                offset,
            )
        }?;
        Ok(Self {
            base: base.cast(),
            len,
        })
    }

    /// Returns the address of the first byte.
    pub fn address(&self) -> *mut u8 {
        self.base
    }

    /// Returns the length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Changes the length, which may move the mapping.
    pub fn resize(&mut self, len: usize) -> io::Result<()> {
        let (old, flags) = (self.base.cast(), MremapFlags::MAYMOVE);
        // SAFETY: The mapping is ours, and no references to its memory exist.
        let base = unsafe { rustix::mm::mremap(old, self.len, len, flags) }?;
        (self.base, self.len) = (base.cast(), len);
        Ok(())
    }

    /// Removes the pages from the page tables, as if they had never been accessed.
    pub fn forget(&self) -> io::Result<()> {
        // SAFETY: The mapping is ours and shared, so its contents do not change.
        unsafe {
            rustix::mm::madvise(
                self.base.cast(),
                self.len,
                rustix::mm::Advice::LinuxDontNeed,
            )
        }?;
        Ok(())
    }

    /// Reads a byte of the mapping in a child process. The child may be killed; this process is
    /// not.
    pub fn touch_in_child(&self, at: usize) -> io::Result<()> {
        assert!(at < self.len);
        let address = self.base.wrapping_add(at) as usize;
        let mut command = Command::new("/proc/self/exe");
        // SAFETY: The closure only reads a byte of a mapping that the child inherits, whatever
        // happens to the child.
        unsafe {
            command.pre_exec(move || {
                let byte = std::ptr::with_exposed_provenance::<u8>(address).read_volatile();
                // The child has no other purpose.
                Err(io::Error::from_raw_os_error(if byte == 0 { 1 } else { 2 }))
            });
        }
        match command.spawn() {
            // The child died.
            Ok(mut child) => child.wait().map(drop),
            Err(_) => Ok(()),
        }
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // SAFETY: The mapping is ours, and no references to its memory exist.
        let _ = unsafe { rustix::mm::munmap(self.base.cast(), self.len) };
    }
}

/// A reserved range of addresses, in parts of which files are mapped.
#[derive(Debug)]
pub struct Arena {
    base: *mut u8,
    len: usize,
}

impl Arena {
    /// Reserves `len` bytes of address space.
    pub fn new(len: usize) -> io::Result<Self> {
        // SAFETY: A new mapping touches no other memory.
        let base = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                len,
                ProtFlags::empty(),
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )
        }?;
        Ok(Self {
            base: base.cast(),
            len,
        })
    }

    /// Maps the beginning of a file at an offset of the arena, replacing any previous mapping.
    pub fn put(&self, file: &File, at: usize, len: usize, writable: bool) -> io::Result<()> {
        assert!(at + len <= self.len);
        let mut prot = ProtFlags::READ;
        prot.set(ProtFlags::WRITE, writable);
        // SAFETY: The addresses are inside the arena, and no references to its memory exist.
        unsafe {
            rustix::mm::mmap(
                self.base.wrapping_add(at).cast(),
                len,
                prot,
                MapFlags::SHARED | MapFlags::FIXED,
                file.as_fd(),
                0,
            )
        }?;
        Ok(())
    }

    /// Removes the mappings in a part of the arena.
    pub fn clear(&self, at: usize, len: usize) -> io::Result<()> {
        assert!(at + len <= self.len);
        // SAFETY: As in `put`.
        unsafe {
            rustix::mm::mmap_anonymous(
                self.base.wrapping_add(at).cast(),
                len,
                ProtFlags::empty(),
                MapFlags::PRIVATE | MapFlags::FIXED | MapFlags::NORESERVE,
            )
        }?;
        Ok(())
    }

    /// Returns the arena's start address.
    pub fn address(&self) -> u64 {
        self.base as u64
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: The range is ours, and no references to its memory exist.
        let _ = unsafe { rustix::mm::munmap(self.base.cast(), self.len) };
    }
}
