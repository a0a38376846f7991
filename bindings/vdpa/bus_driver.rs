// SPDX-License-Identifier: GPL-2.0

//! Which driver of the vDPA bus drives a device.
//!
//! C header: [`include/linux/vdpa.h`](srctree/include/linux/vdpa.h)

use super::bindings;
use core::ptr;
use kernel::prelude::*;

/// The driver of a device that is on the bus.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum BusDriver {
    /// No driver, at the moment.
    None,
    /// vhost-vdpa. Only the client process blocks on such a device.
    Vhost,
    /// Any other: virtio-vdpa, and with it the kernel's own virtio drivers.
    Kernel,
}

impl BusDriver {
    /// Returns the driver of a device. A call by a driver finds that driver itself, which is bound
    /// from before it is probed until after it is removed. May sleep.
    ///
    /// # Safety
    ///
    /// `dev` must be a valid device of the vDPA bus.
    pub(super) unsafe fn of(dev: *const bindings::device) -> Self {
        // SAFETY: By the safety requirements. The bus does not change; the driver may, while netlink
        // asks, and is only compared with others.
        let (bus, driver) = unsafe { ((*dev).bus, (&raw const (*dev).driver).read_volatile()) };

        if driver.is_null() {
            return Self::None;
        }

        // SAFETY: The bus is valid, as a device is on it, and `is_vhost` fits.
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

/// Whether `driver`, which is on the bus, is the one at `wanted`, and vhost-vdpa.
///
/// # Safety
///
/// `driver` must be valid. `wanted` need not be.
unsafe extern "C" fn is_vhost(driver: *mut bindings::device_driver, wanted: *mut c_void) -> c_int {
    if !ptr::eq(driver.cast(), wanted) {
        return 0;
    }

    // SAFETY: By the safety requirements; a driver has a name, which stays as long as it.
    let name = unsafe { CStr::from_char_ptr((*driver).name) };

    c_int::from(name.to_bytes() == b"vhost_vdpa")
}
