// SPDX-License-Identifier: GPL-2.0

//! Devices of version 1: virtqueue groups and address spaces.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use vduse::blk::{self, Disk};
use vduse::device::Region;
use vduse::request::{Answer, Kind, Request};
use vduse::server::Server;
use vduse::{Control, Device, DeviceConfig, Mapping};
use vduse_uapi::{ioctl, IotlbEntryV2, VqConfig};

use crate::lab::daemon::disk::{memory_file, Served};
use crate::lab::daemon::responder::Responder;
use crate::lab::device::bus::{self, Driver, OnBus};
use crate::lab::device::test_device::{unique_name, TestDevice};
use crate::lab::driver::vhost::Vhost;
use crate::lab::kernel::memory::{self, PAGE};
use crate::lab::kernel::raw;

/// Returns the configuration of a disk with this number of queues, groups and address spaces.
pub fn config(queues: u16, groups: u32, spaces: u32) -> DeviceConfig {
    let mut config = blk::device_config(&unique_name(), 1 << 20, queues);
    config.groups = groups;
    config.address_spaces = spaces;
    config
}

/// Creates a device of version 1.
pub fn create(config: &DeviceConfig) -> io::Result<TestDevice> {
    Control::open_v1()?.create(config)?;
    Ok(TestDevice::adopt(&config.name))
}

/// Sets up a queue of 256 descriptors.
pub fn set_up(device: &Device, index: u32, group: u32) -> io::Result<()> {
    device.vq_setup_raw(&VqConfig {
        index,
        max_size: 256,
        group,
        ..Default::default()
    })
}

/// A device on the bus whose requests are answered, but whose virtqueues are not served. The fields
/// are dropped in this order.
pub struct Answered {
    /// The device on the bus.
    pub on_bus: OnBus,
    /// The thread that answers requests.
    pub responder: Responder,
    /// The daemon's open device.
    pub file: Arc<Device>,
    /// The created device.
    pub device: TestDevice,
}

/// Answers "ok" to every request.
pub fn agree(request: &Request) -> Option<Answer> {
    Some(match request.kind {
        Kind::GetVqState { index } => Answer::SplitState {
            index,
            next_avail: 0,
        },
        _ => Answer::Ok,
    })
}

impl Answered {
    /// Puts a device on the bus, whose queues are in these groups, and binds the device to
    /// vhost-vdpa.
    #[track_caller]
    pub fn new(queues: &[u32], groups: u32, spaces: u32) -> Self {
        Self::with(queues, groups, spaces, agree)
    }

    /// Variant of [`new`](Self::new) with other answers.
    #[track_caller]
    pub fn with(
        queues: &[u32],
        groups: u32,
        spaces: u32,
        answer: impl FnMut(&Request) -> Option<Answer> + Send + 'static,
    ) -> Self {
        let device = create(&config(queues.len() as u16, groups, spaces)).expect("creating");
        Self::start(device, queues, answer)
    }

    /// Variant of [`new`](Self::new) with a device of version 0.
    #[track_caller]
    pub fn version_0(queues: u16) -> Self {
        let device = TestDevice::new(&blk::device_config(&unique_name(), 1 << 20, queues));
        Self::start(device, &vec![0; queues.into()], agree)
    }

    #[track_caller]
    fn start(
        device: TestDevice,
        queues: &[u32],
        answer: impl FnMut(&Request) -> Option<Answer> + Send + 'static,
    ) -> Self {
        let file = Arc::new(device.open_nonblocking());
        for (index, &group) in (0..).zip(queues) {
            set_up(&file, index, group).expect("setting a queue up");
        }
        let responder = Responder::new(&file, answer);
        let on_bus = OnBus::add(device.name()).expect("adding");
        on_bus.bind(Driver::Vhost).expect("binding");
        Self {
            on_bus,
            responder,
            file,
            device,
        }
    }

