// SPDX-License-Identifier: GPL-2.0

//! A network card for a guest, connected to a TAP interface of this machine.

use std::sync::mpsc::Receiver;
use std::sync::Arc;
use std::time::Duration;

use vduse::net::{Event, Net, Settings, Shape, Tap, What};
use vduse::Device;

use crate::lab::assert::limit::Limit;
use crate::lab::daemon::serving::Serving;
use crate::lab::device::bus::{self, OnBus};
use crate::lab::device::test_device::TestDevice;
use crate::lab::driver::isolated_card::Observed;

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
