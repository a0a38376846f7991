// SPDX-License-Identifier: GPL-2.0

//! A disk for which the test acts as both the driver and the daemon.

use std::os::fd::AsFd;
use std::sync::Arc;

use vduse::eventfd::EventFd;
use vduse::Device;

use crate::lab::daemon::responder::Responder;
use crate::lab::device::bus::{self, Driver, OnBus};
use crate::lab::device::test_device::TestDevice;
use crate::lab::driver::ring::HandDriver;
use crate::lab::driver::vhost::Vhost;

/// A disk for which the test acts as both the driver, through vhost-vdpa, and the daemon. The
/// fields are dropped in declaration order.
pub struct BareDisk {
    /// The driver, which the test operates.
    pub driver: HandDriver,
    /// The device on the bus.
    pub on_bus: OnBus,
    /// The thread that answers requests.
    pub responder: Responder,
    /// The daemon's open device.
    pub file: Arc<Device>,
    /// The created device.
    pub device: TestDevice,
}

/// IOVA of the virtqueue's memory.
pub const IOVA: u64 = 0x10_0000;

impl BareDisk {
    /// Creates a disk, and prepares its driver up to feature negotiation.
    #[track_caller]
    pub fn new() -> Self {
        let device = TestDevice::disk();
        let file = Arc::new(device.open_ready(1));
        let responder = Responder::ok(&file);
        let on_bus = OnBus::add(device.name()).expect("adding");
        on_bus.bind(Driver::Vhost).expect("binding");
        let driver = HandDriver::prepare(open_vhost(device.name()), IOVA);
        Self {
            driver,
            on_bus,
            responder,
            file,
            device,
        }
    }

    /// Creates a disk, and prepares its driver up to `DRIVER_OK`.
    #[track_caller]
    pub fn started() -> Self {
        let bare = Self::new();
        bare.driver.set_queue_up();
        bare.driver.start();
        bare
    }

    /// On the daemon side, passes a new kick eventfd for virtqueue 0 to the kernel. Returns the
    /// eventfd.
    #[track_caller]
    pub fn kick_fd(&self) -> EventFd {
        let event = EventFd::new().expect("an eventfd");
        self.file.set_kick(0, event.as_fd()).expect("setting it");
        event
    }
}

/// Opens a device that is bound to vhost-vdpa.
#[track_caller]
pub fn open_vhost(name: &str) -> Vhost {
    Vhost::open(&bus::vhost_path(name).expect("a node")).expect("opening vhost-vdpa")
}
