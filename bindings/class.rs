// SPDX-License-Identifier: GPL-2.0

//! Device classes.
//!
//! C header: [`include/linux/device/class.h`](srctree/include/linux/device/class.h)

use super::raw as bindings;
use core::{
    marker::PhantomData,
    ptr, //
};
use kernel::{
    device::Device,
    error::to_result,
    prelude::*, //
};

/// The name of a class and the directory of its device nodes.
///
/// The name and the directory are constants of a type, not fields of a value. So the `struct class`
/// that is built from them can be in the module's read-only memory. The kernel reads the structure
/// as long as any code holds a reference to a device of the class, even after the class is
/// unregistered.
pub(crate) trait ClassInfo: 'static {
    /// The name of the class's directory in `/sys/class`.
    const NAME: &'static CStr;

    /// The directory of the device nodes. The node of a device is `/dev/DIRECTORY/DEVICE`.
    const DIRECTORY: &'static CStr;
}

/// The C structure (`struct class`) for a [`ClassInfo`].
struct RawClass<T: ClassInfo>(PhantomData<T>);

impl<T: ClassInfo> RawClass<T> {
    const RAW: bindings::class = bindings::class {
        name: kernel::str::as_char_ptr_in_const_context(T::NAME),
        devnode: Some(Self::devnode),
        ..pin_init::zeroed()
    };

    /// Returns the path of a device's node, relative to `/dev`.
    ///
    /// # Safety
    ///
    /// `dev` must be a valid device with a positive reference count during this call.
    unsafe extern "C" fn devnode(
        dev: *const bindings::device,
        _mode: *mut bindings::umode_t,
    ) -> *mut c_char {
        // SAFETY: By the safety requirements, `dev` is a valid device during this call.
        let dev: &Device = unsafe { Device::from_raw(dev.cast_mut()) };

        // SAFETY: The format takes two strings, and two strings are passed. The caller is the
        // driver core, which frees the string that is allocated here, and accepts a null pointer.
        unsafe {
            bindings::kasprintf(
                bindings::GFP_KERNEL,
                c"%s/%s".as_char_ptr(),
                T::DIRECTORY.as_char_ptr(),
                dev.name().as_char_ptr(),
            )
        }
    }
}

/// A registered class. Dropping this value unregisters the class.
///
/// # Invariants
///
/// The class that `raw` points to is registered.
pub(crate) struct Class {
    raw: &'static bindings::class,
}

// SAFETY: Any thread may unregister a class.
unsafe impl Send for Class {}

// SAFETY: The structure is only read, and the driver core does its own locking.
unsafe impl Sync for Class {}

impl Class {
    /// Registers a class.
    ///
    /// # Errors
    ///
    /// `EEXIST` if there is a class of that name; `ENOMEM`.
    ///
    /// # Context
    ///
    /// May sleep.
    pub(crate) fn register<T: ClassInfo>() -> Result<Self> {
        let raw = &RawClass::<T>::RAW;

        // SAFETY: The structure is complete, and lives as long as the module.
        to_result(unsafe { bindings::class_register(raw) })?;

        // INVARIANT: The class has just been registered, and stays registered until this value is
        // dropped.
        Ok(Self { raw })
    }

    /// Returns the C structure, which is registered as long as `self` exists.
    pub(super) fn as_raw(&self) -> *const bindings::class {
        ptr::from_ref(self.raw)
    }
}

impl Drop for Class {
    fn drop(&mut self) {
        // SAFETY: By the type invariant, the class is registered at this address.
        unsafe { bindings::class_unregister(self.raw) };
    }
}
