// SPDX-License-Identifier: GPL-2.0

//! Address spaces of files: the record of all mappings of a file, through which pages can be taken
//! away from the processes that have mapped them.
//!
//! This kind of address space has nothing to do with a device's address spaces, which are numbered
//! by ASIDs.
//!
//! C header: [`include/linux/fs.h`](srctree/include/linux/fs.h)

use super::raw as bindings;
use core::ops::Range;
use kernel::{
    prelude::*,
    types::Opaque, //
};

/// The address space of one file.
///
/// Anonymous files share an inode, and with it an address space. A file whose pages are to be taken
/// away needs an address space of its own, as the pages of all other files with the same address
/// space would be taken away as well.
///
/// # Invariants
///
/// `inner` is initialised and pinned.
#[pin_data]
pub(crate) struct AddressSpace {
    #[pin]
    inner: Opaque<bindings::address_space>,
}

// SAFETY: Nothing in an address space belongs to a task.
unsafe impl Send for AddressSpace {}
// SAFETY: An address space has locks of its own.
unsafe impl Sync for AddressSpace {}

impl AddressSpace {
    /// Returns an initialiser for an address space without mappings.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            // INVARIANT: The initialiser initialises the address space.
            inner <- Opaque::ffi_init(|slot| {
                // SAFETY: `slot` is valid for writes, and pinned.
                unsafe { bindings::address_space_init(slot) }
            }),
        })
    }

    /// Makes this the address space of `file`.
    ///
    /// # Safety
    ///
    /// No other code may use the file yet. The address space must exist until the file is released.
    pub(super) unsafe fn attach(&self, file: *mut bindings::file) {
        // SAFETY: By the safety requirements, the file is valid and used by nobody else. Its inode
        // exists as long as the file, and so as long as any mapping in this address space.
        unsafe {
            (*self.inner.get()).host = (*file).f_inode;
            (*file).f_mapping = self.inner.get();
        }
    }

    /// Removes the pages at the offsets `range` from all mappings of the file. The next access
    /// causes a fault. `range` is in bytes; both ends are multiples of the page size.
    ///
    /// A fault that is being handled may map its page after this call. There is a reference to such
    /// a page until it is mapped.
    ///
    /// # Context
    ///
    /// May sleep.
    pub(crate) fn unmap(&self, range: Range<u64>) {
        // CAST: Offsets of mapped files are below `i64::MAX`.
        let (start, len) = (
            range.start as i64,
            range.end.saturating_sub(range.start) as i64,
        );
        if len <= 0 {
            // A length of 0 would mean everything up to the end.
            return;
        }

        // SAFETY: By the type invariants, the address space is initialised. The copies that a
        // process has made of pages in a private mapping stay mapped.
        unsafe { bindings::unmap_mapping_range(self.inner.get(), start, len, 0) }
    }
}
