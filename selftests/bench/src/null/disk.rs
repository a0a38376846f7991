// SPDX-License-Identifier: GPL-2.0

//! A null disk, which reports success for each request without accessing the data.

use std::sync::Arc;

use vduse::virtqueue::Chain;
use vduse::{blk, Control, Device, DeviceConfig};
use vduse_selftests::lab::device::test_device::{unique_name, TestDevice};
use vduse_selftests::lab::kernel::sysfs;

use crate::null::device::{NullDevice, Work};
use crate::null::pause::Paused;
use crate::null::stamps::Stamps;

/// Capacity of a disk in bytes.
pub const CAPACITY: u64 = 1 << 30;

/// The properties of a disk.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Number of virtqueues.
    pub queues: u16,
    /// Number of virtqueue groups. All virtqueues are in group 0.
    pub groups: u32,
    /// Number of address spaces.
    pub spaces: u32,
    /// Size of the bounce area in bytes, shared by all address spaces; 0 selects the default.
    pub bounce: u64,
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            queues: 1,
            groups: 1,
            spaces: 1,
            bounce: 0,
        }
    }
}

impl Shape {
    /// Creates a device with API version 1 and these properties.
    pub fn create(&self) -> TestDevice {
        let mut config: DeviceConfig = blk::device_config(&unique_name(), CAPACITY, self.queues);
        config.groups = self.groups;
        config.address_spaces = self.spaces;
        let control = Control::open_v1().expect("the control device");
        // The server is told of each virtqueue that becomes ready, and need not look for them.
        control.offer_all().expect("the features of VDUSE");
        control.create(&config).expect("creating a device");
        let device = TestDevice::adopt(&config.name);
        if self.bounce != 0 {
            let path = sysfs::attribute(device.name(), "bounce_size");
            sysfs::write(&path, &self.bounce.to_string()).expect("setting bounce_size");
        }
        device
    }
}

/// A null disk that is bound to virtio_blk.
#[derive(Debug)]
pub struct NullDisk(NullDevice);

impl NullDisk {
    /// Creates a disk, serves it, and binds it to virtio_blk.
    pub fn new(shape: Shape) -> Self {
        Self(NullDevice::new(
            shape.create(),
            shape.queues,
            Arc::new(Success),
        ))
    }

    /// Returns the device's name.
    pub fn name(&self) -> &str {
        self.0.device.name()
    }

    /// Returns the time stamps of the last request.
    pub fn stamps(&self) -> &Stamps {
        &self.0.shared.stamps
    }

    /// Stops serving requests until the returned guard is dropped.
    pub fn pause(&self) -> Paused<'_> {
        self.0.shared.pause.begin()
    }

    /// Returns the daemon's open device.
    pub fn device(&self) -> &Device {
        self.0.file()
    }
}

/// The [`Work`] of a null disk: it reports success for each request.
#[derive(Debug)]
struct Success;

impl Work for Success {
    fn serve(&self, _index: u16, chain: &Chain) -> u32 {
        blk::complete(chain, blk::Status::Ok, 0)
    }
}
