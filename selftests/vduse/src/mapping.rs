// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Shared memory that another process or the kernel may write to at any time.

use std::ffi::c_void;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;

use rustix::mm::{MapFlags, ProtFlags};
use vduse_uapi as uapi;
use vm_memory::volatile_memory::VolatileSlice;

/// A range of bytes in a shared mapping. Dropping a `Mapping` unmaps the memory.
///
/// The kernel or another process may write to the same memory, so this library accesses the memory
/// only through volatile reads and writes, and creates no references to it.
#[derive(Debug)]
pub struct Mapping {
    /// Page-aligned start of the mapping.
    base: NonNull<c_void>,
    /// Length of the mapping in bytes.
    mapped: usize,
    /// Offset of the requested bytes in the mapping.
    offset: usize,
    /// Number of requested bytes.
    len: usize,
}

// SAFETY: Any thread may access the mapping and unmap it.
unsafe impl Send for Mapping {}
// SAFETY: All accesses to the memory are volatile and use raw pointers.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes of a file from `offset`. The offset need not be a multiple of the page
    /// size.
    ///
    /// `access` is one of [`ACCESS_RO`](uapi::ACCESS_RO), [`ACCESS_WO`](uapi::ACCESS_WO),
    /// [`ACCESS_RW`](uapi::ACCESS_RW).
    ///
    /// # Errors
    ///
    /// `InvalidInput` when the range is too long to map; otherwise the error of the `mmap` system
    /// call.
    pub fn of_file(file: BorrowedFd<'_>, offset: u64, len: u64, access: u8) -> io::Result<Self> {
        let within = offset % rustix::param::page_size() as u64;
        let too_long = || io::Error::new(io::ErrorKind::InvalidInput, "region too long to map");
        let mapped = len
            .checked_add(within)
            .and_then(|mapped| usize::try_from(mapped).ok())
            .ok_or_else(too_long)?;
        let prot = match access {
            uapi::ACCESS_RO => ProtFlags::READ,
            uapi::ACCESS_WO => ProtFlags::WRITE,
            _ => ProtFlags::READ | ProtFlags::WRITE,
        };
        // SAFETY: A new mapping at an address of the kernel's choice touches no other memory.
        let base = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                mapped,
                prot,
                MapFlags::SHARED,
                file.as_fd(),
                offset - within,
            )
        }?;
        Self::new(base, mapped, within as usize)
    }

    /// Maps `len` bytes of zeroed memory, shared with children created by `fork`.
    ///
    /// # Errors
    ///
    /// Returns the error of the `mmap` system call.
    pub fn anonymous(len: usize) -> io::Result<Self> {
        // SAFETY: A new mapping at an address of the kernel's choice touches no other memory.
        let base = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
            )
        }?;
        Self::new(base, len, 0)
    }

    /// Unlocks the memory, so that it can be swapped out even if this process has [locked] its
    /// memory.
    ///
    /// [locked]: crate::memory::prepare_for_shortage
    pub(crate) fn unlock(&self) {
        // SAFETY: The mapping belongs to `self`. The call does not change its contents. If the call
        // fails, the memory stays locked, which does no harm.
        let _ = unsafe { rustix::mm::munlock(self.base.as_ptr(), self.mapped) };
    }

    fn new(base: *mut c_void, mapped: usize, offset: usize) -> io::Result<Self> {
        let base = NonNull::new(base).ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(Self {
            base,
            mapped,
            offset,
            len: mapped - offset,
        })
    }

    /// Returns the number of bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns whether the range is empty.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the address of the first byte.
    pub fn address(&self) -> *mut u8 {
        self.base.as_ptr().cast::<u8>().wrapping_add(self.offset)
    }

    /// Returns all of the bytes. An access beyond the end of the mapped file raises `SIGBUS`.
    pub fn bytes(&self) -> VolatileSlice<'_> {
        // SAFETY: The mapping is `offset + len` bytes long and lives as long as `self`. All code in
        // this program accesses the mapping through volatile slices.
        unsafe { VolatileSlice::new(self.address(), self.len) }
    }

    /// Returns the `len` bytes at `offset`.
    ///
    /// # Errors
    ///
    /// Fails when these bytes extend beyond the end of the range.
    pub fn slice(
        &self,
        offset: usize,
        len: usize,
    ) -> Result<VolatileSlice<'_>, vm_memory::VolatileMemoryError> {
        self.bytes().subslice(offset, len)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: The mapping was created by a caller of `new` and belongs to `self`, and every
        // slice of the mapping borrowed `self`. Unmapping an existing mapping cannot fail.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr(), self.mapped) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{ftruncate, memfd_create, MemfdFlags};
    use vm_memory::Bytes;

    #[test]
    fn an_offset_inside_a_page_is_kept() {
        let file = memfd_create("test", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, 8192).unwrap();
        rustix::io::pwrite(&file, b"here", 4100).unwrap();
        let mapping = Mapping::of_file(file.as_fd(), 4100, 10, uapi::ACCESS_RW).unwrap();
        let mut text = [0; 4];
        mapping.bytes().read_slice(&mut text, 0).unwrap();
        assert_eq!(&text, b"here");
        assert_eq!(mapping.len(), 10);
        assert!(mapping.slice(7, 4).is_err());
    }

    #[test]
    fn a_length_that_overflows_is_an_error() {
        let file = memfd_create("test", MemfdFlags::CLOEXEC).unwrap();
        assert!(Mapping::of_file(file.as_fd(), 1, u64::MAX, uapi::ACCESS_RW).is_err());
    }
}
