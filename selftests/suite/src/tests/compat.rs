// SPDX-License-Identifier: GPL-2.0

//! ioctls that 32-bit programs call, above all those whose structure has a different layout in
//! 32-bit programs than in 64-bit programs.

use std::os::fd::{AsFd, FromRawFd, OwnedFd};

use rustix::io::Errno;
use vduse::Mapping;
use vduse_uapi::ioctl;
use vduse_uapi::ACCESS_RW;

use crate::lab::assert::errors::{fails, fails_at};
use crate::lab::driver::virtio_disk::{LiveDisk, Shape};
use crate::lab::kernel::compat::Low;
use crate::lab::kernel::probe::Prober;
use crate::lab::kernel::raw::Bytes;

tests![
    the_control_device_works,
    get_fd_has_a_layout_of_its_own,
    get_fd_where_nothing_is_mapped_is_einval_and_makes_no_descriptor,
    get_fd_that_cannot_answer_is_efault_and_makes_no_descriptor,
    get_fd_with_start_behind_last_is_einval,
    get_fd_is_close_on_exec,
    get_info_of_a_queue_has_a_layout_of_its_own,
    get_info_needs_an_index_below_vq_num,
    other_calls_are_the_same,
    unknown_commands_are_enotty,
];

fn the_control_device_works() {
    let low = Low::new();
    let control = vduse::Control::open().unwrap();
    let mut version = [0xff; 8];
    low.ioctl(&control, ioctl::GET_API_VERSION, &mut version)
        .unwrap();
    assert_eq!(u64::from_ne_bytes(version), 1);
    let number = ioctl::SET_API_VERSION;
    fails(low.ioctl(&control, number, &mut [2; 8]), Errno::INVAL);
}

