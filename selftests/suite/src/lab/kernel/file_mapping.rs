// SPDX-License-Identifier: GPL-2.0

//! A shared mapping of a file that may be shorter than the mapping.

use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::mm::{MapFlags, MremapFlags, ProtFlags};

/// A shared mapping of a file whose contents and length are unknown, so an access may raise
/// `SIGBUS`.
///
/// This program never accesses the mapped memory itself. Instead, the kernel
/// ([`Prober`](super::probe::Prober)) or a child process accesses the memory, so `SIGBUS` kills at
/// most the child.
#[derive(Debug)]
pub struct FileMapping {
    base: *mut u8,
    len: usize,
}

impl FileMapping {
    /// Maps `len` bytes of a file from `offset` on. Both numbers must be multiples of the page
    /// size.
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

    /// Returns the address of the mapping's first byte.
    pub fn address(&self) -> *mut u8 {
        self.base
    }

    /// Returns the length of the mapping in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Changes the length of the mapping to `len` bytes. This may change the mapping's address.
    pub fn resize(&mut self, len: usize) -> io::Result<()> {
        let (old, flags) = (self.base.cast(), MremapFlags::MAYMOVE);
        // SAFETY: The mapping is ours, and no references to its memory exist.
        let base = unsafe { rustix::mm::mremap(old, self.len, len, flags) }?;
        (self.base, self.len) = (base.cast(), len);
        Ok(())
    }

    /// Removes the mapping's pages from this process's page tables, so that the next access faults.
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

    /// Reads the byte at offset `at` of the mapping in a child process. If that raises a signal,
    /// the kernel kills only the child.
    pub fn touch_in_child(&self, at: usize) -> io::Result<()> {
        assert!(at < self.len);
        let address = self.base.wrapping_add(at) as usize;
        let mut command = Command::new("/proc/self/exe");
        // SAFETY: The closure only reads a byte of a mapping that the child inherits. A signal that
        // the access raises affects only the child.
        unsafe {
            command.pre_exec(move || {
                let byte = std::ptr::with_exposed_provenance::<u8>(address).read_volatile();
                // The child has done its work. The error keeps the child from executing a program.
                Err(io::Error::from_raw_os_error(if byte == 0 { 1 } else { 2 }))
            });
        }
        match command.spawn() {
            // The read killed the child, which therefore did not report an error.
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
