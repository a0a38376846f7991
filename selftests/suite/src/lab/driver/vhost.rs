// SPDX-License-Identifier: GPL-2.0

//! The driver side of a vhost-vdpa device, with one method for each operation.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;

use crate::lab::device::bus;
use crate::lab::device::test_device::TestDevice;
use crate::lab::kernel::raw::{self, number, Bytes, NONE, READ, WRITE};

/// Type byte of the vhost ioctls.
const VHOST: u8 = 0xaf;

const GET_FEATURES: u32 = number(READ, VHOST, 0x00, 8);
const SET_FEATURES: u32 = number(WRITE, VHOST, 0x00, 8);
const SET_OWNER: u32 = number(NONE, VHOST, 0x01, 0);
const SET_VRING_NUM: u32 = number(WRITE, VHOST, 0x10, 8);
const SET_VRING_ADDR: u32 = number(WRITE, VHOST, 0x11, 40);
const SET_VRING_BASE: u32 = number(WRITE, VHOST, 0x12, 8);
const GET_VRING_BASE: u32 = number(READ | WRITE, VHOST, 0x12, 8);
const SET_VRING_KICK: u32 = number(WRITE, VHOST, 0x20, 8);
const SET_VRING_CALL: u32 = number(WRITE, VHOST, 0x21, 8);
const SET_BACKEND_FEATURES: u32 = number(WRITE, VHOST, 0x25, 8);
const GET_BACKEND_FEATURES: u32 = number(READ, VHOST, 0x26, 8);
const GET_DEVICE_ID: u32 = number(READ, VHOST, 0x70, 4);
const GET_STATUS: u32 = number(READ, VHOST, 0x71, 1);
const SET_STATUS: u32 = number(WRITE, VHOST, 0x72, 1);
const GET_CONFIG: u32 = number(READ, VHOST, 0x73, 8);
const SET_CONFIG: u32 = number(WRITE, VHOST, 0x74, 8);
const SET_VRING_ENABLE: u32 = number(WRITE, VHOST, 0x75, 8);
const GET_VRING_NUM: u32 = number(READ, VHOST, 0x76, 2);
const SET_CONFIG_CALL: u32 = number(WRITE, VHOST, 0x77, 4);
const GET_IOVA_RANGE: u32 = number(READ, VHOST, 0x78, 16);
const GET_CONFIG_SIZE: u32 = number(READ, VHOST, 0x79, 4);
const GET_AS_NUM: u32 = number(READ, VHOST, 0x7a, 4);
const GET_VQS_COUNT: u32 = number(READ, VHOST, 0x80, 4);
const GET_GROUP_NUM: u32 = number(READ, VHOST, 0x81, 4);
const GET_VRING_GROUP: u32 = number(READ | WRITE, VHOST, 0x7b, 8);
const GET_VRING_SIZE: u32 = number(READ | WRITE, VHOST, 0x82, 8);
const SET_GROUP_ASID: u32 = number(WRITE, VHOST, 0x7c, 8);
const SUSPEND: u32 = number(NONE, VHOST, 0x7d, 0);
const RESUME: u32 = number(NONE, VHOST, 0x7e, 0);

/// Access permissions that a mapping gives to the device.
pub mod access {
    /// Reading and writing.
    pub const RW: u8 = 3;
}

/// Features of vhost-vdpa itself (backend features).
pub mod backend {
    /// IOTLB messages have the format that [`map`](super::Vhost::map) uses.
    pub const IOTLB_MSG_V2: u64 = 1 << 1;
    /// IOTLB messages can be batched.
    pub const IOTLB_BATCH: u64 = 1 << 2;
    /// IOTLB messages contain the number of an address space.
    pub const IOTLB_ASID: u64 = 1 << 3;
    /// The device can be suspended.
    pub const SUSPEND: u64 = 1 << 4;
    /// A suspended device can be resumed.
    pub const RESUME: u64 = 1 << 5;
}

const IOTLB_MSG_V2: u32 = 2;
const IOTLB_UPDATE: u8 = 2;
const IOTLB_INVALIDATE: u8 = 3;
const IOTLB_BATCH_BEGIN: u8 = 5;
const IOTLB_BATCH_END: u8 = 6;

