// SPDX-License-Identifier: GPL-2.0

//! The file of a VDUSE device. Most tests here check the file's ioctls while the device has no
//! driver.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use vduse::Device;
use vduse_uapi::{ioctl, VqConfig, VqEventfd};

use crate::lab::assert::data::assert_same;
use crate::lab::assert::errors::{fails, fails_at};
use crate::lab::assert::race::beside;
use crate::lab::daemon::responder::Responder;
use crate::lab::device::bus::{Driver, OnBus};
use crate::lab::device::test_device::{disk_config, TestDevice};
use crate::lab::driver::bare_disk::open_vhost;
use crate::lab::kernel::memory;
use crate::lab::kernel::raw::{self, Edge};

tests![
    a_second_open_is_ebusy,
    a_device_can_be_opened_again,
    a_device_that_is_not_there_is_enoent,
    unknown_commands_are_enotty,
    bad_pointers_are_efault,
    features_are_0_without_a_driver,
    set_config_changes_what_lies_inside,
    set_config_beyond_the_end_is_einval,
    set_config_of_nothing_is_einval,
    set_config_without_end_leaves_time_in_between,
    set_config_from_nothing_is_efault_and_changes_nothing,
    vq_setup_needs_an_index_below_vq_num,
    vq_setup_reserved_fields_must_be_0,
    vq_setup_group_must_be_0_in_version_0,
    vq_setup_can_be_repeated,
    vq_get_info_of_a_queue_that_nobody_uses_is_0,
    vq_get_info_needs_an_index_below_vq_num,
    kickfd_needs_an_index_below_vq_num,
    kickfd_that_is_not_open_is_ebadf,
    kickfd_that_is_no_eventfd_is_einval,
    kickfd_can_be_set_and_taken_away,
    kickfd_below_minus_1_is_einval,
    a_failed_kickfd_keeps_the_old_one,
    injection_without_a_driver_is_einval,
    injection_needs_an_index_below_vq_num,
    iotlb_without_a_driver_is_einval,
    umem_without_a_driver_is_einval,
    version_1_ioctl_on_version_0_is_enotty,
    read_without_requests_is_eagain,
    write_without_requests_is_enoent,
    seeking_does_no_harm,
    a_config_space_is_written_as_a_whole => 40,
];

fn a_second_open_is_ebusy() {
    let device = TestDevice::disk();
    let file = device.open();
    fails(Device::open(device.name()), Errno::BUSY);
    fails(Device::open_nonblocking(device.name()), Errno::BUSY);
    drop(file);
    device.open();
}

fn a_device_can_be_opened_again() {
    let device = TestDevice::disk();
    for _ in 0..10 {
        device.open();
    }
}

fn a_device_that_is_not_there_is_enoent() {
    fails(Device::open("nothing-of-the-kind"), Errno::NOENT);
}

fn unknown_commands_are_enotty() {
    let device = TestDevice::disk();
    let file = device.open();
    let kind = 0x81;
    let numbers = [
        raw::number(raw::NONE, kind, 0x1f, 0),
        raw::number(raw::READ, kind, 0x11, 4),
        raw::number(raw::WRITE, kind, 0x14, 16),
        raw::number(raw::NONE, kind, 0xff, 0),
        raw::number(raw::WRITE, b'x', 0x14, 32),
        ioctl::CREATE_DEV,
        ioctl::DESTROY_DEV,
        ioctl::GET_API_VERSION,
    ];
    for number in numbers {
        let result = raw::call(&file, number, &mut [0; 512]);
        fails_at(result, Errno::NOTTY, format_args!("{number:#x}"));
    }
}

fn bad_pointers_are_efault() {
    let device = TestDevice::disk();
    let file = device.open();
    for number in [
        ioctl::IOTLB_GET_FD,
        ioctl::DEV_GET_FEATURES,
        ioctl::DEV_SET_CONFIG,
        ioctl::VQ_SETUP,
        ioctl::VQ_GET_INFO,
        ioctl::VQ_SETUP_KICKFD,
        ioctl::VQ_INJECT_IRQ,
        ioctl::IOTLB_REG_UMEM,
        ioctl::IOTLB_DEREG_UMEM,
        ioctl::IOTLB_GET_INFO,
    ] {
        let at = format!("{number:#x}");
        fails_at(raw::call_at_nothing(&file, number), Errno::FAULT, &at);
        let size = (number >> 16) as usize & 0x3fff;
        let half = vec![0; size / 2];
        fails_at(Edge::new().call(&file, number, &half), Errno::FAULT, &at);
    }
}

