// SPDX-License-Identifier: GPL-2.0

//! VDUSE: vDPA devices in userspace.
//!
//! A daemon creates a device on `/dev/vduse/control` and serves it on `/dev/vduse/NAME`. The kernel
//! puts the device on the vDPA bus, where a virtio driver of the kernel, or a virtual machine by
//! way of vhost, drives it.
//!
//! - `driver` has the rules of VDUSE, without `unsafe` and without C.
//! - `bindings` has safe Rust for the kernel facilities that `driver` needs, without VDUSE.
//! - `uapi` has the ABI.

mod bindings;
mod driver;
mod uapi;

use bindings::{
    device::RootDevice,
    module::is_present,
    param::module_param_int,
    vdpa::mgmt, //
};
use driver::{
    nodes::{
        Management,
        Nodes, //
    },
    registry::Registry, //
};
use kernel::{
    prelude::*,
    sync::Arc, //
};

module! {
    type: Vduse,
    name: "vduse_rs",
    authors: ["The vduse_rs developers"],
    description: "vDPA devices in userspace (VDUSE)",
    license: "GPL",
}

module_param_int! {
    /// The maximum number of mappings of one address space.
    static MAX_IOTLB_ENTRIES: max_iotlb_entries = 2048,
        "Maximum number of IOTLB entries of an address space (default: 2048)";
}

module_param_int! {
    /// The longest time, in milliseconds, that a kernel driver waits for the daemon to carry out a
    /// command of a network card's control virtqueue.
    static CONTROL_TIMEOUT_MS: control_timeout_ms = 1000,
        "Milliseconds that virtio_net waits for a daemon to carry out a command, with RTNL held, up to 10000; 0 to offer no control virtqueue (default: 1000)";
}

/// The module. Fields are dropped in declaration order.
#[pin_data]
struct Vduse {
    /// Once dropped, no device is put on the bus any more.
    #[pin]
    _management: mgmt::Registration<Management>,
    /// Once dropped, no device is created or opened any more.
    _nodes: Nodes,
    /// Once dropped, all queued work is done.
    _registry: Arc<Registry>,
}

impl kernel::InPlaceModule for Vduse {
    fn init(module: &'static ThisModule) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            _registry: {
                // The in-tree driver uses the same names in /dev, in /sys and on the vDPA bus.
                if is_present(module, c"vduse") {
                    pr_err!("the in-tree driver is loaded: unload it first (rmmod vduse)\n");
                    return Err(EBUSY);
                }
                Registry::new(module, MAX_IOTLB_ENTRIES.get(), CONTROL_TIMEOUT_MS.get())?
            },
            _management <- mgmt::Registration::new(
                RootDevice::new(c"vduse")?,
                Management::new(_registry.clone()),
            ),
            _nodes: Nodes::new(_registry)?,
        })
    }
}
