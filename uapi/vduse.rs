// SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note OR BSD-3-Clause

//! The userspace ABI of VDUSE, defined once: the kernel module and userspace include this file.
//!
//! All integers are in native byte order. A union in C is an array of integers here, with a
//! constructor and an accessor for each member, so that reading it needs no `unsafe`. Padding in C
//! is a named field here, so that every byte of every structure is defined.
//!
//! Userspace must follow the rules of `include/uapi/linux/vduse.h`. The values that userspace
//! passes on to the driver are those of the virtio specification, version 1.3.

/// Version 0 of the API, in which a device has one virtqueue group and one address space.
pub const API_VERSION_0: u64 = 0;

/// Version 1 of the API, in which a device can have several virtqueue groups and address spaces.
pub const API_VERSION_1: u64 = 1;

/// Bit of a device's VDUSE features: the kernel asks the daemon, by [`SET_VQ_READY`], before a
/// virtqueue becomes ready or ceases to be ready (since Linux 7.3).
pub const F_QUEUE_READY: u64 = 1 << 0;
/// Bit of a device's VDUSE features: the driver may suspend the device ([`SUSPEND`], since Linux
/// 7.3).
pub const F_SUSPEND: u64 = 1 << 1;

/// Size in bytes of a device's name, its terminating NUL included.
pub const NAME_MAX: usize = 256;

/// Permission: the device may read the IOVA region.
pub const ACCESS_RO: u8 = 1;
/// Permission: the device may write the IOVA region.
pub const ACCESS_WO: u8 = 2;
/// Permission: the device may read and write the IOVA region.
pub const ACCESS_RW: u8 = 3;

/// Bit of [`IovaInfo::capability`]: the daemon can back the region with its own memory
/// ([`ioctl::IOTLB_REG_UMEM`]).
pub const IOVA_CAP_UMEM: u64 = 1 << 0;

/// Value of [`VqEventfd::fd`] that removes the kick eventfd from a virtqueue.
pub const EVENTFD_DEASSIGN: i32 = -1;

/// Value of [`DevRequest::kind`]: the kernel asks for the state of a virtqueue.
pub const GET_VQ_STATE: u32 = 0;
/// Value of [`DevRequest::kind`]: the driver wrote the device status.
pub const SET_STATUS: u32 = 1;
/// Value of [`DevRequest::kind`]: mappings have changed, and the daemon must discard all mappings
/// of an IOVA range.
pub const UPDATE_IOTLB: u32 = 2;
/// Value of [`DevRequest::kind`]: a virtqueue group moves to another address space (version 1).
pub const SET_VQ_GROUP_ASID: u32 = 3;
/// Value of [`DevRequest::kind`]: a virtqueue becomes ready or ceases to be ready
/// ([`F_QUEUE_READY`]).
pub const SET_VQ_READY: u32 = 4;
/// Value of [`DevRequest::kind`]: the daemon must stop processing virtqueues ([`F_SUSPEND`]). The
/// request has no body. After a successful response, the daemon is not kicked and cannot interrupt
/// the driver until the device is reset or resumed.
pub const SUSPEND: u32 = 5;

/// Value of [`DevResponse::result`]: the request was carried out.
pub const REQ_RESULT_OK: u32 = 0;
/// Value of [`DevResponse::result`]: the request failed.
pub const REQ_RESULT_FAILED: u32 = 1;

/// The ioctls, and the composition of their numbers (`include/uapi/asm-generic/ioctl.h`).
pub mod ioctl {
    use super::*;

    const NONE: u32 = 0;
    pub(super) const WRITE: u32 = 1;
    pub(super) const READ: u32 = 2;

    /// The type byte of every VDUSE ioctl.
    const BASE: u32 = 0x81;

    /// Composes the number of an ioctl from its direction, its type byte, its number within the
    /// type, and the size of its argument in bytes.
    pub(super) const fn compose(direction: u32, base: u32, nr: u32, size: usize) -> u32 {
        // The field for the size has fourteen bits. The size of every structure here is far below
        // that limit.
        assert!(size < 1 << 14);
        direction << 30 | (size as u32) << 16 | base << 8 | nr
    }