/// The IOVAs of a virtqueue's parts.
#[derive(Clone, Copy, Debug)]
pub struct RingAddress {
    /// IOVA of the descriptor table.
    pub desc: u64,
    /// IOVA of the available ring, which the driver writes.
    pub avail: u64,
    /// IOVA of the used ring, which the device writes.
    pub used: u64,
}

/// An open vhost-vdpa device.
#[derive(Debug)]
pub struct Vhost {
    file: File,
}

impl Vhost {
    /// Opens a device. vhost-vdpa resets the device at that time.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        Ok(Self { file })
    }

    fn get<const N: usize>(&self, number: u32) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        raw::call(&self.file, number, &mut bytes)?;
        Ok(bytes)
    }

    fn set(&self, number: u32, mut bytes: Bytes) -> io::Result<()> {
        raw::call(&self.file, number, &mut bytes.0).map(drop)
    }

    /// Calls an ioctl that reads a number for the virtqueue or group `index`.
    fn get_pair(&self, request: u32, index: u32) -> io::Result<u32> {
        let mut bytes = Bytes::new().u32(index).u32(0).0;
        raw::call(&self.file, request, &mut bytes)?;
        Ok(u32::from_ne_bytes(
            bytes[4..8].try_into().unwrap_or_default(),
        ))
    }

    fn set_pair(&self, number: u32, queue: u32, value: u32) -> io::Result<()> {
        self.set(number, Bytes::new().u32(queue).u32(value))
    }

    /// Makes this process the owner of the vhost device.
    pub fn set_owner(&self) -> io::Result<()> {
        self.set(SET_OWNER, Bytes::new())
    }

    /// Reads the features that the device offers.
    pub fn features(&self) -> io::Result<u64> {
        self.get(GET_FEATURES).map(u64::from_ne_bytes)
    }

    /// Accepts features.
    pub fn set_features(&self, features: u64) -> io::Result<()> {
        self.set(SET_FEATURES, Bytes::new().u64(features))
    }

    /// Reads the features of vhost-vdpa itself.
    pub fn backend_features(&self) -> io::Result<u64> {
        self.get(GET_BACKEND_FEATURES).map(u64::from_ne_bytes)
    }

    /// Accepts the features of vhost-vdpa that [`map`](Self::map) needs.
    pub fn set_backend_features(&self) -> io::Result<()> {
        self.set(
            SET_BACKEND_FEATURES,
            Bytes::new().u64(backend::IOTLB_MSG_V2),
        )
    }

    /// Accepts the features of vhost-vdpa that [`map_in`](Self::map_in) needs.
    pub fn set_backend_features_asid(&self) -> io::Result<()> {
        self.accept_backend_features(0)
    }

    /// Accepts the features in `features`, and those that [`map_in`](Self::map_in) needs.
    pub fn accept_backend_features(&self, features: u64) -> io::Result<()> {
        let needed = backend::IOTLB_MSG_V2 | backend::IOTLB_BATCH | backend::IOTLB_ASID;
        self.set(SET_BACKEND_FEATURES, Bytes::new().u64(needed | features))
    }

    /// Suspends the device.
    pub fn suspend(&self) -> io::Result<()> {
        self.set(SUSPEND, Bytes::new())
    }

    /// Resumes the device.
    pub fn resume(&self) -> io::Result<()> {
        self.set(RESUME, Bytes::new())
    }

    /// Reads the virtio device id.
    pub fn device_id(&self) -> io::Result<u32> {
        self.get(GET_DEVICE_ID).map(u32::from_ne_bytes)
    }

    /// Reads the device status.
    pub fn status(&self) -> io::Result<u8> {
        self.get(GET_STATUS).map(u8::from_ne_bytes)
    }

    /// Writes the device status.
    pub fn set_status(&self, status: u8) -> io::Result<()> {
        let mut bytes = [status];
        raw::call(&self.file, SET_STATUS, &mut bytes).map(drop)
    }

    /// Reads from the configuration space.
    pub fn config(&self, offset: u32, len: usize) -> io::Result<Vec<u8>> {
        // The data comes after a header of 8 bytes. The ioctl's number encodes only the size of the
        // header.
        let mut bytes = Bytes::new().u32(offset).u32(len as u32).zeroes(len).0;
        raw::call(&self.file, GET_CONFIG, &mut bytes)?;
        Ok(bytes.split_off(8))
    }

    /// Writes to the configuration space.
    pub fn set_config(&self, offset: u32, data: &[u8]) -> io::Result<()> {
        let mut bytes = Bytes::new().u32(offset).u32(data.len() as u32);
        bytes.0.extend(data);
        self.set(SET_CONFIG, bytes)
    }

    /// Reads the size of the configuration space.
    pub fn config_size(&self) -> io::Result<u32> {
        self.get(GET_CONFIG_SIZE).map(u32::from_ne_bytes)
    }

    /// Reads the maximum size of a virtqueue.
    pub fn max_queue_size(&self) -> io::Result<u16> {
        self.get(GET_VRING_NUM).map(u16::from_ne_bytes)
    }

    /// Reads the number of virtqueues.
    pub fn queues(&self) -> io::Result<u32> {
        self.get(GET_VQS_COUNT).map(u32::from_ne_bytes)
    }

    /// Reads the number of virtqueue groups.
    pub fn groups(&self) -> io::Result<u32> {
        self.get(GET_GROUP_NUM).map(u32::from_ne_bytes)
    }

    /// Reads the number of address spaces.
    pub fn address_spaces(&self) -> io::Result<u32> {
        self.get(GET_AS_NUM).map(u32::from_ne_bytes)
    }

    /// Reads the group of a virtqueue.
    pub fn group_of(&self, queue: u32) -> io::Result<u32> {
        self.get_pair(GET_VRING_GROUP, queue)
    }

    /// Reads the size of a virtqueue. This is the size that the driver has set or, if the driver
    /// has set none, the maximum size.
    pub fn queue_size(&self, queue: u32) -> io::Result<u32> {
        self.get_pair(GET_VRING_SIZE, queue)
    }

    /// Moves a virtqueue group to an address space. vhost-vdpa also checks the group's number as if
    /// it were a virtqueue index. If there is no virtqueue with that index, the call fails with
    /// `ENOBUFS`.
    pub fn set_group_asid(&self, group: u32, asid: u32) -> io::Result<()> {
        self.set_pair(SET_GROUP_ASID, group, asid)
    }

    /// Reads the first and the last IOVA that can be mapped.
    pub fn iova_range(&self) -> io::Result<(u64, u64)> {
        let bytes: [u8; 16] = self.get(GET_IOVA_RANGE)?;
        let (first, last) = bytes.split_at(8);
        let word = |b: &[u8]| u64::from_ne_bytes(b.try_into().unwrap_or_default());
        Ok((word(first), word(last)))
    }

    /// Sets the size of a virtqueue.
    pub fn set_queue_size(&self, queue: u32, size: u32) -> io::Result<()> {
        self.set_pair(SET_VRING_NUM, queue, size)
    }

    /// Sets the addresses of a virtqueue.
    pub fn set_queue_address(&self, queue: u32, address: RingAddress) -> io::Result<()> {
        self.set(
            SET_VRING_ADDR,
            Bytes::new()
                .u32(queue)
                .u32(0)
                .u64(address.desc)
                .u64(address.used)
                .u64(address.avail)
                .u64(0),
        )
    }

    /// Sets the device's initial position in a virtqueue.
    pub fn set_queue_base(&self, queue: u32, base: u32) -> io::Result<()> {
        self.set_pair(SET_VRING_BASE, queue, base)
    }

    /// Reads the device's position in a virtqueue.
    pub fn queue_base(&self, queue: u32) -> io::Result<u32> {
        self.get_pair(GET_VRING_BASE, queue)
    }

    /// Sets the eventfd by which the driver kicks a virtqueue.
    pub fn set_kick(&self, queue: u32, fd: BorrowedFd<'_>) -> io::Result<()> {
        self.set_pair(SET_VRING_KICK, queue, fd.as_raw_fd() as u32)
    }

    /// Sets the eventfd to which vhost-vdpa writes a virtqueue's interrupts. `None` removes the
    /// eventfd.
    pub fn set_call(&self, queue: u32, fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let fd = fd.map_or(-1, |fd| fd.as_raw_fd());
        self.set_pair(SET_VRING_CALL, queue, fd as u32)
    }

    /// Sets the eventfd to which vhost-vdpa writes configuration interrupts.
    pub fn set_config_call(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        self.set(SET_CONFIG_CALL, Bytes::new().u32(fd.as_raw_fd() as u32))
    }

    /// Enables a virtqueue.
    pub fn enable_queue(&self, queue: u32) -> io::Result<()> {
        self.set_pair(SET_VRING_ENABLE, queue, 1)
    }

    /// Disables a virtqueue.
    pub fn disable_queue(&self, queue: u32) -> io::Result<()> {
        self.set_pair(SET_VRING_ENABLE, queue, 0)
    }

    /// Maps memory of this process in address space 0. The memory must belong to a shared file.
    pub fn map(&self, iova: u64, memory: &vduse::Mapping, access: u8) -> io::Result<()> {
        let (size, uaddr) = (memory.len() as u64, memory.address() as u64);
        self.message(0, iova, size, uaddr, access, IOTLB_UPDATE)
    }

    /// Maps memory of this process in the address space `asid`. The memory must belong to a shared
    /// file.
    pub fn map_in(
        &self,
        asid: u32,
        iova: u64,
        memory: &vduse::Mapping,
        access: u8,
    ) -> io::Result<()> {
        let (size, uaddr) = (memory.len() as u64, memory.address() as u64);
        self.message(asid, iova, size, uaddr, access, IOTLB_UPDATE)
    }

    /// Tries to map `size` bytes at the address `uaddr` of this process. The kernel may refuse.
    pub fn map_raw(
        &self,
        asid: u32,
        iova: u64,
        size: u64,
        uaddr: u64,
        access: u8,
    ) -> io::Result<()> {
        self.message(asid, iova, size, uaddr, access, IOTLB_UPDATE)
    }

    /// Removes the mappings of a range of IOVAs from an address space.
    pub fn unmap_in(&self, asid: u32, iova: u64, size: u64) -> io::Result<()> {
        self.message(asid, iova, size, 0, 0, IOTLB_INVALIDATE)
    }

    /// Begins a batch of changes to the mappings of an address space. At the end of the batch,
    /// vhost-vdpa passes the changes to the device.
    pub fn batch_begin(&self, asid: u32) -> io::Result<()> {
        self.message(asid, 0, 0, 0, 0, IOTLB_BATCH_BEGIN)
    }

    /// Ends a batch of changes to the mappings of an address space.
    pub fn batch_end(&self, asid: u32) -> io::Result<()> {
        self.message(asid, 0, 0, 0, 0, IOTLB_BATCH_END)
    }

    /// Removes the mappings of a range of IOVAs from address space 0.
    pub fn unmap(&self, iova: u64, size: u64) -> io::Result<()> {
        self.message(0, iova, size, 0, 0, IOTLB_INVALIDATE)
    }

    fn message(
        &self,
        asid: u32,
        iova: u64,
        size: u64,
        uaddr: u64,
        access: u8,
        kind: u8,
    ) -> io::Result<()> {
        let mut bytes = Bytes::new()
            .u32(IOTLB_MSG_V2)
            .u32(asid)
            .u64(iova)
            .u64(size)
            .u64(uaddr);
        bytes.0.extend([access, kind]);
        bytes.0.resize(72, 0);
        rustix::io::write(&self.file, &bytes.0)?;
        Ok(())
    }
}

impl AsFd for Vhost {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Opens a device that is bound to vhost-vdpa, ready for mapping memory.
#[track_caller]
pub fn open(device: &TestDevice) -> Vhost {
    open_by_name(device.name())
}

/// Variant of [`open`] that takes the name of the device.
#[track_caller]
pub fn open_by_name(name: &str) -> Vhost {
    let vhost = Vhost::open(&bus::vhost_path(name).expect("a node")).expect("opening");
    vhost.set_owner().expect("owning");
    vhost.set_backend_features_asid().expect("backend features");
    vhost
}
