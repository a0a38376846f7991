// SPDX-License-Identifier: GPL-2.0

//! Disks that a thread of the test serves.

use std::fs::File;
use std::io;
use std::sync::Arc;

use vduse::blk::Disk;
use vduse::server::Server;
use vduse::Device;

use crate::lab::daemon::serving::Serving;

/// A thread that serves a device, by default a disk.
pub type Served<B = Disk> = Serving<B>;

impl Served {
    /// Starts a thread that serves a device as a disk with the contents of `file`. Each virtqueue
    /// has up to 256 descriptors.
    pub fn start(device: Device, queues: u16, file: Arc<File>) -> io::Result<Self> {
        Self::start_sized(device, &vec![256; queues.into()], file)
    }

    /// Variant of [`start`](Self::start) in which `sizes` has the maximum size of each virtqueue.
    pub fn start_sized(device: Device, sizes: &[u16], file: Arc<File>) -> io::Result<Self> {
        Ok(Self::run(Server::new(device, sizes, Disk::new(file))?))
    }
}

/// Creates a file of `bytes` bytes in memory.
#[track_caller]
pub fn memory_file(bytes: u64) -> Arc<File> {
    let disk = Disk::in_memory(bytes).expect("a file in memory");
    disk.file().clone()
}
