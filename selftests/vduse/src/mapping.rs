// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Shared memory that others may write to at any time.

use std::ffi::c_void;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;

use rustix::mm::{MapFlags, ProtFlags};
use vduse_uapi as uapi;
use vm_memory::volatile_memory::VolatileSlice;

/// A piece of a shared mapping, unmapped on drop.
///
/// Somebody else writes to the same memory, so there are no references to it, only volatile
/// access.
#[derive(Debug)]
pub struct Mapping {
    /// Where the mapping starts, at a page.
    base: NonNull<c_void>,
    /// How long the mapping is, in bytes.
    mapped: usize,
    /// Where in it the wanted bytes start.
    offset: usize,
    /// How many they are.
    len: usize,
}

// SAFETY: The mapping is memory like any other, and can be unmapped by any thread.
unsafe impl Send for Mapping {}
// SAFETY: There is only volatile access to the memory, through raw pointers.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes of a file from `offset`, which need not be at a page.
    ///
    /// `access` is one of [`ACCESS_RO`](uapi::ACCESS_RO), [`ACCESS_WO`](uapi::ACCESS_WO),
    /// [`ACCESS_RW`](uapi::ACCESS_RW).
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

    /// Maps `len` bytes of zeroed memory, shared with children made by fork.
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

    fn new(base: *mut c_void, mapped: usize, offset: usize) -> io::Result<Self> {
        let base = NonNull::new(base).ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(Self {
            base,
            mapped,
            offset,
            len: mapped - offset,
        })
    }

    /// How many bytes there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Address of the first byte.
    pub fn address(&self) -> *mut u8 {
        self.base.as_ptr().cast::<u8>().wrapping_add(self.offset)
    }

    /// All of the bytes. Reading what the file does not have raises `SIGBUS`.
    pub fn bytes(&self) -> VolatileSlice<'_> {
        // SAFETY: The mapping is `offset + len` bytes long and lives as long as `self`; everybody
        // in this program goes through volatile slices.
        unsafe { VolatileSlice::new(self.address(), self.len) }
    }

    /// Some of the bytes, or an error when they are not all inside.
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
        // SAFETY: The mapping was made by `new`'s callers and belongs to `self`, and every slice of
        // it borrowed `self`. It cannot fail for a mapping that exists.
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
