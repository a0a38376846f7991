// SPDX-License-Identifier: GPL-2.0

//! Devices that belong to no bus.
//!
//! C header: [`include/linux/device.h`](srctree/include/linux/device.h)

use super::raw as bindings;
use core::ptr::{
    self,
    NonNull, //
};
use kernel::{
    device::Device,
    error::from_err_ptr,
    prelude::*,
    sync::Arc, //
};

/// A value that keeps a device registered until the value is dropped.
///
/// A plain `&Device` guarantees only that the device's memory is valid.
///
/// # Safety
///
/// The device that [`device`](Self::device) returns must stay registered until `self` is dropped.
/// Every call must return the same device, even if `self` moves.
pub(crate) unsafe trait Registered {
    /// Returns the device.
    fn device(&self) -> &Device;
}

// SAFETY: The value in an `Arc` is not replaced, and is not dropped before the `Arc`.
unsafe impl<T: Registered> Registered for Arc<T> {
    fn device(&self) -> &Device {
        (**self).device()
    }
}

/// A device without a parent, which serves as the parent of devices without hardware. The device is
/// a directory in `/sys/devices`. Dropping this value unregisters the device.
///
/// # Invariants
///
/// `dev` came from `__root_device_register()` and has not been unregistered.
pub(crate) struct RootDevice {
    dev: NonNull<bindings::device>,
}

// SAFETY: Any thread may unregister a device.
unsafe impl Send for RootDevice {}

// SAFETY: A shared reference gives access only to a reference to the device, which may be shared.
unsafe impl Sync for RootDevice {}

impl RootDevice {
    /// Registers a device called `name`.
    ///
    /// # Errors
    ///
    /// `EINVAL` if `name` is empty; `EEXIST` if there is a device of that name; `ENOMEM`.
    ///
    /// # Context
    ///
    /// May sleep.
    pub(crate) fn new(name: &CStr) -> Result<Self> {
        if name.is_empty() {
            return Err(EINVAL);
        }

        // SAFETY: The name is copied. The module is used only for a symbolic link, which is omitted
        // for a null pointer. The device's memory and release function belong to the driver core,
        // not to this module.
        let dev = from_err_ptr(unsafe {
            bindings::__root_device_register(name.as_char_ptr(), ptr::null_mut())
        })?;

        // INVARIANT: The device has just been registered.
        Ok(Self {
            dev: NonNull::new(dev).ok_or(ENOMEM)?,
        })
    }
}

// SAFETY: By the invariant of `RootDevice`, the device is registered until the `RootDevice` is
// dropped.
unsafe impl Registered for RootDevice {
    fn device(&self) -> &Device {
        // SAFETY: By the type invariant, the device is registered, and therefore valid, as long as
        // `self` exists.
        unsafe { Device::from_raw(self.dev.as_ptr()) }
    }
}

impl Drop for RootDevice {
    fn drop(&mut self) {
        // SAFETY: By the type invariant, `dev` came from `__root_device_register()` and is
        // registered.
        unsafe { bindings::root_device_unregister(self.dev.as_ptr()) };
    }
}
