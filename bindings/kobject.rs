// SPDX-License-Identifier: GPL-2.0

//! Sysfs directories under a device.
//!
//! C header: [`include/linux/kobject.h`](srctree/include/linux/kobject.h)

use super::{
    device::Registered,
    raw as bindings,
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

/// A sysfs directory with attributes. Dropping this value removes the directory.
///
/// C code allocates and frees the kobject itself, so other code may hold references to the kobject
/// for any length of time.
///
/// # Invariants
///
/// `kobj` came from `kobject_create_and_add()`, and this value owns a reference to it. The contents
/// of `entries` do not move, and the `data` of each entry points to the value that `_data` holds.
pub(crate) struct KObject<D: Send + Sync + 'static> {
    kobj: NonNull<bindings::kobject>,
    entries: KVec<Entry>,
    _data: Arc<D>,
}

// SAFETY: Any thread may remove a kobject. The entries point only to static memory and to the value
// that `_data` holds, which is `Send` and `Sync`.
unsafe impl<D: Send + Sync + 'static> Send for KObject<D> {}

// SAFETY: A shared reference gives access to none of the fields.
unsafe impl<D: Send + Sync + 'static> Sync for KObject<D> {}

impl<D: Send + Sync + 'static> KObject<D> {
    /// Creates the directory `name` in the directory of `parent`. The new directory has the
    /// attributes of `A` (see [`super::sysfs`]), which work on `data`.
    ///
    /// The returned value may outlive `parent`. When `parent` is unregistered, the directory is
    /// removed.
    ///
    /// # Errors
    ///
    /// `EINVAL` if `name` is empty; `ENOMEM` if no memory is available or `name` is already in use.
    ///
    /// # Context
    ///
    /// May sleep.
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
            // Lockdep requires a key in static memory, so the entry uses the key of the static
            // attribute.
            #[cfg(CONFIG_DEBUG_LOCK_ALLOC)]
            {
                entry.attribute.attr.key = (&raw const attribute.attr.skey).cast_mut();
            }
            entries.push(entry, GFP_KERNEL_ACCOUNT)?;
        }

        let device = ptr::from_ref::<Device>(parent.device()).cast::<bindings::device>();
        // SAFETY: A `Device` is a `struct device`, valid for as long as `parent` is borrowed.
        let device = unsafe { &raw const (*device).kobj }.cast_mut();
        // SAFETY: `parent` is borrowed, so the parent is registered until after this call. The name
        // is copied.
        let kobj = unsafe { bindings::kobject_create_and_add(name.as_char_ptr(), device) };

        // INVARIANT: The kobject has just been created. The vector `entries` is not modified any
        // more, so its contents do not move.
        let this = Self {
            kobj: NonNull::new(kobj).ok_or(ENOMEM)?,
            entries,
            _data: data,
        };
        for index in 0..this.entries.len() {
            let entry = this.entries.as_ptr().wrapping_add(index);
            // SAFETY: `entry` is in bounds. `attribute` is derived from the pointer to the whole
            // entry, because the attribute's functions convert `attribute` back to that pointer.
            let attribute = unsafe { &raw const (*entry).attribute.attr };
            // SAFETY: `kobj` is in sysfs. The attribute is at its final address. The safety
            // requirements of `Attributes` hold: the attribute is in an `Entry` with a `D`, and
            // `drop()` removes the attribute before the entry and the data are dropped.
            to_result(unsafe { bindings::sysfs_create_file_ns(kobj, attribute, ptr::null()) })?;
        }
        Ok(this)
    }
}

impl<D: Send + Sync + 'static> Drop for KObject<D> {
    /// Removes the directory. Waits for reads and writes of attributes that are in progress. May
    /// sleep.
    ///
    /// Deadlocks if called from one of the directory's own attributes.
    fn drop(&mut self) {
        // SAFETY: By the type invariant, `kobj` is valid. This call removes the directory and its
        // files, and waits for the files that are in use. So the entries and the data, which are
        // dropped next, are not in use any more.
        unsafe { bindings::kobject_del(self.kobj.as_ptr()) };
        // SAFETY: By the type invariant, this value owns the reference that is released here.
        unsafe { bindings::kobject_put(self.kobj.as_ptr()) };
    }
}
