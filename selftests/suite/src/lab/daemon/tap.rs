// SPDX-License-Identifier: GPL-2.0

//! A TAP interface, to which a daemon connects a network card.

use crate::lab::device::test_device::unique_name;
use crate::lab::driver::namespace::ip;
use crate::lab::kernel::modules;

/// IP address of the TAP interface.
pub const HERE: &str = "10.99.0.1";

/// A persistent TAP interface that has an IP address and is up. It is deleted on drop.
#[derive(Debug)]
pub struct TapInterface {
    name: String,
}

impl TapInterface {
    /// Creates an interface with `queues` queues. The address is [`HERE`].
    #[track_caller]
    pub fn new(queues: u16) -> Self {
        modules::tool("modprobe", &["tun"]).expect("loading tun");
        let name = unique_name();
        let several = if queues > 1 { "multi_queue" } else { "" };
        ip(&format!("tuntap add dev {name} mode tap {several}"));
        ip(&format!("address add {HERE}/24 dev {name}"));
        ip(&format!("link set {name} up"));
        Self { name }
    }

    /// Returns the interface's name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for TapInterface {
    fn drop(&mut self) {
        let _ = modules::tool("ip", &["link", "delete", &self.name]);
    }
}
