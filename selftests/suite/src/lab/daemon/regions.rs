// SPDX-License-Identifier: GPL-2.0

//! Functions with which a daemon looks up the memory region at an IOVA of an address space.

use std::io;
use std::os::fd::AsFd;

use vduse::device::Region;
use vduse::{Device, Mapping};
use vduse_uapi::{ioctl, IotlbEntryV2};

use crate::lab::kernel::raw;

/// Returns the byte that a daemon sees at an IOVA of an address space.
#[track_caller]
pub fn first_byte(device: &Device, asid: u32, iova: u64) -> io::Result<u8> {
    let region = device.iotlb_fd2(asid, iova, iova)?;
    let at = region.offset + (iova - region.first);
    let mapping = Mapping::of_file(region.file.as_fd(), at, 1, region.access)?;
    let mut byte = [0];
    vm_memory::Bytes::read_slice(&mapping.bytes(), &mut byte, 0).expect("inside the mapping");
    Ok(byte[0])
}

/// Variant of [`Device::iotlb_fd2`] that passes a reserved field that is not 0.
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

/// Finds a region with the ioctl `IOTLB_GET_FD2`, whose argument is `entry`.
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
