// SPDX-License-Identifier: GPL-2.0

//! VDUSE: vDPA devices in userspace.
//!
//! A daemon creates a device on `/dev/vduse/control`, serves it on `/dev/vduse/NAME`, and the kernel
//! puts it on the vDPA bus, where a virtio driver of its own, or a virtual machine by way of vhost,
//! drives it.
//!
//! - `driver` has the rules of VDUSE, without `unsafe` and without C.
//! - `bindings` has safe Rust for the kernel facilities that it needs, without VDUSE.
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
    /// The most mappings that one address space can have.
    static MAX_IOTLB_ENTRIES: max_iotlb_entries = 2048,
        "Maximum number of IOTLB entries of an address space (default: 2048)";
}

/// The module. Its fields are dropped in this order.
#[pin_data]
struct Vduse {
    /// Nobody puts a device on the bus any more.
    #[pin]
    _management: mgmt::Registration<Management>,
    /// Nobody makes or opens a device any more.
    _nodes: Nodes,
    /// Whatever was queued is done.
    _registry: Arc<Registry>,
}

impl kernel::InPlaceModule for Vduse {
    fn init(module: &'static ThisModule) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            _registry: {
                // It has the same names in /dev, /sys and on the vDPA bus.
                if is_present(module, c"vduse") {
                    pr_err!("the in-tree driver is loaded: unload it first (rmmod vduse)\n");
                    return Err(EBUSY);
                }
                Registry::new(module, MAX_IOTLB_ENTRIES.get())?
            },
            _management <- mgmt::Registration::new(
                RootDevice::new(c"vduse")?,
                Management::new(_registry.clone()),
            ),
            _nodes: Nodes::new(_registry)?,
        })
    }
}