    const fn number(direction: u32, nr: u32, size: usize) -> u32 {
        compose(direction, BASE, nr, size)
    }

    /// On the control device: reads the API version of this open file, a `u64`.
    pub const GET_API_VERSION: u32 = number(READ, 0x00, size_of::<u64>());
    /// On the control device: sets the API version of this open file, a `u64`.
    pub const SET_API_VERSION: u32 = number(WRITE, 0x01, size_of::<u64>());
    /// On the control device: creates a device from a [`DevConfig`] and the bytes of the
    /// configuration space that follow it.
    pub const CREATE_DEV: u32 = number(WRITE, 0x02, size_of::<DevConfig>());
    /// On the control device: destroys a device. The argument is the device's name, an array of
    /// [`NAME_MAX`] bytes.
    pub const DESTROY_DEV: u32 = number(WRITE, 0x03, NAME_MAX);

    /// On the control device: reads the VDUSE features that the kernel supports, a `u64` (since
    /// Linux 7.3). Has no other effect.
    pub const GET_FEATURES: u32 = number(READ, 0x04, size_of::<u64>());
    /// On the control device: sets the VDUSE features, a `u64`, of the devices that are created
    /// through this open file from now on (since Linux 7.3). When the file is opened, the features
    /// are 0.
    pub const SET_FEATURES: u32 = number(WRITE, 0x05, size_of::<u64>());

    /// Finds an IOVA region, and returns a file descriptor through which the daemon can map the
    /// region. The argument is an [`IotlbEntry`].
    pub const IOTLB_GET_FD: u32 = number(READ | WRITE, 0x10, size_of::<IotlbEntry>());
    /// Reads the features that the driver accepted, a `u64`.
    pub const DEV_GET_FEATURES: u32 = number(READ, 0x11, size_of::<u64>());
    /// Writes to the configuration space. The argument is a [`ConfigData`], followed by the bytes
    /// to write.
    pub const DEV_SET_CONFIG: u32 = number(WRITE, 0x12, size_of::<ConfigData>());
    /// Tells the driver that the configuration space has changed.
    pub const DEV_INJECT_CONFIG_IRQ: u32 = number(NONE, 0x13, 0);
    /// Sets up a virtqueue. The argument is a [`VqConfig`].
    pub const VQ_SETUP: u32 = number(WRITE, 0x14, size_of::<VqConfig>());
    /// Reads the driver's settings of a virtqueue. The argument is a [`VqInfo`].
    pub const VQ_GET_INFO: u32 = number(READ | WRITE, 0x15, size_of::<VqInfo>());
    /// Sets the kick eventfd of a virtqueue. The argument is a [`VqEventfd`].
    pub const VQ_SETUP_KICKFD: u32 = number(WRITE, 0x16, size_of::<VqEventfd>());
    /// Interrupts the driver on behalf of a virtqueue. The argument is the virtqueue's index, a
    /// `u32`.
    pub const VQ_INJECT_IRQ: u32 = number(WRITE, 0x17, size_of::<u32>());
    /// Backs an IOVA region with memory of the caller. The argument is an [`IovaUmem`].
    pub const IOTLB_REG_UMEM: u32 = number(WRITE, 0x18, size_of::<IovaUmem>());
    /// Deregisters memory that backs an IOVA region. The argument is an [`IovaUmem`].
    pub const IOTLB_DEREG_UMEM: u32 = number(WRITE, 0x19, size_of::<IovaUmem>());
    /// Finds an IOVA region and reports its capabilities. The argument is an [`IovaInfo`].
    pub const IOTLB_GET_INFO: u32 = number(READ | WRITE, 0x1a, size_of::<IovaInfo>());
    /// Does the same as [`IOTLB_GET_FD`] in a given address space (version 1). The argument is an
    /// [`IotlbEntryV2`].
    pub const IOTLB_GET_FD2: u32 = number(READ | WRITE, 0x1b, size_of::<IotlbEntryV2>());

