// SPDX-License-Identifier: GPL-2.0

//! Network interfaces of this machine that guests use.

use crate::lab::driver::namespace::ip;

/// A network interface of this machine, deleted on drop.
#[derive(Debug)]
pub struct Interface {
    name: String,
}

impl Interface {
    /// Creates a TAP interface with `pairs` queue pairs, and brings the interface up.
    #[track_caller]
    pub fn tap(name: &str, pairs: u16) -> Self {
        crate::lab::kernel::modules::tool("modprobe", &["tun"]).expect("loading tun");
        let several = if pairs > 1 { "multi_queue" } else { "" };
        ip(&format!("tuntap add dev {name} mode tap {several}"));
        Self::up(name)
    }

    /// Creates a bridge, and brings the bridge up.
    #[track_caller]
    pub fn bridge(name: &str) -> Self {
        crate::lab::kernel::modules::tool("modprobe", &["bridge"]).expect("loading bridge");
        ip(&format!("link add {name} type bridge"));
        Self::up(name)
    }

    #[track_caller]
    fn up(name: &str) -> Self {
        let interface = Self {
            name: name.to_owned(),
        };
        ip(&format!("link set {name} up"));
        interface
    }

    /// Adds an IP address to the interface.
    #[track_caller]
    pub fn add_address(&self, address: &str) {
        ip(&format!("address add {address}/24 dev {}", self.name));
    }

    /// Attaches the interface to a bridge.
    #[track_caller]
    pub fn join(&self, bridge: &Self) {
        ip(&format!("link set {} master {}", self.name, bridge.name));
    }
}

impl Drop for Interface {
    fn drop(&mut self) {
        let _ = crate::lab::kernel::modules::tool("ip", &["link", "delete", &self.name]);
    }
}
