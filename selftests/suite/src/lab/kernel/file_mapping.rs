// SPDX-License-Identifier: GPL-2.0

//! A shared mapping of a file with unknown contents.

use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::mm::{MapFlags, MremapFlags, ProtFlags};

/// A shared mapping of a file with unknown contents: an access may raise `SIGBUS`.
///
/// This program never accesses the mapped memory itself. Only the kernel
/// ([`Prober`](super::probe::Prober)) or a child process, which may be killed, accesses it.
#[derive(Debug)]
pub struct FileMapping {
    base: *mut u8,
    len: usize,
}

impl FileMapping {
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

impl Drop for FileMapping {
    fn drop(&mut self) {
        // SAFETY: The mapping is ours, and no references to its memory exist.
        let _ = unsafe { rustix::mm::munmap(self.base.cast(), self.len) };
    }
}