    /// [`IOTLB_GET_FD`] as a 32-bit x86 program calls it.
    pub const COMPAT_IOTLB_GET_FD: u32 = number(READ | WRITE, 0x10, size_of::<CompatIotlbEntry>());
    /// [`VQ_GET_INFO`] as a 32-bit x86 program calls it.
    pub const COMPAT_VQ_GET_INFO: u32 = number(READ | WRITE, 0x15, size_of::<CompatVqInfo>());
}

/// The extensions, which `vduse_rs` adds to the VDUSE ABI of Linux.
///
/// Linux assigns message types, feature bits and ioctl numbers consecutively, and reserves no range
/// for other modules. So the extensions use no number that Linux may assign. Their ioctls have a
/// type byte of their own, their feature bits are in a word of their own, and their message types
/// have the topmost bit set. The kernel sends the messages of an extension only to the daemons of
/// devices that were created with that extension.
pub mod extension {
    use super::ioctl;

    /// The type byte of the extensions' ioctls.
    /// `Documentation/userspace-api/ioctl/ioctl-number.rst` assigns this type byte to no driver.
    const BASE: u32 = 0x82;

    const fn number(direction: u32, nr: u32) -> u32 {
        ioctl::compose(direction, BASE, nr, size_of::<u64>())
    }

    /// Bit of a device's extensions: a driver may resume the device after suspending it
    /// ([`RESUME`]). Requires [`F_SUSPEND`](super::F_SUSPEND).
    pub const F_RESUME: u64 = 1 << 0;

    /// Value of [`DevRequest::kind`](super::DevRequest::kind): the daemon must resume processing
    /// virtqueues ([`F_RESUME`]). The request has no body.
    ///
    /// The driver may have changed the settings of virtqueues since the device was suspended, so
    /// the daemon must read the settings again ([`VQ_GET_INFO`](super::ioctl::VQ_GET_INFO)). If a
    /// kick was held back while the device was suspended, the daemon is kicked when it writes a
    /// successful response.
    pub const RESUME: u32 = 1 << 31;

    /// On the control device: reads the extensions that the kernel module supports, a `u64`. Fails
    /// with `EINVAL` on other modules, such as the in-tree driver.
    pub const GET_FEATURES: u32 = number(ioctl::READ, 0x00);
    /// On the control device: sets the extensions, a `u64`, of the devices that are created through
    /// this open file from now on. When the file is opened, the extensions are 0.
    pub const SET_FEATURES: u32 = number(ioctl::WRITE, 0x01);
}

/// The configuration of a device. It is followed in memory by the initial content of the
/// configuration space, [`config_size`](Self::config_size) bytes.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct DevConfig {
    /// The device's name, up to the first NUL.
    pub name: [u8; NAME_MAX],
    /// The virtio vendor id.
    pub vendor_id: u32,
    /// The virtio device id (virtio 1.3, section 5).
    pub device_id: u32,
    /// The virtio feature bits that the device offers.
    pub features: u64,
    /// The number of virtqueues, up to 65,535; `vduse_rs` requires at least 1.
    pub vq_num: u32,
    /// Alignment in bytes of a virtqueue's parts: a power of two from 4 to the page size.
    pub vq_align: u32,
    /// The number of virtqueue groups, 1 to 65,535. In version 0, it must be 0, which means one
    /// group.
    pub ngroups: u32,
    /// The number of address spaces, 1 to 65,535. In version 0, it must be 0, which means one
    /// address space.
    pub nas: u32,
    /// Must be 0.
    pub reserved: [u32; 11],
    /// Size in bytes of the configuration space that follows, at most the page size.
    pub config_size: u32,
}

/// The argument of [`ioctl::IOTLB_GET_FD`]. The caller sets the range of IOVAs to search, and the
/// kernel writes the region that it has found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct IotlbEntry {
    /// Out: offset in the returned file at which the region starts, in bytes.
    pub offset: u64,
    /// In: first IOVA to search. Out: first IOVA of the region.
    pub start: u64,
    /// In: last IOVA to search. Out: last IOVA of the region.
    pub last: u64,
    /// Out: one of [`ACCESS_RO`], [`ACCESS_WO`], [`ACCESS_RW`].
    pub perm: u8,
    /// Unused.
    pub padding: [u8; 7],
}

