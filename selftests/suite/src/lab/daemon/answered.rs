// SPDX-License-Identifier: GPL-2.0

//! A device whose requests are answered, but whose virtqueues are not served.

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

/// A device on the bus whose requests are answered, but whose virtqueues are not served. The fields
/// are dropped in this order.
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

/// Answers "ok" to every request.
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
    /// Puts a device on the bus, whose queues are in these groups, and binds the device to
    /// vhost-vdpa.
    #[track_caller]
    pub fn new(queues: &[u32], groups: u32, spaces: u32) -> Self {
        Self::with(queues, groups, spaces, agree)
    }

    /// Variant of [`new`](Self::new) with other answers.
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

    /// Variant of [`new`](Self::new) with a device of version 0.
    #[track_caller]
    pub fn version_0(queues: u16) -> Self {
        let device = TestDevice::new(&blk::device_config(&unique_name(), 1 << 20, queues));
        Self::start(device, &vec![0; queues.into()], agree)
    }

    /// Puts a device on the bus whose creator has negotiated, and binds the device to vhost-vdpa.
    /// All queues are in group 0.
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

    /// Puts a device on the bus, whose queues are in these groups, and binds the device to
    /// vhost-vdpa.
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

    /// Ends the daemon. Returns what is left, without a daemon.
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

    /// Opens the device as a driver that is about to map memory.
    #[track_caller]
    pub fn vhost(&self) -> Vhost {
        open(&self.device)
    }
}
