// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The region of the driver's memory in which the last buffer was.

use std::ptr;
use std::sync::Arc;

use vm_memory::Permissions;

use crate::iotlb::{AddressSpace, Mapped};
use crate::virtqueue::error::Error;

/// A cache of one region. Nearly all buffers of a kernel driver are in one region, the bounce area,
/// so that most of them are found here, without a search and without an atomic operation.
///
/// # Invariants
///
/// `base`, `first` and `len` are those of `_region`, and `len` is 0 if there is none.
#[derive(Debug)]
pub(super) struct Window {
    base: *mut u8,
    /// The region's first IOVA.
    first: u64,
    /// Length in bytes.
    len: u64,
    readable: bool,
    writable: bool,
    _region: Option<Arc<Mapped>>,
}

// SAFETY: Any thread may access the memory of the region, which the driver accesses as well.
unsafe impl Send for Window {}
// SAFETY: As for `Send`. A shared reference gives no access to the memory.
unsafe impl Sync for Window {}

impl Window {
    /// Creates an empty cache.
    pub(super) fn new() -> Self {
        Self {
            base: ptr::null_mut(),
            first: 0,
            len: 0,
            readable: false,
            writable: false,
            _region: None,
        }
    }

    /// Returns the address of `iova`, and the number of bytes from there to the end of the region,
    /// at least 1. The device may write to these bytes or, if `writable` is not set, read them.
    #[inline]
    pub(super) fn find(
        &mut self,
        memory: &AddressSpace,
        iova: u64,
        writable: bool,
    ) -> Result<(*mut u8, usize), Error> {
        let offset = iova.wrapping_sub(self.first);
        let allowed = if writable {
            self.writable
        } else {
            self.readable
        };
        if offset >= self.len || !allowed {
            return self.search(memory, iova, writable);
        }
        // CAST: The region is mapped, so its length fits `usize`.
        let address = self.base.wrapping_add(offset as usize);
        Ok((address, (self.len - offset) as usize))
    }

    #[cold]
    fn search(
        &mut self,
        memory: &AddressSpace,
        iova: u64,
        writable: bool,
    ) -> Result<(*mut u8, usize), Error> {
        let access = if writable {
            Permissions::Write
        } else {
            Permissions::Read
        };
        let region = memory
            .find(iova, access)
            .map_err(|error| Error::Unmapped(iova, error))?;
        // INVARIANT: All fields are set from the same region, which is mapped as long as it exists.
        *self = Self {
            base: region.mapping().address(),
            first: region.first(),
            len: region.mapping().len() as u64,
            readable: region.allows(Permissions::Read),
            writable: region.allows(Permissions::Write),
            _region: Some(region.clone()),
        };
        Ok(region.from(iova))
    }
}