/// The argument of [`ioctl::IOTLB_GET_FD2`]: an [`IotlbEntry`] for a given address space.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct IotlbEntryV2 {
    /// Out: offset in the returned file at which the region starts, in bytes.
    pub offset: u64,
    /// In: first IOVA to search. Out: first IOVA of the region.
    pub start: u64,
    /// In: last IOVA to search. Out: last IOVA of the region.
    pub last: u64,
    /// Out: one of [`ACCESS_RO`], [`ACCESS_WO`], [`ACCESS_RW`].
    pub perm: u8,
    /// Unused.
    pub padding: [u8; 7],
    /// In: the address space.
    pub asid: u32,
    /// Must be 0.
    pub reserved: [u32; 11],
}

/// A write to the configuration space. It is followed in memory by the [`length`](Self::length)
/// bytes to write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ConfigData {
    /// Offset of the write from the start of the configuration space, in bytes.
    pub offset: u32,
    /// Length of the write in bytes, at least 1.
    pub length: u32,
}

/// The configuration of a virtqueue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct VqConfig {
    /// Index of the virtqueue.
    pub index: u32,
    /// The largest size that the driver may choose, in descriptors.
    pub max_size: u16,
    /// Must be 0.
    pub reserved1: u16,
    /// The virtqueue group. In version 0, it must be 0.
    pub group: u32,
    /// Must be 0.
    pub reserved2: [u16; 10],
}

/// A device's position in a packed virtqueue (virtio 1.3, section 2.8.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PackedState {
    /// The driver ring's wrap counter, 0 or 1, as the device last saw it.
    pub last_avail_counter: u16,
    /// The position in the descriptor ring at which the device reads the next available descriptor,
    /// 0 to 32,767.
    pub last_avail_idx: u16,
    /// The device ring's wrap counter, 0 or 1.
    pub last_used_counter: u16,
    /// The position in the descriptor ring at which the device writes the next used descriptor,
    /// 0 to 32,767.
    pub last_used_idx: u16,
}

/// A device's position in a virtqueue. The features that the driver accepted determine whether the
/// virtqueue is split or packed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct VqStateUnion {
    /// The union's bytes. A split virtqueue uses only the first word. A packed virtqueue uses all
    /// four words, in the order of [`PackedState`].
    pub words: [u16; 4],
}

impl VqStateUnion {
    /// Returns the state of a split virtqueue. `avail_index` is the index in the available ring at
    /// which the device reads next.
    pub const fn from_split(avail_index: u16) -> Self {
        Self {
            words: [avail_index, 0, 0, 0],
        }
    }

    /// Returns the state of a packed virtqueue.
    pub const fn from_packed(state: PackedState) -> Self {
        Self {
            words: [
                state.last_avail_counter,
                state.last_avail_idx,
                state.last_used_counter,
                state.last_used_idx,
            ],
        }
    }

    /// Reads the state of a split virtqueue: the index in the available ring at which the device
    /// reads next.
    pub const fn split(&self) -> u16 {
        self.words[0]
    }

    /// Reads the state of a packed virtqueue.
    pub const fn packed(&self) -> PackedState {
        PackedState {
            last_avail_counter: self.words[0],
            last_avail_idx: self.words[1],
            last_used_counter: self.words[2],
            last_used_idx: self.words[3],
        }
    }
}

/// The driver's settings of a virtqueue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct VqInfo {
    /// In: index of the virtqueue.
    pub index: u32,
    /// Out: size in descriptors.
    pub num: u32,
    /// Out: IOVA of the descriptor area.
    pub desc_addr: u64,
    /// Out: IOVA of the driver area.
    pub driver_addr: u64,
    /// Out: IOVA of the device area.
    pub device_addr: u64,
    /// Out: position at which the device starts.
    pub state: VqStateUnion,
    /// Out: 1 if the virtqueue is ready, otherwise 0. A virtqueue is ready if the driver has
    /// enabled it and, with [`F_QUEUE_READY`], the daemon has agreed.
    pub ready: u8,
    /// Unused.
    pub padding: [u8; 7],
}

/// The kick eventfd of a virtqueue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct VqEventfd {
    /// Index of the virtqueue.
    pub index: u32,
    /// File descriptor of an eventfd, or [`EVENTFD_DEASSIGN`].
    pub fd: i32,
}