/// Builds the argument of `IOTLB_GET_FD` in the 28-byte layout of 32-bit programs.
fn entry(first: u64, last: u64) -> Vec<u8> {
    Bytes::new().u64(0).u64(first).u64(last).zeroes(4).0
}

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn get_fd_has_a_layout_of_its_own() {
    let low = Low::new();
    let disk = LiveDisk::new(Shape::default());
    let ring = disk.vduse().vq_info(0).unwrap().desc_addr;
    for iova in [0, ring] {
        let wanted = disk.vduse().iotlb_fd(iova, iova).unwrap();
        let mut bytes = entry(iova, iova);
        // These bytes follow the structure, so the driver must not write to them.
        bytes.extend([0xee; 4]);
        let fd = low
            .ioctl(disk.vduse(), ioctl::COMPAT_IOTLB_GET_FD, &mut bytes)
            .unwrap();
        // SAFETY: The call above created the descriptor, and nothing else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        assert_eq!(word(&bytes, 0), wanted.offset);
        assert_eq!(
            (word(&bytes, 8), word(&bytes, 16)),
            (wanted.first, wanted.last)
        );
        assert_eq!((bytes[24], &bytes[28..]), (wanted.access, &[0xee; 4][..]));
        if iova == ring {
            let mapping = Mapping::of_file(fd.as_fd(), wanted.offset, 4096, ACCESS_RW).unwrap();
            Prober::new().read(mapping.address(), 16).unwrap();
        }
    }
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

fn get_fd_where_nothing_is_mapped_is_einval_and_makes_no_descriptor() {
    let low = Low::new();
    let disk = LiveDisk::new(Shape::default());
    let before = descriptors();
    let mut bytes = entry(1 << 40, 1 << 40);
    let result = low.ioctl(disk.vduse(), ioctl::COMPAT_IOTLB_GET_FD, &mut bytes);
    fails(result, Errno::INVAL);
    assert_eq!(descriptors(), before);
}

fn get_fd_that_cannot_answer_is_efault_and_makes_no_descriptor() {
    let low = Low::new();
    let disk = LiveDisk::new(Shape::default());
    let before = descriptors();
    let result = low.ioctl_read_only(disk.vduse(), ioctl::COMPAT_IOTLB_GET_FD, &entry(0, 0));
    fails(result, Errno::FAULT);
    assert_eq!(descriptors(), before);
}

fn get_fd_with_start_behind_last_is_einval() {
    let low = Low::new();
    let disk = LiveDisk::new(Shape::default());
    let mut bytes = entry(1, 0);
    let result = low.ioctl(disk.vduse(), ioctl::COMPAT_IOTLB_GET_FD, &mut bytes);
    fails(result, Errno::INVAL);
}

fn get_fd_is_close_on_exec() {
    let low = Low::new();
    let disk = LiveDisk::new(Shape::default());
    let fd = low
        .ioctl(disk.vduse(), ioctl::COMPAT_IOTLB_GET_FD, &mut entry(0, 0))
        .unwrap();
    // SAFETY: The call above created the descriptor, and nothing else owns it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let flags = rustix::io::fcntl_getfd(&fd).unwrap();
    assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
}

fn get_info_of_a_queue_has_a_layout_of_its_own() {
    let low = Low::new();
    let disk = LiveDisk::new(Shape {
        queues: 2,
        ..Default::default()
    });
    for queue in 0..2 {
        let wanted = disk.vduse().vq_info(queue).unwrap();
        let mut bytes = Bytes::new().u32(queue).zeroes(40).0;
        bytes.extend([0xee; 4]);
        low.ioctl(disk.vduse(), ioctl::COMPAT_VQ_GET_INFO, &mut bytes)
            .unwrap();
        assert_eq!(bytes[..4], queue.to_ne_bytes());
        assert_eq!(bytes[4..8], wanted.num.to_ne_bytes());
        assert_eq!(word(&bytes, 8), wanted.desc_addr);
        assert_eq!(word(&bytes, 16), wanted.driver_addr);
        assert_eq!(word(&bytes, 24), wanted.device_addr);
        assert_eq!((wanted.ready, bytes[40]), (1, 1));
        assert_eq!(bytes[44..], [0xee; 4]);
    }
}

fn get_info_needs_an_index_below_vq_num() {
    let low = Low::new();
    let disk = LiveDisk::new(Shape::default());
    for index in [1, 0x1_0000, u32::MAX] {
        let mut bytes = Bytes::new().u32(index).zeroes(40).0;
        let result = low.ioctl(disk.vduse(), ioctl::COMPAT_VQ_GET_INFO, &mut bytes);
        fails_at(result, Errno::INVAL, index);
    }
}

fn other_calls_are_the_same() {
    let low = Low::new();
    let disk = LiveDisk::new(Shape::default());
    let mut features = [0; 8];
    low.ioctl(disk.vduse(), ioctl::DEV_GET_FEATURES, &mut features)
        .unwrap();
    assert_eq!(
        u64::from_ne_bytes(features),
        disk.vduse().features().unwrap()
    );
    low.ioctl(disk.vduse(), ioctl::VQ_INJECT_IRQ, &mut [0; 4])
        .unwrap();
    let mut info = Bytes::new().u64(0).u64(0).u64(0).zeroes(24).0;
    low.ioctl(disk.vduse(), ioctl::IOTLB_GET_INFO, &mut info)
        .unwrap();
    assert_eq!(word(&info, 16), vduse_uapi::IOVA_CAP_UMEM);
    // The driver also accepts a structure in its 64-bit layout from a 32-bit program.
    let mut info = Bytes::new().u32(0).zeroes(44).0;
    low.ioctl(disk.vduse(), ioctl::VQ_GET_INFO, &mut info)
        .unwrap();
    assert_eq!(info[40], 1);
}

fn unknown_commands_are_enotty() {
    let low = Low::new();
    let disk = LiveDisk::new(Shape::default());
    for number in [0x8100 | 0x7f, ioctl::IOTLB_GET_FD2, ioctl::CREATE_DEV] {
        let result = low.ioctl(disk.vduse(), number, &mut [0; 512]);
        fails_at(result, Errno::NOTTY, format_args!("{number:#x}"));
    }
}
