// SPDX-License-Identifier: GPL-2.0

//! A device, above all a disk, served by a thread of the test, and a disk bound to virtio-vdpa.

use std::fs::File;
use std::io;
use std::sync::Arc;

use vduse::blk::{self, Disk};
use vduse::server::Server;
use vduse::Device;

use crate::lab::block::Block;
use crate::lab::bus::{self, Driver, OnBus};
use crate::lab::device::{unique_name, TestDevice};
use crate::lab::expect::soon;
use crate::lab::serving::Serving;

/// The thread of a device, a disk if not said otherwise.
pub type Served<B = Disk> = Serving<B>;

impl Served {
    /// Serves a device as a disk in a file, with queues of 256 descriptors.
    pub fn start(device: Device, queues: u16, file: Arc<File>) -> io::Result<Self> {
        Self::start_sized(device, &vec![256; queues.into()], file)
    }

    /// The same, with queues of these sizes.
    pub fn start_sized(device: Device, sizes: &[u16], file: Arc<File>) -> io::Result<Self> {
        Ok(Self::run(Server::new(device, sizes, Disk::new(file))?))
    }
}

/// What a disk is to be.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Its size in bytes.
    pub bytes: u64,
    /// How many queues it has.
    pub queues: u16,
    /// How many descriptors each has room for.
    pub queue_size: u16,
    /// The most segments that a request can have, as the driver is told.
    pub seg_max: u32,
    /// How many address spaces share the bounce area; 0 is version 0 of the API.
    pub spaces: u32,
    /// Features it does not offer.
    pub without: u64,
    /// The size of the bounce area in bytes; 0 is the default.
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
            bounce: 0,
        }
    }
}

/// A disk that the kernel's virtio_blk has.
///
/// The fields are dropped in this order: the driver goes while the device still answers.
#[derive(Debug)]
pub struct LiveDisk {
    /// On the bus.
    pub on_bus: OnBus,
    /// Served.
    pub served: Served,
    /// Created.
    pub device: TestDevice,
    /// The disk's data.
    pub file: Arc<File>,
    sizes: Vec<u16>,
}

impl LiveDisk {
    /// Creates a disk, serves it, and binds it to virtio-vdpa.
    #[track_caller]
    pub fn new(shape: Shape) -> Self {
        let mut config = blk::device_config(&unique_name(), shape.bytes, shape.queues);
        config.features &= !shape.without;
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

    /// The device's name.
    pub fn name(&self) -> &str {
        self.device.name()
    }

    /// The kernel's name of the disk.
    #[track_caller]
    pub fn disk(&self) -> String {
        soon("the disk appears", || bus::disk_name(self.name()).is_some());
        bus::disk_name(self.name()).expect("a disk")
    }

    /// The disk, as the kernel has it.
    #[track_caller]
    pub fn block(&self) -> Block {
        Block::open(&self.disk()).expect("opening the disk")
    }

    /// The VDUSE device.
    pub fn vduse(&self) -> &Arc<Device> {
        self.served.device()
    }

    /// Ends the disk's thread, runs something, and starts another thread.
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

/// A file in memory.
#[track_caller]
pub fn memory_file(bytes: u64) -> Arc<File> {
    let disk = Disk::in_memory(bytes).expect("a file in memory");
    disk.file().clone()
}
