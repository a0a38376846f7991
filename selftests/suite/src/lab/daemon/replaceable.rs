// SPDX-License-Identifier: GPL-2.0

//! A daemon that the test replaces when its device breaks.

use std::io;
use std::sync::Arc;

use rustix::io::Errno;
use vduse::request::Kind;
use vduse::Device;
use vduse_uapi::{extension, F_QUEUE_READY, F_SUSPEND};

use crate::lab::daemon::answered::agree;
use crate::lab::daemon::regions::first_byte;
use crate::lab::daemon::responder::Responder;
use crate::lab::device::bus::{Driver, OnBus};
use crate::lab::device::negotiation::{self, Negotiation};
use crate::lab::device::spaces;
use crate::lab::device::test_device::{disk_config, TestDevice};
use crate::lab::driver::vhost::{self, Vhost};

/// A device that is not on the bus yet, and a daemon that answers all requests with success.
pub struct ReplaceableDaemon {
    /// The daemon: the thread that answers requests, and the open device. `None` if there is no
    /// daemon.
    pub running: Option<(Responder, Arc<Device>)>,
    /// The created device.
    pub device: TestDevice,
}

impl ReplaceableDaemon {
    /// Creates a device with API version 0.
    #[track_caller]
    pub fn disk() -> Self {
        Self::new(TestDevice::disk(), &[0])
    }

    /// Creates a device with API version 1. Element `i` of `queues` is the group of virtqueue `i`.
    #[track_caller]
    pub fn of_groups(queues: &[u32], groups: u32, spaces: u32) -> Self {
        let config = spaces::config(queues.len() as u16, groups, spaces);
        Self::new(spaces::create(&config).expect("creating"), queues)
    }

    /// Creates a device with API version 0 that can be suspended and resumed. Before a virtqueue of
    /// the device becomes ready, the kernel sends a request to the daemon.
    #[track_caller]
    pub fn negotiated() -> Self {
        let negotiation = Negotiation {
            version: 0,
            features: F_QUEUE_READY | F_SUSPEND,
            extensions: extension::F_RESUME,
        };
        let device = negotiation::create(&disk_config(), negotiation).expect("creating");
        Self::new(device, &[0])
    }

    #[track_caller]
    fn new(device: TestDevice, queues: &[u32]) -> Self {
        let mut daemon = Self {
            running: None,
            device,
        };
        daemon.begin();
        for (index, &group) in (0..).zip(queues) {
            spaces::set_up(daemon.file(), index, group).expect("setting a queue up");
        }
        daemon
    }

    #[track_caller]
    fn begin(&mut self) {
        let file = Arc::new(self.device.open_nonblocking());
        self.running = Some((Responder::new(&file, agree), file));
    }

    /// Returns the daemon's open device.
    pub fn file(&self) -> &Device {
        &self.running.as_ref().expect("a daemon").1
    }

    /// Returns the device's name.
    pub fn name(&self) -> &str {
        self.device.name()
    }

    /// Starts another daemon if the device is broken. A device breaks when the kernel has no memory
    /// for a request to the daemon. The new daemon opens the device again, which makes the device
    /// usable again.
    #[track_caller]
    pub fn replace_if_broken(&mut self) {
        if let Err(error) = self.file().features() {
            assert_eq!(Errno::from_io_error(&error), Some(Errno::PERM));
            self.running = None;
            self.begin();
        }
    }

    /// Returns the kinds of the requests that the daemon has received since the last call of this
    /// function.
    pub fn take_kinds(&self) -> Vec<Kind> {
        self.running.as_ref().expect("a daemon").0.take_kinds()
    }
}

/// A device that is bound to vhost-vdpa and whose daemon can be replaced.
pub struct Driven {
    /// The open vhost-vdpa device.
    pub vhost: Vhost,
    _on_bus: OnBus,
    /// The device's daemon.
    pub daemon: ReplaceableDaemon,
}

impl Driven {
    /// Creates a device with API version 1, one virtqueue and `spaces` address spaces.
    #[track_caller]
    pub fn new(spaces: u32) -> Self {
        Self::of(ReplaceableDaemon::of_groups(&[0], 1, spaces))
    }

    /// Puts the daemon's device on the bus, binds it to vhost-vdpa, and opens the vhost-vdpa
    /// device.
    #[track_caller]
    pub fn of(daemon: ReplaceableDaemon) -> Self {
        let on_bus = OnBus::add(daemon.name()).expect("adding");
        on_bus.bind(Driver::Vhost).expect("binding");
        Self {
            vhost: vhost::open(&daemon.device),
            _on_bus: on_bus,
            daemon,
        }
    }

    /// Starts another daemon if the device is broken. The new daemon opens the device again, which
    /// makes the device usable again.
    ///
    /// This function returns only once the new daemon's thread answers requests. If a test mapped
    /// memory before that, the call would hang: while vhost-vdpa waits for the daemon's answer,
    /// vhost-vdpa holds this process's mmap lock, so the process cannot start a thread.
    #[track_caller]
    pub fn replace_if_broken(&mut self) {
        self.daemon.replace_if_broken();
        self.vhost.queue_base(0).expect("an answer");
    }

    /// Returns the byte that the daemon sees at `iova` of address space 1.
    pub fn byte(&self, iova: u64) -> io::Result<u8> {
        first_byte(self.daemon.file(), 1, iova)
    }
}