fn features_are_0_without_a_driver() {
    let device = TestDevice::disk();
    assert_eq!(device.open().features().unwrap(), 0);
}

fn set_config_changes_what_lies_inside() {
    let config = disk_config();
    let len = config.space.len() as u32;
    let device = TestDevice::new(&config);
    let file = device.open();
    file.set_config(0, &[1; 8]).unwrap();
    file.set_config(len - 1, &[2]).unwrap();
    file.set_config(0, &vec![3; len as usize]).unwrap();
}

fn set_config_beyond_the_end_is_einval() {
    let config = disk_config();
    let len = config.space.len() as u32;
    let device = TestDevice::new(&config);
    let file = device.open();
    let set = |offset: u32, length: u32| {
        let mut bytes = raw::Bytes::new().u32(offset).u32(length).zeroes(4096).0;
        raw::call(&file, ioctl::DEV_SET_CONFIG, &mut bytes)
    };
    for (offset, length) in [
        (0, len + 1),
        (1, len),
        (len, 1),
        (len + 1, 1),
        (len - 1, 2),
        (u32::MAX, 1),
        (u32::MAX, u32::MAX),
        // As 32-bit numbers, the sums of the next two pairs wrap around to 0 and to 1.
        (0xffff_fff8, 8),
        (8, 0xffff_fff9),
        (0, u32::MAX),
    ] {
        fails_at(set(offset, length), Errno::INVAL, (offset, length));
    }
}

/// Checks that SET_CONFIG calls are on average at least 5 ms apart. A virtio driver reads related
/// config fields again if the daemon has changed the config space meanwhile, so the driver can
/// finish only in a pause between two changes.
fn set_config_without_end_leaves_time_in_between() {
    const WRITERS: u32 = 4;
    const WRITES: u32 = 20;
    const BETWEEN: Duration = Duration::from_millis(5);
    let config = disk_config();
    let device = TestDevice::new(&config);
    let file = device.open();
    let begin = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..WRITERS {
            scope.spawn(|| (0..WRITES).for_each(|_| file.set_config(0, &config.space).unwrap()));
        }
    });
    let took = begin.elapsed();
    assert!(took >= BETWEEN * (WRITERS * WRITES - 1), "{took:?}");
    // SET_CONFIG calls that the VDUSE driver refuses return without a pause.
    let begin = Instant::now();
    for _ in 0..1000 {
        fails(file.set_config(1, &config.space), Errno::INVAL);
    }
    let took = begin.elapsed();
    assert!(took < BETWEEN * 999, "{took:?}");
}

fn set_config_of_nothing_is_einval() {
    let device = TestDevice::disk();
    let file = device.open();
    fails(file.set_config(0, &[]), Errno::INVAL);
    fails(file.set_config(60, &[]), Errno::INVAL);
}

fn set_config_from_nothing_is_efault_and_changes_nothing() {
    let device = TestDevice::disk();
    let file = device.open_ready(1);
    let on_bus = crate::lab::device::bus::OnBus::add(device.name()).unwrap();
    let before = crate::lab::device::bus::vdpa()
        .config(on_bus.name())
        .unwrap();
    // The ioctl has to read eight bytes of config data, but only the first four are mapped.
    let bytes = raw::Bytes::new().u32(0).u32(8).u32(0xffff_ffff).0;
    fails(
        Edge::new().call(&file, ioctl::DEV_SET_CONFIG, &bytes),
        Errno::FAULT,
    );
    let after = crate::lab::device::bus::vdpa()
        .config(on_bus.name())
        .unwrap();
    assert_eq!(before, after);
}

fn vq_setup_needs_an_index_below_vq_num() {
    let device = TestDevice::disk();
    let file = device.open();
    file.vq_setup(0, 64).unwrap();
    for index in [1, 2, 0xffff, 0x1_0000, u32::MAX] {
        let result = file.vq_setup_raw(&VqConfig {
            index,
            max_size: 64,
            ..Default::default()
        });
        fails_at(result, Errno::INVAL, index);
    }
}

