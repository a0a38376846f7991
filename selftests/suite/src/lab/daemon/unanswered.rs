// SPDX-License-Identifier: GPL-2.0

//! A device whose requests get an answer only when the test sends one.

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

/// A device bound to vhost-vdpa whose daemon does not answer requests by itself.
///
/// The fields are dropped in declaration order.
pub struct Unanswered {
    /// The device on the bus.
    pub on_bus: OnBus,
    /// The daemon's open device. `None` if there is no daemon.
    pub file: Option<Arc<Device>>,
    /// The created device.
    pub device: TestDevice,
}

impl Unanswered {
    /// Creates a disk with one virtqueue and binds it to vhost-vdpa.
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

    /// Closes the daemon's device and opens it again.
    #[track_caller]
    pub fn reopen(&mut self) {
        self.file = None;
        self.file = Some(Arc::new(self.device.open_nonblocking()));
    }

    /// Returns the path of the vhost-vdpa node.
    pub fn path(&self) -> std::path::PathBuf {
        bus::vhost_path(self.device.name()).expect("a vhost-vdpa device")
    }

    /// Opens the vhost-vdpa device in a thread, because `open` waits for the daemon's answer.
    pub fn open_vhost(&self) -> Waiting<Vhost> {
        let path = self.path();
        Waiting::new(move || Vhost::open(&path))
    }

    /// Opens the vhost-vdpa device. A thread answers all requests until this function returns.
    #[track_caller]
    pub fn answered_vhost(&self) -> Vhost {
        let _responder = Responder::ok(self.file());
        Vhost::open(&self.path()).expect("opening vhost-vdpa")
    }

    /// Variant of [`answered_vhost`](Self::answered_vhost) that keeps the thread running and also
    /// returns it.
    #[track_caller]
    pub fn answered_vhost_kept(&self) -> (Vhost, Responder) {
        let responder = Responder::ok(self.file());
        let vhost = Vhost::open(&self.path()).expect("opening vhost-vdpa");
        (vhost, responder)
    }

    /// Sets `msg_timeout`, the time in seconds for which the kernel waits for the daemon's answer.
    pub fn set_timeout(&self, seconds: &str) {
        let path = sysfs::attribute(self.on_bus.name(), "msg_timeout");
        sysfs::write(&path, seconds).expect("setting msg_timeout");
    }

    /// Waits for the next request, and reads it.
    #[track_caller]
    pub fn request(&self) -> vduse::request::Request {
        soon("a request", || self.readable().contains(PollFlags::IN));
        self.file().read_request().expect("reading a request")
    }

    /// Returns the events that polling the daemon's device reports now.
    pub fn readable(&self) -> PollFlags {
        events(self.file())
    }

    /// Waits for the next request, and sends `answer`. Returns the request's kind.
    #[track_caller]
    pub fn answer(&self, answer: Answer) -> Kind {
        let request = self.request();
        self.file().answer(&request, answer).expect("answering");
        request.kind
    }
}

/// Returns the events that polling a device reports now.
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
