// SPDX-License-Identifier: GPL-2.0

//! Devices that belong to no bus.
//!
//! C header: [`include/linux/device.h`](srctree/include/linux/device.h)

use super::raw;
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

/// Something that has a device registered for as long as it exists.
///
/// A plain `&Device` says no more than that its memory is valid.
///
/// # Safety
///
/// The device that [`device`](Self::device) returns must be registered, and must neither be
/// unregistered nor be replaced by another one before `self` is dropped, even if `self` moves.
pub(crate) unsafe trait Registered {
    /// The device.
    fn device(&self) -> &Device;
}

// SAFETY: What is in the `Arc` is not dropped before the `Arc`, and not replaced.
unsafe impl<T: Registered> Registered for Arc<T> {
    fn device(&self) -> &Device {
        (**self).device()
    }
}

/// A device without a parent: a directory in `/sys/devices`, to be the parent of what has no
/// hardware. Unregistered when dropped.
///
/// # Invariants
///
/// `dev` came from `__root_device_register()` and has not been unregistered.
pub(crate) struct RootDevice {
    dev: NonNull<raw::device>,
}

// SAFETY: A device can be unregistered by any thread.
unsafe impl Send for RootDevice {}

// SAFETY: A reference to a device can be shared, and no more than that can be had.
unsafe impl Sync for RootDevice {}

impl RootDevice {
    /// Registers a device called `name`.
    ///
    /// Fails with `EINVAL` if `name` is empty, with `EEXIST` if there is one of that name, or with
    /// `ENOMEM`. May sleep.
    pub(crate) fn new(name: &CStr) -> Result<Self> {
        if name.is_empty() {
            return Err(EINVAL);
        }

        // SAFETY: The name is copied. The module is only for a symbolic link, which is left out:
        // the device's memory and its release function are the driver core's own.
        let dev = from_err_ptr(unsafe {
            raw::__root_device_register(name.as_char_ptr(), ptr::null_mut())
        })?;

        // INVARIANT: It has just been registered.
        Ok(Self {
            dev: NonNull::new(dev).ok_or(ENOMEM)?,
        })
    }
}

// SAFETY: By its invariant a `RootDevice` is registered until it is dropped.
unsafe impl Registered for RootDevice {
    fn device(&self) -> &Device {
        // SAFETY: By the type invariant it is valid, with a reference, for as long as `self` is.
        unsafe { Device::from_raw(self.dev.as_ptr()) }
    }
}

impl Drop for RootDevice {
    fn drop(&mut self) {
        // SAFETY: By the type invariant.
        unsafe { raw::root_device_unregister(self.dev.as_ptr()) };
    }
}
