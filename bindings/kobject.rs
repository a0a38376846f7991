// SPDX-License-Identifier: GPL-2.0

//! Directories in sysfs under a device.
//!
//! C header: [`include/linux/kobject.h`](srctree/include/linux/kobject.h)

use super::{
    device::Registered,
    raw,
    sysfs::{
        Attributes,
        Entry, //
    }, //
};
use core::ptr::{
    self,
    NonNull, //
};
use kernel::{
    alloc::flags::GFP_KERNEL_ACCOUNT,
    device::Device,
    error::to_result,
    prelude::*,
    sync::Arc, //
};

/// A directory in sysfs with attributes, removed when dropped.
///
/// The kobject itself is allocated and freed by the C side, so that whoever else holds a reference
/// to it may do so for as long as it likes.
///
/// # Invariants
///
/// `kobj` came from `kobject_create_and_add()`, and a reference to it belongs to this value.
/// `entries` does not move, and the `data` of each points to the value that `data` holds.
pub(crate) struct KObject<D: Send + Sync + 'static> {
    kobj: NonNull<raw::kobject>,
    entries: KVec<Entry>,
    _data: Arc<D>,
}

// SAFETY: A kobject can be removed by any thread, and what else is in here can be sent.
unsafe impl<D: Send + Sync + 'static> Send for KObject<D> {}

// SAFETY: There is nothing to be done with a shared reference.
unsafe impl<D: Send + Sync + 'static> Sync for KObject<D> {}

impl<D: Send + Sync + 'static> KObject<D> {
    /// Creates the directory `name` under that of `parent`, with the attributes of `A` (see
    /// [`super::sysfs`]), which work on `data`.
    ///
    /// It may outlive `parent`, which takes the directory away when it goes.
    ///
    /// Fails with `EINVAL` if `name` is empty, or with `ENOMEM`, also if there is something of that
    /// name. May sleep.
    pub(crate) fn new<A: Attributes<D>>(
        parent: &impl Registered,
        name: &CStr,
        data: Arc<D>,
    ) -> Result<Self> {
        if name.is_empty() {
            return Err(EINVAL);
        }

        let mut entries = KVec::with_capacity(A::KOBJECT.len(), GFP_KERNEL_ACCOUNT)?;
        for attribute in A::KOBJECT {
            #[cfg_attr(not(CONFIG_DEBUG_LOCK_ALLOC), expect(unused_mut))]
            let mut entry = Entry {
                attribute: *attribute,
                data: Arc::as_ptr(&data).cast(),
            };
            // Lockdep wants a key in static memory: that in the attribute this is a copy of.
            #[cfg(CONFIG_DEBUG_LOCK_ALLOC)]
            {
                entry.attribute.attr.key = (&raw const attribute.attr.skey).cast_mut();
            }
            entries.push(entry, GFP_KERNEL_ACCOUNT)?;
        }

        let device = ptr::from_ref::<Device>(parent.device()).cast::<raw::device>();
        // SAFETY: A `Device` is a `struct device`, valid for as long as `parent` is borrowed.
        let device = unsafe { &raw const (*device).kobj }.cast_mut();
        // SAFETY: The parent is registered until after this call, because `parent` is borrowed.
        // The name is copied.
        let kobj = unsafe { raw::kobject_create_and_add(name.as_char_ptr(), device) };

        // INVARIANT: It has just been created, and the vector is not touched again.
        let this = Self {
            kobj: NonNull::new(kobj).ok_or(ENOMEM)?,
            entries,
            _data: data,
        };
        for index in 0..this.entries.len() {
            let entry = this.entries.as_ptr().wrapping_add(index);
            // SAFETY: In bounds. Made from the pointer to the whole entry, because that is what
            // the attribute's functions make of it again.
            let attribute = unsafe { &raw const (*entry).attribute.attr };
            // SAFETY: `kobj` is in sysfs. The attribute is at its final address. By the safety
            // requirements of `Attributes` it needs to be in an `Entry` with a `D`, which it is,
            // and `drop()` removes it before either goes.
            to_result(unsafe { raw::sysfs_create_file_ns(kobj, attribute, ptr::null()) })?;
        }
        Ok(this)
    }
}

impl<D: Send + Sync + 'static> Drop for KObject<D> {
    /// Waits for attributes that are being read or written. May sleep.
    ///
    /// From within one of its own attributes it would wait for itself.
    fn drop(&mut self) {
        // SAFETY: By the type invariant. This removes the directory and the files in it, and waits
        // for those in use, so that the entries and the data, dropped next, are not in use any more.
        unsafe { raw::kobject_del(self.kobj.as_ptr()) };
        // SAFETY: The reference is ours.
        unsafe { raw::kobject_put(self.kobj.as_ptr()) };
    }
}
