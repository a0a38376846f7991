// SPDX-License-Identifier: GPL-2.0

//! A disk that virtio_blk drives and a thread of the test serves.

use std::fs::File;
use std::sync::Arc;

use vduse::blk;
use vduse::Device;

use crate::lab::assert::timing::soon;
use crate::lab::daemon::disk::{memory_file, Served};
use crate::lab::device::bus::{self, Driver, OnBus};
use crate::lab::device::test_device::{unique_name, TestDevice};
use crate::lab::driver::block::Block;

/// Configuration of a disk.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Size in bytes.
    pub bytes: u64,
    /// Number of virtqueues.
    pub queues: u16,
    /// Maximum number of descriptors of each virtqueue.
    pub queue_size: u16,
    /// Maximum number of segments in a request, which the disk reports to the driver.
    pub seg_max: u32,
    /// Number of address spaces, which share the bounce area. If 0, the device has API version 0.
    pub spaces: u32,
    /// Features that the disk does not offer.
    pub without: u64,
    /// Features that the disk offers in addition.
    pub with: u64,
    /// Size of the bounce area in bytes. If 0, the size is the default.
    pub bounce: u64,
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            bytes: 4 << 20,
            queues: 1,
            queue_size: 256,
            seg_max: 126,
            spaces: 0,
            without: 0,
            with: 0,
            bounce: 0,
        }
    }
}

/// A disk that virtio_blk drives and a thread of the test serves.
///
/// The fields are dropped in declaration order, so that the thread still serves the device while
/// the driver is removed.
#[derive(Debug)]
pub struct LiveDisk {
    /// The device on the bus.
    pub on_bus: OnBus,
    /// The thread that serves the disk.
    pub served: Served,
    /// The created device.
    pub device: TestDevice,
    /// The file with the disk's data.
    pub file: Arc<File>,
    sizes: Vec<u16>,
}

impl LiveDisk {
    /// Creates a disk, serves it, and binds it to virtio-vdpa.
    #[track_caller]
    pub fn new(shape: Shape) -> Self {
        let mut config = blk::device_config(&unique_name(), shape.bytes, shape.queues);
        config.features &= !shape.without;
        config.features |= shape.with;
        config.space[12..16].copy_from_slice(&shape.seg_max.to_le_bytes());
        let device = TestDevice::with_spaces(config, shape.spaces);
        if shape.bounce != 0 {
            device.set_bounce_size(shape.bounce);
        }
        let file = memory_file(shape.bytes);
        let sizes = vec![shape.queue_size; shape.queues.into()];
        let served = Served::start_sized(device.open_nonblocking(), &sizes, file.clone())
            .expect("serving the disk");
        let on_bus = OnBus::add(device.name()).expect("adding the disk");
        on_bus.bind(Driver::Virtio).expect("binding the disk");
        Self {
            on_bus,
            served,
            device,
            file,
            sizes,
        }
    }

    /// Returns the device's name.
    pub fn name(&self) -> &str {
        self.device.name()
    }

    /// Waits until the disk appears. Returns the disk's name in the kernel.
    #[track_caller]
    pub fn disk(&self) -> String {
        soon("the disk appears", || bus::disk_name(self.name()).is_some());
        bus::disk_name(self.name()).expect("a disk")
    }

    /// Opens the kernel's block device of the disk.
    #[track_caller]
    pub fn block(&self) -> Block {
        Block::open(&self.disk()).expect("opening the disk")
    }

    /// Returns the daemon's open device.
    pub fn vduse(&self) -> &Arc<Device> {
        self.served.device()
    }

    /// Stops the thread that serves the disk, calls `between`, and starts another such thread.
    #[track_caller]
    pub fn restart(self, between: impl FnOnce()) -> Self {
        self.served.stop();
        between();
        let device = self.device.open_nonblocking();
        let served =
            Served::start_sized(device, &self.sizes, self.file.clone()).expect("serving the disk");
        Self { served, ..self }
    }
}
