// SPDX-License-Identifier: GPL-2.0

//! A disk that a thread of the test serves and that has one virtqueue in each group.

use std::fs::File;
use std::os::unix::fs::FileExt;

use vduse::blk::Disk;
use vduse::server::Server;

use crate::lab::daemon::disk::{memory_file, Served};
use crate::lab::device::bus::OnBus;
use crate::lab::device::spaces::{config, create};
use crate::lab::device::test_device::TestDevice;

/// A served disk with one virtqueue in each group. Each byte of sector n is n + 1. The fields are
/// dropped in declaration order.
pub struct ServedGroups {
    /// The device on the bus. It is not bound to a driver yet.
    pub on_bus: OnBus,
    /// The thread that serves the disk.
    pub served: Served,
    /// The created device.
    pub device: TestDevice,
}

impl ServedGroups {
    /// Creates a disk with `groups` groups and `spaces` address spaces.
    #[track_caller]
    pub fn new(groups: u16, spaces: u32) -> Self {
        Self::with(groups, spaces, |_| ())
    }

    /// Variant of [`new`](Self::new) that calls `prepare` before it puts the device on the bus.
    #[track_caller]
    pub fn with(groups: u16, spaces: u32, prepare: impl FnOnce(&TestDevice)) -> Self {
        let device = create(&config(groups, groups.into(), spaces)).expect("creating");
        prepare(&device);
        let file = memory_file(1 << 20);
        fill(&file);
        let queues: Vec<_> = (0..groups).map(|group| (256, group.into())).collect();
        let server =
            Server::with_groups(device.open_nonblocking(), &queues, spaces, Disk::new(file));
        let served = Served::run(server.expect("serving the disk"));
        let on_bus = OnBus::add(device.name()).expect("adding");
        Self {
            on_bus,
            served,
            device,
        }
    }
}

/// Fills the first 16 sectors of a disk. Each byte of sector n is n + 1.
#[track_caller]
pub fn fill(file: &File) {
    for sector in 0..16u8 {
        file.write_all_at(&[sector + 1; 512], u64::from(sector) * 512)
            .expect("filling the disk");
    }
}
