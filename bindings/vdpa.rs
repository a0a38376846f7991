// SPDX-License-Identifier: GPL-2.0

//! vDPA devices: virtio devices that a kernel or userspace driver finds on the vDPA bus.
//!
//! The vDPA core allocates a vDPA device together with the device driver's own data, whose type
//! implements [`Operations`]. A [management device](mgmt) adds the device to the bus. The device
//! lives until the core releases it.
//!
//! C header: [`include/linux/vdpa.h`](srctree/include/linux/vdpa.h)

mod bus_driver;
mod callback;
mod device;
pub(crate) mod mgmt;
mod state;
pub(crate) mod status;

pub(crate) use self::{
    bus_driver::BusDriver,
    callback::{
        CallbackSlot,
        Callbacks,
        Suspended, //
    },
    device::{
        Operations,
        Suspension, //
    },
    state::{
        PackedPosition,
        VqAddress,
        VqState, //
    },
};
