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

/// A value that keeps a device registered as long as it exists.
///
/// A plain `&Device` guarantees no more than that the device's memory is valid.
///
/// # Safety
///
/// The device that [`device`](Self::device) returns must be registered, and must neither be
/// unregistered nor be replaced by another one before `self` is dropped, even if `self` moves.
pub(crate) unsafe trait Registered {
    /// Returns the device.
    fn device(&self) -> &Device;
}

// SAFETY: The value in an `Arc` is neither dropped before the `Arc` nor replaced.
unsafe impl<T: Registered> Registered for Arc<T> {
    fn device(&self) -> &Device {
        (**self).device()
    }
}

/// A device without a parent: a directory in `/sys/devices`, which serves as the parent of devices
/// without hardware. Unregistered when dropped.
///
/// # Invariants
///
/// `dev` came from `__root_device_register()` and has not been unregistered.
pub(crate) struct RootDevice {
    dev: NonNull<bindings::device>,
}

// SAFETY: A device can be unregistered by any thread.
unsafe impl Send for RootDevice {}

// SAFETY: A shared reference gives access to nothing but a reference to the device, which can be
// shared.
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

        // SAFETY: The name is copied. The module is only used for a symbolic link, which a null
        // pointer omits: the device's memory and release function belong to the driver core.
        let dev = from_err_ptr(unsafe {
            bindings::__root_device_register(name.as_char_ptr(), ptr::null_mut())
        })?;

        // INVARIANT: The device has just been registered.
        Ok(Self {
            dev: NonNull::new(dev).ok_or(ENOMEM)?,
        })
    }
}

// SAFETY: By its invariant, the device of a `RootDevice` is registered until that is dropped.
unsafe impl Registered for RootDevice {
    fn device(&self) -> &Device {
        // SAFETY: By the type invariant, the device is registered, and so valid, as long as `self`
        // is.
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
