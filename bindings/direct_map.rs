// SPDX-License-Identifier: GPL-2.0

//! Memory that a virtio driver has mapped for a device that is in the kernel itself.
//!
//! Such a device needs no bounce pages, because it accesses the driver's memory in place. A
//! [`DirectMap`] limits the device to what the driver has allowed: only memory that is mapped, and
//! only in the direction for which it is mapped.
//!
//! # Lock order
//!
//! The lock of a map may be taken in any context. No other lock is taken while the lock of a map is
//! held.

use super::{
    bounce::{
        Buffer,
        Direction, //
    },
    lock::{
        new_spinlock_irqsave,
        SpinLockIrqSave, //
    },
    page::Pages,
    phys,
    vring::{
        Malformed,
        Memory, //
    },
};
use kernel::prelude::*;

/// Maximum number of ranges that are mapped at the same time: enough for a ring and for the buffers
/// of a request with several descriptors.
const MAX_RANGES: usize = 16;

/// Bit that is set in the addresses of mapped ranges. The bit distinguishes these addresses from
/// addresses in a bounce area, which are much lower.
const DIRECT: u64 = 1 << 63;

// The allocator of bounce slots takes addresses as `usize`, which must be wide enough for `DIRECT`.
const _: () = assert!(usize::BITS == u64::BITS);

/// A mapped range.
///
/// # Invariants
///
/// The `len` bytes of physical memory from `phys` on have page structures, and stay allocated until
/// the range is removed from its map.
struct Range {
    phys: u64,
    len: usize,
    is_readable: bool,
    is_writable: bool,
    /// References to the pages, if the range is coherent memory that was allocated for the driver.
    /// [`None`] if the range is a buffer, which the driver unmaps before freeing it.
    pages: Option<Pages>,
}

impl Range {
    fn address(&self) -> u64 {
        self.phys | DIRECT
    }

    /// Returns the physical address of the `len` bytes at `address`, or [`None`] if the range does
    /// not contain all of these bytes. The physical address is `address` without the bit
    /// [`DIRECT`].
    fn phys(&self, address: u64, len: usize) -> Option<u64> {
        let offset = address.checked_sub(self.address())?;
        let end = offset.checked_add(len as u64)?;

        (end <= self.len as u64).then_some(self.phys + offset)
    }
}

/// The memory that a driver has mapped for a device that is in the kernel.
#[pin_data]
pub(crate) struct DirectMap {
    #[pin]
    ranges: SpinLockIrqSave<[Option<Range>; MAX_RANGES]>,
}

impl DirectMap {
    /// Returns an initialiser for an empty map.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            ranges <- new_spinlock_irqsave!([const { None }; MAX_RANGES]),
        })
    }

    fn add(&self, range: Range) -> Result<u64> {
        let address = range.address();
        let mut ranges = self.ranges.lock();
        let free = ranges.iter_mut().find(|range| range.is_none());

        *free.ok_or(ENOMEM)? = Some(range);

        Ok(address)
    }

    /// Maps a buffer. Returns the buffer's address, or [`None`] if [`MAX_RANGES`] ranges are mapped
    /// already. Any context.
    pub(super) fn map(&self, buffer: Buffer<'_>, dir: Direction) -> Option<u64> {
        let (phys, len) = buffer.range();

        // INVARIANT: By the invariants of `Buffer`, the driver keeps the memory until the driver
        // unmaps the buffer.
        self.add(Range {
            phys,
            len,
            is_readable: dir.device_reads(),
            is_writable: dir.device_writes(),
            pages: None,
        })
        .ok()
    }

    /// Maps the first `size` bytes of `pages`, which are coherent memory that was allocated for the
    /// driver. Keeps `pages` until [`unmap`](Self::unmap) is called.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`] if [`MAX_RANGES`] ranges are mapped already, or if `pages` has fewer than `size`
    /// bytes.
    ///
    /// # Context
    ///
    /// Any.
    pub(super) fn map_coherent(&self, pages: Pages, size: usize) -> Result<u64> {
        let phys = pages.phys(0, size).ok_or(ENOMEM)?;

        // INVARIANT: The range owns `pages`, which keeps the memory allocated.
        self.add(Range {
            phys,
            len: size,
            is_readable: true,
            is_writable: true,
            pages: Some(pages),
        })
    }

    /// Ends a mapping. Waits for accesses that are in progress. Any context.
    pub(super) fn unmap(&self, address: u64, len: usize) {
        let mut ranges = self.ranges.lock();
        let removed = ranges
            .iter_mut()
            .find(|range| {
                range
                    .as_ref()
                    .is_some_and(|range| range.address() == address && range.len == len)
            })
            .and_then(Option::take);

        // The pages of the range are freed after the lock is released.
        drop(ranges);
        drop(removed);
    }

    /// Ends the mappings of all buffers, because their driver is about to free them. If the driver
    /// unmaps such a buffer afterwards, [`unmap`](Self::unmap) does nothing. Waits for accesses
    /// that are in progress. Any context.
    pub(crate) fn forget_buffers(&self) {
        for range in self.ranges.lock().iter_mut() {
            if range.as_ref().is_some_and(|range| range.pages.is_none()) {
                *range = None;
            }
        }
    }

    /// Calls `f` with the physical address of the `len` bytes at `address`. One mapped range, for
    /// which `allows` returns `true`, must contain all of these bytes. The range stays mapped
    /// during the call.
    ///
    /// # Errors
    ///
    /// [`Malformed`] if there is no such range.
    fn access<R>(
        &self,
        address: u64,
        len: usize,
        allows: impl Fn(&Range) -> bool,
        f: impl FnOnce(u64) -> R,
    ) -> Result<R, Malformed> {
        let ranges = self.ranges.lock();
        let phys = ranges
            .iter()
            .flatten()
            .filter(|range| allows(range))
            .find_map(|range| range.phys(address, len));

        phys.map(f).ok_or(Malformed)
    }
}

impl Memory for DirectMap {
    fn read(&self, address: u64, buf: &mut [u8]) -> Result<(), Malformed> {
        self.access(
            address,
            buf.len(),
            |range| range.is_readable,
            |phys| {
                // SAFETY: By the invariants of `Range`, the memory stays allocated as long as the
                // range is mapped. The range stays mapped during this call.
                unsafe { phys::read(phys, buf) }
            },
        )
    }

    fn write(&self, address: u64, bytes: &[u8]) -> Result<(), Malformed> {
        self.access(
            address,
            bytes.len(),
            |range| range.is_writable,
            |phys| {
                // SAFETY: As in `read`. The driver has mapped the memory for a device to write to.
                unsafe { phys::write(phys, bytes) }
            },
        )
    }

    fn load_acquire(&self, address: u64) -> Result<u16, Malformed> {
        if address % 2 != 0 {
            return Err(Malformed);
        }

        self.access(
            address,
            2,
            |range| range.is_readable,
            |phys| {
                // SAFETY: As in `read`. `phys` is even, because `address` is even and differs from
                // `phys` only by `DIRECT`.
                unsafe { phys::load_acquire(phys) }
            },
        )
    }

    fn store_release(&self, address: u64, value: u16) -> Result<(), Malformed> {
        if address % 2 != 0 {
            return Err(Malformed);
        }

        self.access(
            address,
            2,
            |range| range.is_writable,
            |phys| {
                // SAFETY: As in `write`; the address is even, as in `load_acquire`.
                unsafe { phys::store_release(phys, value) }
            },
        )
    }
}