fn vq_setup_reserved_fields_must_be_0() {
    let device = TestDevice::disk();
    let file = device.open();
    let config = VqConfig {
        max_size: 64,
        ..Default::default()
    };
    let reserved1 = VqConfig {
        reserved1: 1,
        ..config
    };
    fails(file.vq_setup_raw(&reserved1), Errno::INVAL);
    for index in 0..10 {
        let mut config = config;
        config.reserved2[index] = 0x100;
        fails_at(file.vq_setup_raw(&config), Errno::INVAL, index);
    }
    file.vq_setup_raw(&config).unwrap();
}

fn vq_setup_group_must_be_0_in_version_0() {
    let device = TestDevice::disk();
    let file = device.open();
    for group in [1, u32::MAX] {
        let result = file.vq_setup_raw(&VqConfig {
            max_size: 64,
            group,
            ..Default::default()
        });
        fails_at(result, Errno::INVAL, group);
    }
}

fn vq_setup_can_be_repeated() {
    let device = TestDevice::disk();
    let file = device.open();
    for size in [64, 64, 128, 1, u16::MAX, 64] {
        file.vq_setup(0, size).unwrap();
    }
}

fn vq_get_info_of_a_queue_that_nobody_uses_is_0() {
    let device = TestDevice::disk();
    let file = device.open();
    file.vq_setup(0, 64).unwrap();
    let info = file.vq_info(0).unwrap();
    assert_eq!((info.index, info.num, info.ready), (0, 0, 0));
    assert_eq!((info.desc_addr, info.driver_addr), (0, 0));
    assert_eq!((info.device_addr, info.state.split()), (0, 0));
}

fn vq_get_info_needs_an_index_below_vq_num() {
    let device = TestDevice::disk();
    let file = device.open();
    for index in [1, 0xffff, 0x1_0000, u32::MAX] {
        fails_at(file.vq_info(index), Errno::INVAL, index);
    }
}

/// Sets the kick eventfd of a virtqueue to the descriptor `fd`, or to no eventfd if `fd` is -1.
fn kickfd(file: &Device, index: u32, fd: i32) -> io::Result<()> {
    file.set_kick_raw(&VqEventfd { index, fd })
}

fn eventfd() -> (vduse::eventfd::EventFd, i32) {
    use std::os::fd::{AsFd, AsRawFd};
    let event = vduse::eventfd::EventFd::new().unwrap();
    let number = event.as_fd().as_raw_fd();
    (event, number)
}

fn kickfd_needs_an_index_below_vq_num() {
    let device = TestDevice::disk();
    let file = device.open();
    let (_event, fd) = eventfd();
    for index in [1, 0xffff, u32::MAX] {
        fails_at(kickfd(&file, index, fd), Errno::INVAL, index);
        fails_at(kickfd(&file, index, -1), Errno::INVAL, index);
    }
}

fn kickfd_that_is_not_open_is_ebadf() {
    let device = TestDevice::disk();
    let file = device.open();
    for fd in [1000, i32::MAX] {
        fails_at(kickfd(&file, 0, fd), Errno::BADF, fd);
    }
}

fn kickfd_that_is_no_eventfd_is_einval() {
    use std::os::fd::AsRawFd;
    let device = TestDevice::disk();
    let file = device.open();
    let other = std::fs::File::open("/dev/null").unwrap();
    fails(kickfd(&file, 0, other.as_raw_fd()), Errno::INVAL);
}

fn kickfd_can_be_set_and_taken_away() {
    let device = TestDevice::disk();
    let file = device.open();
    let (event, fd) = eventfd();
    for _ in 0..3 {
        kickfd(&file, 0, fd).unwrap();
        kickfd(&file, 0, fd).unwrap();
        kickfd(&file, 0, -1).unwrap();
        kickfd(&file, 0, -1).unwrap();
    }
    assert_eq!(event.take().unwrap(), 0);
    // The test leaves one eventfd set, so that the driver must release it when the device is
    // closed.
    kickfd(&file, 0, fd).unwrap();
}

fn kickfd_below_minus_1_is_einval() {
    let device = TestDevice::disk();
    let file = device.open();
    for fd in [-2, -100, i32::MIN] {
        fails_at(kickfd(&file, 0, fd), Errno::INVAL, fd);
    }
}

