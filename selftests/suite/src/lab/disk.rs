// SPDX-License-Identifier: GPL-2.0

//! A device, above all a disk, served by a thread of the test, and a disk bound to virtio-vdpa.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use vduse::blk::{self, Disk};
use vduse::server::{Backend, Handle, Server};
use vduse::Device;

use crate::lab::block::Block;
use crate::lab::bus::{self, Driver, OnBus};
use crate::lab::device::{unique_name, TestDevice};
use crate::lab::expect::soon;
use crate::lab::sysfs;

/// The thread of a device, a disk if not said otherwise.
#[derive(Debug)]
pub struct Served<B = Disk> {
    handle: Option<Handle>,
    thread: Option<JoinHandle<(io::Result<()>, B)>>,
}

impl Served {
    /// Serves a device as a disk in a file.
    pub fn start(device: Device, queues: u16, file: Arc<File>) -> io::Result<Self> {
        let sizes = vec![256; queues.into()];
        Ok(Self::run(Server::new(device, &sizes, Disk::new(file))?))
    }
}

impl<B: Backend + Send + 'static> Served<B> {
    /// Runs a device's server.
    pub fn run(mut server: Server<B>) -> Self {
        let handle = server.handle();
        let thread = std::thread::spawn(move || {
            let result = server.run();
            (result, server.into_backend())
        });
        Self {
            handle: Some(handle),
            thread: Some(thread),
        }
    }
}

impl<B> Served<B> {
    /// The device.
    pub fn device(&self) -> &Arc<Device> {
        self.handle().device()
    }

    /// The server's handle.
    pub fn handle(&self) -> &Handle {
        self.handle.as_ref().expect("a running server")
    }

    /// Ends the server, closes the device, and gives back what was served.
    #[track_caller]
    pub fn stop(mut self) -> B {
        let (result, backend) = self.end().expect("a running server");
        result.expect("serving the device");
        backend
    }

    fn end(&mut self) -> Option<(io::Result<()>, B)> {
        if let Some(handle) = self.handle.take() {
            handle.stop();
        }
        self.thread.take()?.join().ok()
    }
}

impl<B> Drop for Served<B> {
    fn drop(&mut self) {
        self.end();
    }
}

/// What a disk is to be.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Its size in bytes.
    pub bytes: u64,
    /// How many queues it has.
    pub queues: u16,
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
    queues: u16,
}

impl LiveDisk {
    /// Creates a disk, serves it, and binds it to virtio-vdpa.
    #[track_caller]
    pub fn new(shape: Shape) -> Self {
        let mut config = blk::device_config(&unique_name(), shape.bytes, shape.queues);
        config.features &= !shape.without;
        let device = TestDevice::new(&config);
        if shape.bounce != 0 {
            let path = sysfs::attribute(device.name(), "bounce_size");
            sysfs::write(&path, &shape.bounce.to_string()).expect("setting bounce_size");
        }
        let file = memory_file(shape.bytes);
        let served = Served::start(device.open_nonblocking(), shape.queues, file.clone())
            .expect("serving the disk");
        let on_bus = OnBus::add(device.name()).expect("adding the disk");
        on_bus.bind(Driver::Virtio).expect("binding the disk");
        Self {
            on_bus,
            served,
            device,
            file,
            queues: shape.queues,
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
    pub fn restart(mut self, between: impl FnOnce()) -> Self {
        let (result, _) = self.served.end().expect("a running server");
        result.expect("serving the disk");
        between();
        let device = self.device.open_nonblocking();
        self.served =
            Served::start(device, self.queues, self.file.clone()).expect("serving the disk");
        self
    }
}

/// A file in memory.
#[track_caller]
pub fn memory_file(bytes: u64) -> Arc<File> {
    let disk = Disk::in_memory(bytes).expect("a file in memory");
    disk.file().clone()
}