/// Memory of the caller that backs an IOVA region.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct IovaUmem {
    /// Address of the memory, a multiple of the page size.
    pub uaddr: u64,
    /// First IOVA of the region.
    pub iova: u64,
    /// Size of the region in bytes.
    pub size: u64,
    /// The address space. In version 0, it must be 0.
    pub asid: u32,
    /// Must be 0.
    pub reserved: [u32; 5],
}

/// The argument of [`ioctl::IOTLB_GET_INFO`]. The caller sets the range of IOVAs to search, and the
/// kernel writes the region that it has found, with its capabilities.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct IovaInfo {
    /// In: first IOVA to search. Out: first IOVA of the region.
    pub start: u64,
    /// In: last IOVA to search. Out: last IOVA of the region.
    pub last: u64,
    /// Out: [`IOVA_CAP_UMEM`] or 0.
    pub capability: u64,
    /// The address space. In version 0, it must be 0.
    pub asid: u32,
    /// Must be 0.
    pub reserved: [u32; 5],
}

/// The body of a [`DevRequest`]. Its form depends on [`DevRequest::kind`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct RequestBody {
    /// The union's bytes: 16 words of 64 bits.
    pub words: [u64; 16],
}

impl RequestBody {
    /// Packs two 32-bit fields into a word. In memory, `first` comes before `second`.
    const fn pair(first: u32, second: u32) -> u64 {
        let (a, b) = (first.to_ne_bytes(), second.to_ne_bytes());
        u64::from_ne_bytes([a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3]])
    }

    const fn split_pair(word: u64) -> (u32, u32) {
        let b = word.to_ne_bytes();
        (
            u32::from_ne_bytes([b[0], b[1], b[2], b[3]]),
            u32::from_ne_bytes([b[4], b[5], b[6], b[7]]),
        )
    }

    const fn from_words(first: u64, second: u64, third: u64) -> Self {
        let mut words = [0; 16];
        words[0] = first;
        words[1] = second;
        words[2] = third;
        Self { words }
    }

    /// Returns the body of [`GET_VQ_STATE`]: the index of the virtqueue.
    pub const fn from_vq_index(index: u32) -> Self {
        Self::from_words(Self::pair(index, 0), 0, 0)
    }

    /// Returns the body of [`SET_STATUS`]: the device status.
    pub const fn from_status(status: u8) -> Self {
        Self::from_words(u64::from_ne_bytes([status, 0, 0, 0, 0, 0, 0, 0]), 0, 0)
    }

    /// Returns the body of [`UPDATE_IOTLB`] in version 0: the IOVAs from `start` to `last`.
    pub const fn from_iova_range(start: u64, last: u64) -> Self {
        Self::from_words(start, last, 0)
    }

    /// Returns the body of [`UPDATE_IOTLB`] in version 1: the IOVAs from `start` to `last` of an
    /// address space.
    pub const fn from_iova_range_v2(start: u64, last: u64, asid: u32) -> Self {
        Self::from_words(start, last, Self::pair(asid, 0))
    }

    /// Returns the body of [`SET_VQ_GROUP_ASID`]: a virtqueue group and its new address space.
    pub const fn from_group_asid(group: u32, asid: u32) -> Self {
        Self::from_words(Self::pair(group, asid), 0, 0)
    }

    /// Returns the body of [`SET_VQ_READY`]: the index of a virtqueue, and whether the virtqueue
    /// becomes ready.
    pub const fn from_vq_ready(index: u32, ready: bool) -> Self {
        Self::from_words(Self::pair(index, ready as u32), 0, 0)
    }

    /// Reads the index of the virtqueue out of the body of [`GET_VQ_STATE`].
    pub const fn vq_index(&self) -> u32 {
        Self::split_pair(self.words[0]).0
    }

    /// Reads the device status out of the body of [`SET_STATUS`].
    pub const fn status(&self) -> u8 {
        self.words[0].to_ne_bytes()[0]
    }

    /// Reads the first and the last IOVA out of the body of [`UPDATE_IOTLB`].
    pub const fn iova_range(&self) -> (u64, u64) {
        (self.words[0], self.words[1])
    }

    /// Reads the address space out of the body of [`UPDATE_IOTLB`] (version 1).
    pub const fn iova_asid(&self) -> u32 {
        Self::split_pair(self.words[2]).0
    }

    /// Reads out of the body of [`SET_VQ_READY`] the index of the virtqueue, and whether the
    /// virtqueue becomes ready.
    pub const fn vq_ready(&self) -> (u32, bool) {
        let (index, ready) = Self::split_pair(self.words[0]);

        (index, ready != 0)
    }

    /// Reads the virtqueue group and its new address space out of the body of
    /// [`SET_VQ_GROUP_ASID`].
    pub const fn group_asid(&self) -> (u32, u32) {
        Self::split_pair(self.words[0])
    }
}

