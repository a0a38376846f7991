// SPDX-License-Identifier: GPL-2.0

//! A device whose requests wait for the test to answer them.

use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::event::{poll, PollFd, PollFlags, Timespec};
use vduse::request::{Answer, Kind};
use vduse::Device;

use crate::lab::assert::timing::soon;
use crate::lab::assert::waiting::Waiting;
use crate::lab::daemon::responder::Responder;
use crate::lab::device::bus::{self, Driver, OnBus};
use crate::lab::device::test_device::TestDevice;
use crate::lab::driver::vhost::Vhost;
use crate::lab::kernel::sysfs;

/// A device bound to vhost-vdpa, without a daemon that answers.
///
/// The fields are dropped in this order.
pub struct Unanswered {
    /// The device on the bus.
    pub on_bus: OnBus,
    /// The daemon's open device, if there is a daemon.
    pub file: Option<Arc<Device>>,
    /// The created device.
    pub device: TestDevice,
}

impl Unanswered {
    /// Creates a device and binds it.
    #[track_caller]
    pub fn new() -> Self {
        let device = TestDevice::disk();
        let file = Arc::new(device.open_ready(1));
        let on_bus = OnBus::add(device.name()).expect("adding");
        on_bus.bind(Driver::Vhost).expect("binding to vhost-vdpa");
        Self {
            on_bus,
            file: Some(file),
            device,
        }
    }

    /// Returns the daemon's open device.
    pub fn file(&self) -> &Arc<Device> {
        self.file.as_ref().expect("an open device")
    }

    /// Closes the device and opens it again.
    #[track_caller]
    pub fn reopen(&mut self) {
        self.file = None;
        self.file = Some(Arc::new(self.device.open_nonblocking()));
    }

    /// Returns the path of the vhost-vdpa node.
    pub fn path(&self) -> std::path::PathBuf {
        bus::vhost_path(self.device.name()).expect("a vhost-vdpa device")
    }

    /// Opens the driver side in a thread, as opening waits for an answer.
    pub fn open_vhost(&self) -> Waiting<Vhost> {
        let path = self.path();
        Waiting::new(move || Vhost::open(&path))
    }

    /// Opens the driver side, and answers all requests meanwhile.
    #[track_caller]
    pub fn answered_vhost(&self) -> Vhost {
        let _responder = Responder::ok(self.file());
        Vhost::open(&self.path()).expect("opening vhost-vdpa")
    }

    /// Does the same as [`answered_vhost`](Self::answered_vhost), and keeps answering.
    #[track_caller]
    pub fn answered_vhost_kept(&self) -> (Vhost, Responder) {
        let responder = Responder::ok(self.file());
        let vhost = Vhost::open(&self.path()).expect("opening vhost-vdpa");
        (vhost, responder)
    }

    /// Sets the time that the driver waits for an answer.
    pub fn set_timeout(&self, seconds: &str) {
        let path = sysfs::attribute(self.on_bus.name(), "msg_timeout");
        sysfs::write(&path, seconds).expect("setting msg_timeout");
    }

    /// Waits for a request that can be read, and reads it.
    #[track_caller]
    pub fn request(&self) -> vduse::request::Request {
        soon("a request", || self.readable().contains(PollFlags::IN));
        self.file().read_request().expect("reading a request")
    }

    /// Returns the events that the daemon's device polls now.
    pub fn readable(&self) -> PollFlags {
        events(self.file())
    }

    /// Waits for a request, answers it, and returns its kind.
    #[track_caller]
    pub fn answer(&self, answer: Answer) -> Kind {
        let request = self.request();
        self.file().answer(&request, answer).expect("answering");
        request.kind
    }
}

/// Returns the events that a device polls now.
pub fn events(file: &Device) -> PollFlags {
    let all = PollFlags::IN | PollFlags::OUT | PollFlags::ERR;
    let mut fds = [PollFd::from_borrowed_fd(file.as_fd(), all)];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    poll(&mut fds, Some(&now)).expect("polling");
    fds[0].revents()
}