    /// Opens the device as a driver that is about to map memory.
    #[track_caller]
    pub fn vhost(&self) -> Vhost {
        open(&self.device)
    }
}

/// Opens a device as a driver that is about to map memory.
#[track_caller]
pub fn open(device: &TestDevice) -> Vhost {
    open_by_name(device.name())
}

/// Variant of [`open`] for any device that is bound to vhost-vdpa.
#[track_caller]
pub fn open_by_name(name: &str) -> Vhost {
    let vhost = Vhost::open(&bus::vhost_path(name).expect("a node")).expect("opening");
    vhost.set_owner().expect("owning");
    vhost.set_backend_features_asid().expect("backend features");
    vhost
}

/// A served disk with one queue for each group. Each byte of sector n is n + 1. The fields are
/// dropped in this order.
pub struct ServedGroups {
    /// The device on the bus, not bound to any driver yet.
    pub on_bus: OnBus,
    /// The thread that serves the disk.
    pub served: Served,
    /// The created device.
    pub device: TestDevice,
}

impl ServedGroups {
    /// Creates a disk with this number of groups, of one queue each, and of address spaces.
    #[track_caller]
    pub fn new(groups: u16, spaces: u32) -> Self {
        Self::with(groups, spaces, |_| ())
    }

    /// Variant of [`new`](Self::new) that calls `prepare` before the device is put on the bus.
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

/// Fills the first 16 sectors of a disk: each byte of sector n is n + 1.
#[track_caller]
pub fn fill(file: &File) {
    for sector in 0..16u8 {
        file.write_all_at(&[sector + 1; 512], u64::from(sector) * 512)
            .expect("filling the disk");
    }
}

/// Returns a page of a new file, filled with a byte.
#[track_caller]
pub fn page_of(byte: u8) -> Mapping {
    let file = memory::file(PAGE);
    file.write_all_at(&[byte; PAGE as usize], 0)
        .expect("filling a page");
    Mapping::of_file(file.as_fd(), 0, PAGE, 3).expect("mapping a page")
}

/// Returns the first byte that a daemon sees at an IOVA of an address space.
#[track_caller]
pub fn first_byte(device: &Device, asid: u32, iova: u64) -> io::Result<u8> {
    let region = device.iotlb_fd2(asid, iova, iova)?;
    let at = region.offset + (iova - region.first);
    let mapping = Mapping::of_file(region.file.as_fd(), at, 1, region.access)?;
    let mut byte = [0];
    vm_memory::Bytes::read_slice(&mapping.bytes(), &mut byte, 0).expect("inside the mapping");
    Ok(byte[0])
}

/// Calls [`Device::iotlb_fd2`] with a reserved field that is not 0.
pub fn find_reserved(device: &Device, asid: u32, first: u64, last: u64) -> io::Result<Region> {
    find_raw(
        device,
        &IotlbEntryV2 {
            start: first,
            last,
            asid,
            reserved: [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
            ..Default::default()
        },
    )
}

/// Finds a region by means of the ABI's own structure.
pub fn find_raw(device: &Device, entry: &IotlbEntryV2) -> io::Result<Region> {
    let mut bytes = raw::Bytes::new()
        .u64(entry.offset)
        .u64(entry.start)
        .u64(entry.last)
        .u64(entry.perm.into())
        .u32(entry.asid);
    for word in entry.reserved {
        bytes = bytes.u32(word);
    }
    let fd = raw::call(device, ioctl::IOTLB_GET_FD2, &mut bytes.0)?;
    let word = |at: usize| u64::from_ne_bytes(bytes.0[at..at + 8].try_into().unwrap_or_default());
    Ok(Region {
        // SAFETY: The ioctl returns a new descriptor, which nothing else owns.
        file: unsafe { std::os::fd::FromRawFd::from_raw_fd(fd) },
        offset: word(0),
        first: word(8),
        last: word(16),
        access: bytes.0[24],
    })
}
