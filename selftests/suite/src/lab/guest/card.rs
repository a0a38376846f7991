// SPDX-License-Identifier: GPL-2.0

//! A network card for a guest, connected to a TAP interface of this machine.

use std::process::{Child, Command, Stdio};
use std::sync::mpsc::Receiver;
use std::sync::Arc;
use std::time::Duration;

use vduse::net::{Event, Net, Settings, Shape, Tap, What};
use vduse::Device;

use crate::lab::assert::limit::Limit;
use crate::lab::daemon::serving::Serving;
use crate::lab::device::bus::{self, OnBus};
use crate::lab::device::test_device::TestDevice;
use crate::lab::driver::namespace::ip;
use crate::lab::driver::net::Observed;

/// A network interface of this machine, deleted on drop.
#[derive(Debug)]
pub struct Interface {
    name: String,
}

impl Interface {
    /// Creates a TAP interface with this number of queue pairs and brings it up.
    #[track_caller]
    pub fn tap(name: &str, pairs: u16) -> Self {
        crate::lab::kernel::modules::tool("modprobe", &["tun"]).expect("loading tun");
        let several = if pairs > 1 { "multi_queue" } else { "" };
        ip(&format!("tuntap add dev {name} mode tap {several}"));
        Self::up(name)
    }

    /// Creates a bridge and brings it up.
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

    /// Adds an address to the interface.
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

/// A network card that is served and bound to vhost-vdpa.
///
/// The fields are dropped in this order: the driver is removed while the card is still served.
pub struct GuestCard {
    /// The device on the bus.
    pub on_bus: OnBus,
    served: Serving<Net<Tap>>,
    _device: TestDevice,
    events: Receiver<Event>,
    seen: Vec<Event>,
}

impl GuestCard {
    /// Creates a card of version 1 on a TAP interface.
    #[track_caller]
    pub fn new(shape: &Shape, tap: &str) -> Self {
        let ports = Tap::open(tap, shape.pairs).expect("opening the TAP interface");
        let Observed {
            on_bus,
            served,
            device,
            events,
        } = Observed::new(shape, ports);
        Self {
            on_bus,
            served,
            _device: device,
            events,
            seen: Vec::new(),
        }
    }

    /// Returns the card's vhost-vdpa node, for a virtual machine.
    #[track_caller]
    pub fn node(&self) -> String {
        let path = bus::vhost_path(self.on_bus.name()).expect("a node");
        path.display().to_string()
    }

    /// Returns the VDUSE device.
    pub fn device(&self) -> &Arc<Device> {
        self.served.device()
    }

    /// Returns the address space of a virtqueue group.
    pub fn address_space(&self, group: u32) -> u32 {
        self.served.handle().address_space(group)
    }

    /// Returns all events on the card so far.
    pub fn events(&mut self) -> &[Event] {
        self.seen.extend(self.events.try_iter());
        &self.seen
    }

    /// Returns whether this event has occurred.
    pub fn has_seen(&mut self, what: &What) -> bool {
        self.events().iter().any(|event| event.what == *what)
    }

    /// Returns the current settings. At least one event must have occurred.
    #[track_caller]
    pub fn settings(&mut self) -> Settings {
        let last = self.events().last();
        last.expect("something happened").settings.clone()
    }

    /// Waits for an event, unless it has occurred already.
    #[track_caller]
    pub fn wait_for(&mut self, what: &str, limit: Duration, is: impl Fn(&Event) -> bool) {
        let mut running = Limit::new(limit);
        while !self.events().iter().any(&is) {
            let over = running.is_over();
            assert!(!over, "not within {limit:?}: {what}, but {:?}", self.seen);
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// A `ping` process that runs until stopped.
#[derive(Debug)]
pub struct Pinger {
    child: Child,
}

/// Number of pings per second.
const PINGS: f64 = 5.0;

impl Pinger {
    /// Starts to ping an address.
    #[track_caller]
    pub fn start(address: &str) -> Self {
        let interval = (1.0 / PINGS).to_string();
        let child = Command::new("ping")
            .args(["-n", "-i", &interval, "-W", "2", address])
            .stdout(Stdio::piped())
            .spawn()
            .expect("starting ping");
        Self { child }
    }

    /// Stops the process. Returns the times of the answered pings, in seconds since the first ping.
    #[track_caller]
    pub fn stop(mut self) -> Vec<f64> {
        use rustix::process::{kill_process, Pid, Signal};
        kill_process(Pid::from_child(&self.child), Signal::INT).expect("ending ping");
        let mut text = String::new();
        if let Some(mut output) = self.child.stdout.take() {
            std::io::Read::read_to_string(&mut output, &mut text).expect("reading ping's output");
        }
        let number = |line: &str| {
            let (_, rest) = line.split_once("icmp_seq=")?;
            let number: u32 = rest.split(' ').next()?.parse().ok()?;
            line.contains("time=").then(|| f64::from(number) / PINGS)
        };
        text.lines().filter_map(number).collect()
    }
}

impl Drop for Pinger {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
