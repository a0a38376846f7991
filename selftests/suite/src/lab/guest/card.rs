// SPDX-License-Identifier: GPL-2.0

//! A network card for a guest. The card forwards frames to and from a TAP interface of this
//! machine.

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

/// A network card that a thread serves and that is bound to vhost-vdpa.
///
/// The fields are dropped in declaration order, so that the thread still serves the card while the
/// driver is removed.
pub struct GuestCard {
    /// The device on the bus.
    pub on_bus: OnBus,
    served: Serving<Net<Tap>>,
    _device: TestDevice,
    events: Receiver<Event>,
    seen: Vec<Event>,
}

impl GuestCard {
    /// Creates a card with API version 1 on the TAP interface `tap`.
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

    /// Returns the path of the card's vhost-vdpa device, which QEMU opens.
    #[track_caller]
    pub fn node(&self) -> String {
        let path = bus::vhost_path(self.on_bus.name()).expect("a node");
        path.display().to_string()
    }

    /// Returns the daemon's open device.
    pub fn device(&self) -> &Arc<Device> {
        self.served.device()
    }

    /// Returns the address space of a virtqueue group.
    pub fn address_space(&self, group: u32) -> u32 {
        self.served.handle().address_space(group)
    }

    /// Returns all events that the card has reported so far.
    pub fn events(&mut self) -> &[Event] {
        self.seen.extend(self.events.try_iter());
        &self.seen
    }

    /// Returns whether the card has reported the event `what`.
    pub fn has_seen(&mut self, what: &What) -> bool {
        self.events().iter().any(|event| event.what == *what)
    }

    /// Returns the card's current settings. Panics if the card has not reported an event yet.
    #[track_caller]
    pub fn settings(&mut self) -> Settings {
        let last = self.events().last();
        last.expect("something happened").settings.clone()
    }

    /// Waits until the card has reported an event for which `is` returns true. Earlier events count
    /// as well.
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
