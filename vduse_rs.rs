// SPDX-License-Identifier: GPL-2.0

//! VDUSE: vDPA devices in userspace.
//!
//! A daemon creates a device on `/dev/vduse/control` and serves it on `/dev/vduse/NAME`. The kernel
//! puts the device on the vDPA bus. There, a virtio driver of the kernel drives the device, or a
//! virtual machine does so through vhost.
//!
//! - `driver` implements the rules of VDUSE, without `unsafe` code and without C types.
//! - `bindings` provides safe Rust interfaces to the kernel facilities that `driver` needs. It has
//!   no code that is specific to VDUSE.
//! - `uapi` defines the ABI.

mod bindings;
mod driver;
mod uapi;

use bindings::{
    device::RootDevice,
    module::{
        is_called,
        is_present,
        module_version, //
    },
    param::module_param_int,
    vdpa::mgmt, //
};
use driver::{
    idle::GivingBack,
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

module_version!(env!("VDUSE_RS_VERSION"));

module_param_int! {
    /// Maximum number of mappings of one address space.
    static MAX_IOTLB_ENTRIES: max_iotlb_entries = 2048,
        "Maximum number of IOTLB entries of an address space (default: 2048)";
}

module_param_int! {
    /// Maximum time, in milliseconds, that a kernel driver waits for the daemon to carry out a
    /// command of a network card's control virtqueue. With 0, kernel drivers are not offered a
    /// control virtqueue.
    static CONTROL_TIMEOUT_MS: control_timeout_ms = 1000,
        "Milliseconds that virtio_net waits for a daemon to carry out a command, with RTNL held, up to 10000; 0 to offer no control virtqueue (default: 1000)";
}

/// The state of the loaded module. Fields are dropped in declaration order.
#[pin_data]
struct Vduse {
    /// The management device. Once it is dropped, no device can be added to the vDPA bus.
    #[pin]
    _management: mgmt::Registration<Management>,
    /// The device nodes. Once they are dropped, no device can be created or opened.
    _nodes: Nodes,
    /// What gives bounce pages back.
    _giving_back: GivingBack,
    /// The registry of devices. Dropping the registry waits for all queued work.
    _registry: Arc<Registry>,
}

impl kernel::InPlaceModule for Vduse {
    fn init(module: &'static ThisModule) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            _registry: {
                // All VDUSE drivers use the same names in /dev, in /sys and on the vDPA bus, so
                // only one of them can be loaded. The in-tree module is called `vduse`. This module
                // is called `vduse` in an installed build, and `vduse_rs` in a build that is not
                // installed.
                let other = if is_called(module, c"vduse") {
                    c"vduse_rs"
                } else {
                    c"vduse"
                };
                if is_present(module, other) {
                    pr_err!("the module {0} is loaded: unload it first (rmmod {0})\n", other);
                    return Err(EBUSY);
                }
                Registry::new(module, MAX_IOTLB_ENTRIES.get(), CONTROL_TIMEOUT_MS.get())?
            },
            _management <- mgmt::Registration::new(
                RootDevice::new(c"vduse")?,
                Management::new(_registry.clone()),
            ),
            _giving_back: GivingBack::begin(_registry.clone())?,
            _nodes: Nodes::new(_registry)?,
        })
    }
}