/// A request of the kernel to the daemon, as `read(2)` on the device's node returns it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct DevRequest {
    /// One of [`GET_VQ_STATE`], [`SET_STATUS`], [`UPDATE_IOTLB`], [`SET_VQ_GROUP_ASID`],
    /// [`SET_VQ_READY`], [`SUSPEND`], [`extension::RESUME`].
    pub kind: u32,
    /// Id of the request, which the response must repeat.
    pub request_id: u32,
    /// Unused.
    pub reserved: [u32; 4],
    /// The body of the request, whose form depends on `kind`.
    pub body: RequestBody,
}

/// The body of a [`DevResponse`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ResponseBody {
    /// The union's bytes: 32 words of 32 bits.
    pub words: [u32; 32],
}

impl ResponseBody {
    /// Returns the body of the response to [`GET_VQ_STATE`]: the index of the virtqueue, and its
    /// state.
    pub const fn from_vq_state(index: u32, state: VqStateUnion) -> Self {
        let mut words = [0; 32];
        words[0] = index;
        words[1] = Self::pair(state.words[0], state.words[1]);
        words[2] = Self::pair(state.words[2], state.words[3]);
        Self { words }
    }

    /// Reads the index of the virtqueue and its state out of the body of the response to
    /// [`GET_VQ_STATE`].
    pub const fn vq_state(&self) -> (u32, VqStateUnion) {
        let (a, b) = Self::split_pair(self.words[1]);
        let (c, d) = Self::split_pair(self.words[2]);
        (
            self.words[0],
            VqStateUnion {
                words: [a, b, c, d],
            },
        )
    }

    /// Packs two 16-bit fields into a word. In memory, `first` comes before `second`.
    const fn pair(first: u16, second: u16) -> u32 {
        let (a, b) = (first.to_ne_bytes(), second.to_ne_bytes());
        u32::from_ne_bytes([a[0], a[1], b[0], b[1]])
    }

    const fn split_pair(word: u32) -> (u16, u16) {
        let b = word.to_ne_bytes();
        (
            u16::from_ne_bytes([b[0], b[1]]),
            u16::from_ne_bytes([b[2], b[3]]),
        )
    }
}

/// A response of the daemon to a request, as `write(2)` on the device's node takes it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct DevResponse {
    /// Id of the request that this response answers.
    pub request_id: u32,
    /// [`REQ_RESULT_OK`], or another value for a failure.
    pub result: u32,
    /// Must be 0.
    pub reserved: [u32; 4],
    /// The answer to [`GET_VQ_STATE`]. Unused for other requests.
    pub body: ResponseBody,
}

/// A 64-bit integer as a 32-bit x86 program lays it out: aligned to four bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct CompatU64 {
    /// The first and the second half of the integer's bytes, as they are in memory.
    pub words: [u32; 2],
}

impl CompatU64 {
    /// Splits a 64-bit integer into its halves.
    pub const fn new(value: u64) -> Self {
        let (a, b) = RequestBody::split_pair(value);
        Self { words: [a, b] }
    }

    /// Joins the halves into the 64-bit integer.
    pub const fn get(&self) -> u64 {
        RequestBody::pair(self.words[0], self.words[1])
    }
}

