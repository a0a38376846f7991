// SPDX-License-Identifier: GPL-2.0

//! A reserved range of addresses, into which a test maps files.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use rustix::mm::{MapFlags, ProtFlags};

/// A reserved range of addresses, into which a test maps files.
#[derive(Debug)]
pub struct ReservedRange {
    base: *mut u8,
    len: usize,
}

impl ReservedRange {
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

    /// Maps the first `len` bytes of a file at offset `at` of the range. Replaces any previous
    /// mapping.
    pub fn put(&self, file: &File, at: usize, len: usize, writable: bool) -> io::Result<()> {
        assert!(at + len <= self.len);
        let mut prot = ProtFlags::READ;
        prot.set(ProtFlags::WRITE, writable);
        // SAFETY: The addresses are inside the range, and no references to the range's memory
        // exist.
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

    /// Removes all file mappings from `len` bytes of the range. These bytes begin at offset `at` of
    /// the range, and stay reserved.
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

    /// Returns the range's start address.
    pub fn address(&self) -> u64 {
        self.base as u64
    }
}

impl Drop for ReservedRange {
    fn drop(&mut self) {
        // SAFETY: The range is ours, and no references to the range's memory exist.
        let _ = unsafe { rustix::mm::munmap(self.base.cast(), self.len) };
    }
}
