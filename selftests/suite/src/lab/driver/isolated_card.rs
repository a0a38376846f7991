// SPDX-License-Identifier: GPL-2.0

//! A network card that is bound to vhost-vdpa and reports its events to the test.

use std::sync::mpsc::{self, Receiver};

use vduse::net::{Event, Groups, Loopback, Net, Port, Shape, What};

use crate::lab::assert::timing::received;
use crate::lab::daemon::card::shape;
use crate::lab::daemon::serving::Serving;
use crate::lab::device::bus::{Driver, OnBus};
use crate::lab::device::test_device::TestDevice;
use crate::lab::driver::vhost::{self, Vhost};

/// A card with API version 1 that a thread serves and that is bound to vhost-vdpa.
///
/// Code that moves the fields out must drop them in declaration order.
#[allow(missing_debug_implementations)]
pub struct Observed<P: Port> {
    /// The device on the bus.
    pub on_bus: OnBus,
    /// The thread that serves the card.
    pub served: Serving<Net<P>>,
    /// The created device.
    pub device: TestDevice,
    /// The events that the card reports.
    pub events: Receiver<Event>,
}

impl<P: Port + Send + 'static> Observed<P> {
    /// Creates a card with `ports` as its ports.
    #[track_caller]
    pub fn new(shape: &Shape, ports: Vec<P>) -> Self {
        shape.create().expect("creating the card");
        let device = TestDevice::adopt(&shape.name);
        let (sender, events) = mpsc::channel();
        let card = Net::new(shape.mac, ports)
            .expect("a card")
            .observed_by(move |event| drop(sender.send(event)));
        let server = shape.server(device.open_nonblocking(), card);
        let served = Serving::run(server.expect("serving the card"));
        let on_bus = OnBus::add(device.name()).expect("adding the card");
        on_bus.bind(Driver::Vhost).expect("binding the card");
        Self {
            on_bus,
            served,
            device,
            events,
        }
    }
}

/// A card with loopback ports that is bound to vhost-vdpa. Its control queue is in a group of its
/// own. The fields are dropped in declaration order.
pub struct IsolatedCard {
    _on_bus: OnBus,
    /// The thread that serves the card.
    pub served: Serving<Net<Loopback>>,
    device: TestDevice,
    events: Receiver<Event>,
}

impl IsolatedCard {
    /// Creates a card with `pairs` queue pairs.
    #[track_caller]
    pub fn new(pairs: u16) -> Self {
        let mut shape = shape(pairs);
        shape.control = true;
        shape.groups = Groups::Isolated;
        let ports = (0..pairs).map(|_| Loopback::new().expect("a port"));
        let Observed {
            on_bus,
            served,
            device,
            events,
        } = Observed::new(&shape, ports.collect());
        let card = Self {
            _on_bus: on_bus,
            served,
            device,
            events,
        };
        card.forget();
        card
    }

    /// Opens the card through vhost-vdpa, ready for mapping memory.
    #[track_caller]
    pub fn vhost(&self) -> Vhost {
        vhost::open(&self.device)
    }

    /// Waits for the next event.
    #[track_caller]
    pub fn next(&self) -> Event {
        received("something happens", &self.events)
    }

    /// Waits for the event `what`. Discards the events before it. Returns the event.
    #[track_caller]
    pub fn until(&self, what: &What) -> Event {
        loop {
            let event = self.next();
            if event.what == *what {
                return event;
            }
        }
    }

    /// Asserts that no event is pending.
    #[track_caller]
    pub fn is_quiet(&self) {
        assert_eq!(self.events.try_recv().ok(), None);
    }

    /// Discards the pending events.
    pub fn forget(&self) {
        self.events.try_iter().for_each(drop);
    }
}