fn a_failed_kickfd_keeps_the_old_one() {
    let device = TestDevice::disk();
    let file = std::sync::Arc::new(device.open_ready(1));
    let responder = crate::lab::daemon::responder::Responder::ok(&file);
    let on_bus = crate::lab::device::bus::OnBus::add(device.name()).unwrap();
    on_bus.bind(crate::lab::device::bus::Driver::Vhost).unwrap();
    let path = crate::lab::device::bus::vhost_path(device.name()).unwrap();
    let vhost = crate::lab::driver::vhost::Vhost::open(&path).unwrap();
    let driver = crate::lab::driver::ring::HandDriver::prepare(vhost, 0x10000);
    driver.set_queue_up();
    driver.start();
    let (event, fd) = eventfd();
    kickfd(&file, 0, fd).unwrap();
    fails(kickfd(&file, 0, 1000), Errno::BADF);
    driver.kick.signal().unwrap();
    crate::lab::assert::timing::soon("the kick arrives", || event.take().unwrap() > 0);
    drop(driver);
    drop(on_bus);
    drop(responder);
}

fn injection_without_a_driver_is_einval() {
    let device = TestDevice::disk();
    let file = device.open_ready(1);
    fails(file.inject_vq_irq(0), Errno::INVAL);
    fails(file.inject_config_irq(), Errno::INVAL);
}

fn injection_needs_an_index_below_vq_num() {
    let device = TestDevice::disk();
    let file = device.open_ready(1);
    for index in [1, 0xffff, 0x1_0000, u32::MAX] {
        fails_at(file.inject_vq_irq(index), Errno::INVAL, index);
    }
}

fn iotlb_without_a_driver_is_einval() {
    let device = TestDevice::disk();
    let file = device.open_ready(1);
    fails(file.iotlb_fd(0, u64::MAX), Errno::INVAL);
    fails(file.iotlb_info(Default::default()), Errno::INVAL);
}

fn umem_without_a_driver_is_einval() {
    let device = TestDevice::disk();
    let file = device.open_ready(1);
    let umem = vduse_uapi::IovaUmem {
        uaddr: 0x10000,
        size: 64 << 20,
        ..Default::default()
    };
    // SAFETY: No memory is mapped at this address, and the call registers none.
    fails(unsafe { file.register_umem(&umem) }, Errno::INVAL);
    fails(file.deregister_umem(&umem), Errno::NOENT);
}

fn version_1_ioctl_on_version_0_is_enotty() {
    let device = TestDevice::disk();
    fails(device.open().iotlb_fd2(0, 0, u64::MAX), Errno::NOTTY);
}

fn read_without_requests_is_eagain() {
    let device = TestDevice::disk();
    fails(device.open_nonblocking().read_raw(), Errno::AGAIN);
}

fn write_without_requests_is_enoent() {
    let device = TestDevice::disk();
    let file = device.open_nonblocking();
    for request_id in [0, 1, u32::MAX] {
        let response = vduse_uapi::DevResponse {
            request_id,
            ..Default::default()
        };
        fails_at(file.write_raw(&response), Errno::NOENT, request_id);
    }
}

fn seeking_does_no_harm() {
    let device = TestDevice::disk();
    let file = device.open_nonblocking();
    rustix::fs::seek(&file, rustix::fs::SeekFrom::Start(100)).unwrap();
    fails(file.read_raw(), Errno::AGAIN);
}

fn a_config_space_is_written_as_a_whole() {
    // The configuration space has the largest possible size.
    let len = memory::PAGE as usize;
    let mut config = disk_config();
    config.space = vec![0; len];
    let device = TestDevice::new(&config);
    let file = Arc::new(device.open_ready(1));
    let _responder = Responder::ok(&file);
    let on_bus = OnBus::add(device.name()).unwrap();
    on_bus.bind(Driver::Vhost).unwrap();
    let vhost = open_vhost(device.name());
    beside(
        || {
            for byte in [0x11, 0xee] {
                file.set_config(0, &vec![byte; len]).unwrap();
            }
        },
        || {
            let found = vhost.config(0, len).unwrap();
            assert_same(&found, &vec![found[0]; len], "the configuration space");
        },
    );
    drop(vhost);
    drop(on_bus);
}