/// An [`IotlbEntry`] as a 32-bit x86 program lays it out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct CompatIotlbEntry {
    /// The same as [`IotlbEntry::offset`].
    pub offset: CompatU64,
    /// The same as [`IotlbEntry::start`].
    pub start: CompatU64,
    /// The same as [`IotlbEntry::last`].
    pub last: CompatU64,
    /// The same as [`IotlbEntry::perm`].
    pub perm: u8,
    /// Unused.
    pub padding: [u8; 3],
}

/// A [`VqInfo`] as a 32-bit x86 program lays it out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct CompatVqInfo {
    /// The same as [`VqInfo::index`].
    pub index: u32,
    /// The same as [`VqInfo::num`].
    pub num: u32,
    /// The same as [`VqInfo::desc_addr`].
    pub desc_addr: CompatU64,
    /// The same as [`VqInfo::driver_addr`].
    pub driver_addr: CompatU64,
    /// The same as [`VqInfo::device_addr`].
    pub device_addr: CompatU64,
    /// The same as [`VqInfo::state`].
    pub state: VqStateUnion,
    /// The same as [`VqInfo::ready`].
    pub ready: u8,
    /// Unused.
    pub padding: [u8; 3],
}

// Checks that each structure has the same layout as its C counterpart in
// `include/uapi/linux/vduse.h`.
macro_rules! layout {
    ($t:ident: $size:literal, align $align:literal $(, $field:ident at $offset:literal)* $(,)?) => {
        const _: () = {
            assert!(size_of::<$t>() == $size);
            assert!(align_of::<$t>() == $align);
            $(assert!(core::mem::offset_of!($t, $field) == $offset);)*
        };
    };
}

layout!(DevConfig: 336, align 8, vendor_id at 256, device_id at 260, features at 264,
        vq_num at 272, vq_align at 276, ngroups at 280, nas at 284, reserved at 288,
        config_size at 332);
layout!(IotlbEntry: 32, align 8, start at 8, last at 16, perm at 24);
layout!(IotlbEntryV2: 80, align 8, start at 8, last at 16, perm at 24, asid at 32, reserved at 36);
layout!(ConfigData: 8, align 4, length at 4);
layout!(VqConfig: 32, align 4, max_size at 4, reserved1 at 6, group at 8, reserved2 at 12);
layout!(VqStateUnion: 8, align 2);
layout!(VqInfo: 48, align 8, num at 4, desc_addr at 8, driver_addr at 16, device_addr at 24,
        state at 32, ready at 40);
layout!(VqEventfd: 8, align 4, fd at 4);
layout!(IovaUmem: 48, align 8, iova at 8, size at 16, asid at 24, reserved at 28);
layout!(IovaInfo: 48, align 8, last at 8, capability at 16, asid at 24, reserved at 28);
layout!(DevRequest: 152, align 8, request_id at 4, reserved at 8, body at 24);
layout!(DevResponse: 152, align 4, result at 4, reserved at 8, body at 24);
layout!(CompatIotlbEntry: 28, align 4, start at 8, last at 16, perm at 24);
layout!(CompatVqInfo: 44, align 4, desc_addr at 8, driver_addr at 16, device_addr at 24,
        state at 32, ready at 40);

// Checks the ioctl numbers against the C header, for the ioctls whose structures are easiest to get
// wrong.
const _: () = {
    assert!(ioctl::GET_API_VERSION == 0x8008_8100);
    assert!(ioctl::CREATE_DEV == 0x4150_8102);
    assert!(ioctl::DESTROY_DEV == 0x4100_8103);
    assert!(ioctl::GET_FEATURES == 0x8008_8104);
    assert!(ioctl::SET_FEATURES == 0x4008_8105);
    assert!(ioctl::IOTLB_GET_FD == 0xc020_8110);
    assert!(ioctl::DEV_INJECT_CONFIG_IRQ == 0x0000_8113);
    assert!(ioctl::VQ_GET_INFO == 0xc030_8115);
    assert!(ioctl::IOTLB_GET_FD2 == 0xc050_811b);
    assert!(ioctl::COMPAT_IOTLB_GET_FD == 0xc01c_8110);
    assert!(ioctl::COMPAT_VQ_GET_INFO == 0xc02c_8115);
};
