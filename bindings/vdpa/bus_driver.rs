// SPDX-License-Identifier: GPL-2.0

//! The kinds of vDPA bus drivers that a device can have.
//!
//! C header: [`include/linux/vdpa.h`](srctree/include/linux/vdpa.h)

use super::super::raw as bindings;
use core::ptr;
use kernel::prelude::*;

/// The kind of driver that is bound to a device on the vDPA bus.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum BusDriver {
    /// No driver is bound at the moment.
    None,
    /// vhost-vdpa. While the device waits for its daemon, only the client process of vhost-vdpa is
    /// blocked.
    Vhost,
    /// Any other driver: virtio-vdpa, and with it the kernel's own virtio drivers.
    Kernel,
}

impl BusDriver {
    /// Returns the kind of driver that is bound to a device. May sleep.
    ///
    /// A driver is bound from before its probe until after its removal. So during a call that the
    /// driver makes to the device, the return value is the kind of that driver.
    ///
    /// # Safety
    ///
    /// `dev` must be a valid device of the vDPA bus.
    pub(super) unsafe fn of(dev: *const bindings::device) -> Self {
        // SAFETY: By the safety requirements, the device is valid. Its bus does not change. Its
        // driver may change during a call from netlink, so the driver pointer is only compared with
        // other drivers and never dereferenced.
        let (bus, driver) = unsafe { ((*dev).bus, (&raw const (*dev).driver).read_volatile()) };

        if driver.is_null() {
            return Self::None;
        }

        // SAFETY: The bus is valid, because a device is on it. `is_vhost` dereferences only the
        // drivers that the bus passes.
        let is_vhost = unsafe {
            bindings::bus_for_each_drv(bus, ptr::null_mut(), driver.cast(), Some(is_vhost))
        };

        if is_vhost != 0 {
            Self::Vhost
        } else {
            Self::Kernel
        }
    }
}

/// Returns 1 if `driver` is vhost-vdpa and is at the address `wanted`. Otherwise returns 0. The bus
/// calls this function with each of its drivers.
///
/// # Safety
///
/// `driver` must be valid. `wanted` may be invalid.
unsafe extern "C" fn is_vhost(driver: *mut bindings::device_driver, wanted: *mut c_void) -> c_int {
    if !ptr::eq(driver.cast(), wanted) {
        return 0;
    }

    // SAFETY: By the safety requirements, `driver` is valid. Its name lives as long as the driver.
    let name = unsafe { CStr::from_char_ptr((*driver).name) };

    c_int::from(name.to_bytes() == b"vhost_vdpa")
}
