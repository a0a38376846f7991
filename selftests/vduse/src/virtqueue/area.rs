// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A ring of a virtqueue, mapped into this process.

use std::sync::atomic::{fence, AtomicU16, AtomicU32, AtomicU8, Ordering};
use std::sync::Arc;

use vm_memory::Permissions;

use crate::iotlb::AddressSpace;
use crate::virtqueue::error::Error;
use crate::Mapping;

/// A part of a mapping that holds a ring or a log. The driver may write to it at any time.
///
/// # Invariants
///
/// `base` is a multiple of the alignment with which the area was created, and the `len` bytes from
/// `base` on are a part of `mapping`, with the permissions with which the area was created.
#[derive(Debug)]
pub(super) struct Area {
    base: *mut u8,
    len: usize,
    _mapping: Arc<Mapping>,
}

// SAFETY: Any thread may access the memory, which other processes access as well.
unsafe impl Send for Area {}
// SAFETY: As for `Send`. All accesses are atomic or volatile.
unsafe impl Sync for Area {}

impl Area {
    /// Returns the `len` bytes at `iova`. `align` is a power of 2.
    pub(super) fn new(
        memory: &AddressSpace,
        iova: u64,
        len: usize,
        align: usize,
        access: Permissions,
    ) -> Result<Self, Error> {
        let region = memory
            .find(iova, access)
            .map_err(|error| Error::Unmapped(iova, error))?;
        let (base, room) = region.from(iova);
        if room < len {
            return Err(Error::Scattered(iova));
        }
        if iova % align as u64 != 0 || base as usize % align != 0 {
            return Err(Error::Misaligned(iova));
        }
        // INVARIANT: Checked above. `region` is in `mapping`.
        Ok(Self {
            base,
            len,
            _mapping: region.mapping().clone(),
        })
    }

    /// Returns the `len` bytes at `offset` in a mapping.
    ///
    /// # Panics
    ///
    /// Panics if the mapping is shorter.
    pub(super) fn of_mapping(mapping: &Arc<Mapping>, offset: usize, len: usize) -> Self {
        assert!(offset <= mapping.len() && len <= mapping.len() - offset);
        // INVARIANT: Checked above. Any address is a multiple of an alignment of 1.
        Self {
            base: mapping.address().wrapping_add(offset),
            len,
            _mapping: mapping.clone(),
        }
    }

    /// Returns the address of the value of type `T` at byte `offset`.
    ///
    /// # Panics
    ///
    /// Panics if the value is not aligned or not within the area. The offsets come from this
    /// library, never from the driver.
    #[inline]
    fn at<T>(&self, offset: usize) -> *mut T {
        assert!(offset <= self.len && size_of::<T>() <= self.len - offset);
        let address = self.base.wrapping_add(offset).cast::<T>();
        assert!(address.is_aligned());
        address
    }

    #[inline]
    fn atomic_u8(&self, offset: usize) -> &AtomicU8 {
        // SAFETY: As in `atomic_u16`.
        unsafe { AtomicU8::from_ptr(self.at(offset)) }
    }

    #[inline]
    pub(super) fn load_u8(&self, offset: usize) -> u8 {
        self.atomic_u8(offset).load(Ordering::Acquire)
    }

    #[inline]
    pub(super) fn store_u8(&self, offset: usize, value: u8) {
        self.atomic_u8(offset).store(value, Ordering::Release);
    }

    #[inline]
    fn atomic_u16(&self, offset: usize) -> &AtomicU16 {
        // SAFETY: `at` checks the bounds and the alignment. The mapping lives as long as `self`,
        // and this process accesses the memory only by atomic and volatile operations.
        unsafe { AtomicU16::from_ptr(self.at(offset)) }
    }

    #[inline]
    pub(super) fn load_u16(&self, offset: usize, order: Ordering) -> u16 {
        // A fence, because an atomic load of memory that is mapped for reading only may be no more
        // than relaxed.
        let value = u16::from_le(self.atomic_u16(offset).load(Ordering::Relaxed));
        if order == Ordering::Acquire {
            fence(Ordering::Acquire);
        }
        value
    }

    #[inline]
    pub(super) fn store_u16(&self, offset: usize, value: u16, order: Ordering) {
        self.atomic_u16(offset).store(value.to_le(), order);
    }

    #[inline]
    pub(super) fn store_u32(&self, offset: usize, value: u32) {
        // SAFETY: As in `atomic_u16`.
        let word = unsafe { AtomicU32::from_ptr(self.at(offset)) };
        word.store(value.to_le(), Ordering::Relaxed);
    }

    /// Reads the word of 8 bytes at byte `offset`.
    #[inline]
    pub(super) fn read_u64(&self, offset: usize) -> u64 {
        // SAFETY: `at` checks the bounds and the alignment, and the mapping lives as long as
        // `self`.
        u64::from_le(unsafe { self.at::<u64>(offset).read_volatile() })
    }

    /// Writes a word of 8 bytes at byte `offset`.
    pub(super) fn write_u64(&self, offset: usize, value: u64) {
        // SAFETY: As in `read_u64`.
        unsafe { self.at::<u64>(offset).write_volatile(value.to_le()) }
    }
}
