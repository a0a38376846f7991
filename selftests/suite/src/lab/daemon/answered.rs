// SPDX-License-Identifier: GPL-2.0

//! A device whose daemon answers requests but does not serve virtqueues.

use std::sync::Arc;

use vduse::blk;
use vduse::request::{Answer, Kind, Request};
use vduse::Device;

use crate::lab::daemon::responder::Responder;
use crate::lab::device::bus::{Driver, OnBus};
use crate::lab::device::negotiation::{self, Negotiation};
use crate::lab::device::spaces::{config, create, set_up};
use crate::lab::device::test_device::{unique_name, TestDevice};
use crate::lab::driver::vhost::{open, Vhost};

/// A device on the bus whose daemon answers requests but does not serve virtqueues. The fields are
/// dropped in declaration order.
pub struct Answered {
    /// The device on the bus.
    pub on_bus: OnBus,
    /// The thread that answers requests.
    pub responder: Responder,
    /// The daemon's open device.
    pub file: Arc<Device>,
    /// The created device.
    pub device: TestDevice,
}

/// Answers every request with success. The answer to `GetVqState` reports position 0.
pub fn agree(request: &Request) -> Option<Answer> {
    Some(match request.kind {
        Kind::GetVqState { index } => Answer::SplitState {
            index,
            next_avail: 0,
        },
        _ => Answer::Ok,
    })
}

impl Answered {
    /// Creates a device with API version 1, puts it on the bus, and binds it to vhost-vdpa. Element
    /// `i` of `queues` is the group of virtqueue `i`.
    #[track_caller]
    pub fn new(queues: &[u32], groups: u32, spaces: u32) -> Self {
        Self::with(queues, groups, spaces, agree)
    }

    /// Variant of [`new`](Self::new) in which the daemon answers each request with the result of
    /// `answer`.
    #[track_caller]
    pub fn with(
        queues: &[u32],
        groups: u32,
        spaces: u32,
        answer: impl FnMut(&Request) -> Option<Answer> + Send + 'static,
    ) -> Self {
        let device = create(&config(queues.len() as u16, groups, spaces)).expect("creating");
        Self::start(device, queues, answer)
    }

    /// Variant of [`new`](Self::new) that creates a device with API version 0 and `queues`
    /// virtqueues.
    #[track_caller]
    pub fn version_0(queues: u16) -> Self {
        let device = TestDevice::new(&blk::device_config(&unique_name(), 1 << 20, queues));
        Self::start(device, &vec![0; queues.into()], agree)
    }

    /// Creates a device with the values in `negotiation`, puts it on the bus, and binds it to
    /// vhost-vdpa. The daemon answers each request with the result of `answer`. All virtqueues are
    /// in group 0.
    #[track_caller]
    pub fn negotiated(
        negotiation: Negotiation,
        queues: u16,
        answer: impl FnMut(&Request) -> Option<Answer> + Send + 'static,
    ) -> Self {
        let config = blk::device_config(&unique_name(), 1 << 20, queues);
        let device = negotiation::create(&config, negotiation).expect("creating a device");
        Self::start(device, &vec![0; queues.into()], answer)
    }

    /// Starts a daemon for an existing device, puts the device on the bus, and binds it to
    /// vhost-vdpa. Element `i` of `queues` is the group of virtqueue `i`.
    #[track_caller]
    pub fn start(
        device: TestDevice,
        queues: &[u32],
        answer: impl FnMut(&Request) -> Option<Answer> + Send + 'static,
    ) -> Self {
        let file = Arc::new(device.open_nonblocking());
        for (index, &group) in (0..).zip(queues) {
            set_up(&file, index, group).expect("setting a queue up");
        }
        let responder = Responder::new(&file, answer);
        let on_bus = OnBus::add(device.name()).expect("adding");
        on_bus.bind(Driver::Vhost).expect("binding");
        Self {
            on_bus,
            responder,
            file,
            device,
        }
    }

    /// Ends the daemon. Returns the device, which stays on the bus without a daemon.
    pub fn end_daemon(self) -> (OnBus, TestDevice) {
        let Self {
            on_bus,
            responder,
            file,
            device,
        } = self;
        drop(responder);
        drop(file);
        (on_bus, device)
    }

    /// Opens the device through vhost-vdpa, ready for mapping memory.
    #[track_caller]
    pub fn vhost(&self) -> Vhost {
        open(&self.device)
    }
}
