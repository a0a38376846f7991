// SPDX-License-Identifier: GPL-2.0

//! Pieces of address space that files are mapped in, moved about and looked at from outside.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::mm::{MapFlags, MremapFlags, ProtFlags};

/// A shared mapping of a file of which nothing is known: looking at it may raise `SIGBUS`.
///
/// Its memory is never referred to in this program: only the kernel looks at it
/// ([`Prober`](super::memory::Prober)), or a child that may die of it.
#[derive(Debug)]
pub struct Window {
    base: *mut u8,
    len: usize,
}

impl Window {
    /// Maps so many bytes of a file from an offset on, both multiples of a page.
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

    /// Its first byte.
    pub fn address(&self) -> *mut u8 {
        self.base
    }

    /// Its length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Has another length, perhaps elsewhere.
    pub fn resize(&mut self, len: usize) -> io::Result<()> {
        let (old, flags) = (self.base.cast(), MremapFlags::MAYMOVE);
        // SAFETY: The mapping is ours, and nobody refers to its memory.
        let base = unsafe { rustix::mm::mremap(old, self.len, len, flags) }?;
        (self.base, self.len) = (base.cast(), len);
        Ok(())
    }

    /// Gives its pages back, as if nobody had looked at them yet.
    pub fn forget(&self) -> io::Result<()> {
        // SAFETY: The mapping is ours and shared: what it shows is not changed.
        unsafe {
            rustix::mm::madvise(
                self.base.cast(),
                self.len,
                rustix::mm::Advice::LinuxDontNeed,
            )
        }?;
        Ok(())
    }

    /// Has a child look at a byte of it. The child may die of it; this process does not.
    pub fn touch_in_child(&self, at: usize) -> io::Result<()> {
        assert!(at < self.len);
        let address = self.base.wrapping_add(at) as usize;
        let mut command = Command::new("/proc/self/exe");
        // SAFETY: The closure only reads a byte of a mapping that the child has a copy of, whatever
        // that does to the child.
        unsafe {
            command.pre_exec(move || {
                let byte = std::ptr::with_exposed_provenance::<u8>(address).read_volatile();
                // That was all that the child was for.
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
        // SAFETY: The mapping is ours, and nobody refers to its memory.
        let _ = unsafe { rustix::mm::munmap(self.base.cast(), self.len) };
    }
}

/// A range of addresses with files mapped here and there, and nothing in between.
#[derive(Debug)]
pub struct Arena {
    base: *mut u8,
    len: usize,
}

impl Arena {
    /// Sets so many bytes of address space aside.
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

    /// Maps a file's beginning at an offset of the arena, in place of what was there.
    pub fn put(&self, file: &File, at: usize, len: usize, writable: bool) -> io::Result<()> {
        assert!(at + len <= self.len);
        let mut prot = ProtFlags::READ;
        prot.set(ProtFlags::WRITE, writable);
        // SAFETY: The addresses are inside the arena, whose memory nobody refers to.
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

    /// Takes away what is mapped somewhere.
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

    /// Where it begins.
    pub fn address(&self) -> u64 {
        self.base as u64
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: The range is ours, and nobody refers to its memory.
        let _ = unsafe { rustix::mm::munmap(self.base.cast(), self.len) };
    }
}
