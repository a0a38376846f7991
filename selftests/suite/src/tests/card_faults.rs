// SPDX-License-Identifier: GPL-2.0

//! Injected allocation failures while a network card with a control queue is created, or bound to
//! virtio_net.

use std::sync::Arc;

use vduse::{Device, DeviceConfig};

use crate::lab::assert::fault_paths::{several, FEW, NO_MEMORY, UNTOLD};
use crate::lab::assert::timing::soon;
use crate::lab::daemon::control_ring::{Controller, OK};
use crate::lab::daemon::responder::Responder;
use crate::lab::device::bus::{self, Driver, OnBus};
use crate::lab::device::test_device::{net_config, TestDevice};
use crate::lab::device::virtio::feature;
use crate::lab::kernel::fault_injection::{Below, Injection};
use crate::lab::kernel::modules::tool;

tests![
    creating_a_card_fails_cleanly => 120,
    binding_a_card_fails_cleanly => 240,
];

/// The index of the control queue.
const INDEX: u32 = 2;

fn config() -> DeviceConfig {
    let mut config = net_config();
    config.features |= feature::NET_CTRL_VQ | feature::NET_CTRL_RX | feature::NET_CTRL_MAC_ADDR;
    config.queues = 3;
    config
}

/// A network card whose daemon accepts every command of the control queue. The fields are dropped
/// in declaration order.
struct Card {
    daemon: Option<(Controller, Responder, Arc<Device>)>,
    device: TestDevice,
}

impl Card {
    #[track_caller]
    fn new() -> Self {
        let device = TestDevice::new(&config());
        drop(device.open_ready(3));
        let mut card = Self {
            daemon: None,
            device,
        };
        card.begin();
        card
    }

    #[track_caller]
    fn begin(&mut self) {
        let file = Arc::new(self.device.open_nonblocking());
        let responder = Responder::ok(&file);
        let controller = Controller::answering(&file, INDEX, |_| Some(OK));
        self.daemon = Some((controller, responder, file));
    }

    /// Replaces the daemon with a new one, which processes the control queue from the queue's first
    /// command on.
    #[track_caller]
    fn replace(&mut self) {
        self.daemon = None;
        self.begin();
    }

    /// Sets the card's MAC address, which makes virtio_net send a command. The address ends in
    /// `last` modulo 256.
    fn set_address(&self, last: u32) -> Result<(), String> {
        let interface = bus::interface(self.device.name()).ok_or("no interface")?;
        let address = format!("02:00:00:00:77:{:02x}", last % 256);
        tool(
            "ip",
            &["link", "set", "dev", &interface, "address", &address],
        )
    }
}

fn creating_a_card_fails_cleanly() {
    let injection = Injection::of_allocations(Below::Driver);
    several(FEW, ["creating a card"], || {
        let config = config();
        let create = || TestDevice::try_new(&config);
        [injection.survived("creating a card", NO_MEMORY, create, drop)]
    });
}

fn binding_a_card_fails_cleanly() {
    tool("modprobe", &["virtio_net"]).expect("loading virtio_net");
    let injection = Injection::of_allocations(Below::Driver);
    several(FEW, ["binding a card"], || {
        let mut card = Card::new();
        let on_bus = OnBus::add(card.device.name()).expect("adding");
        let bind = || on_bus.bind(Driver::Virtio);
        let unbind = || on_bus.unbind(Driver::Virtio).expect("unbinding");
        let tally = injection.each("binding a card", |fault| {
            // Binding to virtio-vdpa may succeed even if virtio_net's probe fails. The virtio
            // device then has no driver.
            let bound = fault.hit(UNTOLD, bind);
            if bound.is_some() {
                unbind();
            }
            card.replace();
            bind().expect("binding");
            soon("a command is carried out", || {
                card.set_address(1 + fault.number()).is_ok()
            });
            unbind();
            card.replace();
        });
        drop(on_bus);
        [tally]
    });
}
