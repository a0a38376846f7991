// SPDX-License-Identifier: GPL-2.0

//! Reading the IOTLB that vhost passes to a vDPA device.
//!
//! C header: [`include/linux/vhost_iotlb.h`](srctree/include/linux/vhost_iotlb.h)

use super::raw as bindings;
use core::{
    marker::PhantomData,
    ptr, //
};
use kernel::{
    fs::File,
    prelude::*,
    sync::aref::ARef,
    types::Opaque, //
};

/// The mappings of one address space, as vhost passes them to a vDPA device.
///
/// # Invariants
///
/// Every mapping's opaque pointer is null or points to a `struct vdpa_map_file`. This is so for
/// devices that use virtual addresses.
#[repr(transparent)]
pub(crate) struct Iotlb(Opaque<bindings::vhost_iotlb>);

/// One mapping of an [`Iotlb`].
#[derive(Clone)]
pub(crate) struct Map {
    /// The first I/O virtual address.
    pub(crate) start: u64,
    /// The last I/O virtual address.
    pub(crate) last: u64,
    /// The accesses that the device may make, as bits: 1 for reading, 2 for writing.
    pub(crate) perm: u32,
    /// The file that holds the memory.
    pub(crate) file: ARef<File>,
    /// The offset of the memory in the file, in bytes.
    pub(crate) offset: u64,
}

impl Iotlb {
    /// Converts a pointer to a reference.
    ///
    /// # Safety
    ///
    /// `ptr` must be valid for `'a`, and the IOTLB must not change for `'a`. Every mapping's opaque
    /// pointer must be null or point to a `struct vdpa_map_file`.
    pub(super) unsafe fn from_raw<'a>(ptr: *mut bindings::vhost_iotlb) -> &'a Self {
        // SAFETY: By the safety requirements, `ptr` is valid for `'a`; `Iotlb` is transparent.
        // INVARIANT: By the safety requirements, each opaque pointer is as the type requires.
        unsafe { &*ptr.cast() }
    }

    /// Returns whether the IOTLB has a mapping with exactly these properties. Any context; takes
    /// time logarithmic in the number of mappings.
    pub(crate) fn has(&self, start: u64, last: u64, perm: u32, file: &File, offset: u64) -> bool {
        // SAFETY: The IOTLB is valid and does not change as long as `self` is borrowed. `map` is a
        // mapping of the IOTLB, whose fields are always initialised, except for padding.
        let found = unsafe {
            let map = bindings::vhost_iotlb_itree_first(self.0.get(), start, last);
            if map.is_null() {
                return false;
            }
            ((*map).start, (*map).last, (*map).perm, (*map).opaque)
        };
        let (found_start, found_last, found_perm, opaque) = found;

        // SAFETY: By the type invariants, `opaque` is null or points to a `vdpa_map_file`.
        let backing = unsafe { opaque.cast::<bindings::vdpa_map_file>().as_ref() };

        (found_start, found_last, found_perm) == (start, last, perm)
            && backing.is_some_and(|backing| {
                // CAST: A `File` is a `struct file`.
                ptr::eq(backing.file.cast_const().cast(), file) && backing.offset == offset
            })
    }

    /// Returns all mappings, in ascending order of their addresses.
    pub(crate) fn iter(&self) -> Iter<'_> {
        Iter {
            // SAFETY: The IOTLB is valid and does not change as long as `self` is borrowed.
            next: unsafe { bindings::vhost_iotlb_itree_first(self.0.get(), 0, u64::MAX) },
            _iotlb: PhantomData,
        }
    }
}

/// An iterator over the mappings of an [`Iotlb`].
///
/// # Invariants
///
/// `next` is null or points to a mapping of an IOTLB that does not change for `'a`.
pub(crate) struct Iter<'a> {
    next: *mut bindings::vhost_iotlb_map,
    _iotlb: PhantomData<&'a Iotlb>,
}

impl Iterator for Iter<'_> {
    /// A mapping, or `EINVAL` for a mapping without a file.
    type Item = Result<Map>;

    fn next(&mut self) -> Option<Self::Item> {
        let map = self.next;
        if map.is_null() {
            return None;
        }
        // SAFETY: By the type invariants, `map` is valid. These fields are always initialised, but
        // padding is not.
        let (start, last, perm, opaque) =
            unsafe { ((*map).start, (*map).last, (*map).perm, (*map).opaque) };
        // SAFETY: By the type invariants, `map` is a mapping of an IOTLB that does not change.
        // INVARIANT: The next mapping is in the same IOTLB.
        self.next = unsafe { bindings::vhost_iotlb_itree_next(map, 0, u64::MAX) };

        // SAFETY: By the invariants of `Iotlb`, `opaque` is null or points to a `vdpa_map_file`.
        let Some(backing) = (unsafe { opaque.cast::<bindings::vdpa_map_file>().as_ref() }) else {
            return Some(Err(EINVAL));
        };
        if backing.file.is_null() {
            return Some(Err(EINVAL));
        }

        Some(Ok(Map {
            start,
            last,
            perm,
            // SAFETY: The mapping holds an ordinary reference to its file, which was taken from a
            // virtual memory area.
            file: unsafe { File::from_raw_file(backing.file) }.into(),
            offset: backing.offset,
        }))
    }
}
