// SPDX-License-Identifier: GPL-2.0

//! Unloading the module when nothing uses it, and loading it again.

use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use vduse::control::CONTROL_PATH;
use vduse::Mapping;
use vduse_uapi::ACCESS_RW;

use crate::lab::assert::errors::{fails, fails_at};
use crate::lab::assert::timing::soon;
use crate::lab::daemon::answered::Answered;
use crate::lab::daemon::regions::first_byte;
use crate::lab::device::bus;
use crate::lab::device::test_device::TestDevice;
use crate::lab::device::virtio::feature;
use crate::lab::driver::hand_card::{accepted, hand_config, HandCard};
use crate::lab::driver::rtnl::{Watch, SLACK};
use crate::lab::driver::vhost::access;
use crate::lab::driver::virtio_disk::{LiveDisk, Shape};
use crate::lab::kernel::loading::{self, load, try_unload, unload, LoadAgain};
use crate::lab::kernel::memory::{self, PAGE};
use crate::lab::kernel::sysfs;
use crate::lab::run::report::note;

tests![
    an_idle_module_is_unloaded_and_leaves_nothing,
    a_loaded_module_works_again,
    an_open_device_keeps_the_module_until_it_is_closed,
    a_descriptor_of_a_domain_keeps_the_module_until_it_is_closed,
    a_mapping_of_a_domain_keeps_the_module_until_it_is_gone,
    each_space_has_max_iotlb_entries_of_its_own,
    maps_that_there_is_no_room_for_take_no_time,
    rings_leave_room_for_the_bounce_area,
    a_control_timeout_of_0_hides_control_queues,
    a_short_control_timeout_is_kept_to,
];

fn an_idle_module_is_unloaded_and_leaves_nothing() {
    let _again = LoadAgain;
    unload();
    assert!(!Path::new(CONTROL_PATH).exists());
    assert!(!Path::new(sysfs::CLASS).exists());
    assert!(!Path::new("/sys/devices/vduse").exists());
    let devices = std::fs::read_to_string("/proc/devices").unwrap();
    assert!(!devices.contains(" vduse"), "{devices}");
    let management = bus::vdpa().management_devices().unwrap();
    assert!(management.iter().all(|device| device.name != "vduse"));
}

fn a_loaded_module_works_again() {
    for _ in 0..3 {
        let again = LoadAgain;
        unload();
        drop(again);
        let disk = LiveDisk::new(Shape::default());
        disk.block().write(0, &[1; 4096]).unwrap();
        drop(disk);
    }
}

/// Asserts that the module cannot be unloaded until `keeper` is dropped.
#[track_caller]
fn is_kept_by<T>(keeper: T) {
    let _again = LoadAgain;
    try_unload().expect_err("the module was unloaded");
    drop(keeper);
    // The kernel defers the final release of a file, so unloading may fail at first.
    soon("the module is unloaded", || try_unload().is_ok());
}

fn an_open_device_keeps_the_module_until_it_is_closed() {
    let device = TestDevice::disk();
    let file = device.open();
    is_kept_by((file, device));
}

fn a_descriptor_of_a_domain_keeps_the_module_until_it_is_closed() {
    let disk = LiveDisk::new(Shape::default());
    let region = disk.vduse().iotlb_fd(0, 0).unwrap();
    drop(disk);
    is_kept_by(region);
}

fn a_mapping_of_a_domain_keeps_the_module_until_it_is_gone() {
    let disk = LiveDisk::new(Shape::default());
    let region = disk.vduse().iotlb_fd(0, 0).unwrap();
    let mapping = Mapping::of_file(region.file.as_fd(), 0, 1 << 20, ACCESS_RW).unwrap();
    drop(region);
    drop(disk);
    is_kept_by(mapping);
}

/// A guard for a module parameter. The module stays loaded with the parameter until the guard is
/// dropped.
struct Parameter;

impl Parameter {
    #[track_caller]
    fn set(parameter: &str) -> Self {
        unload();
        let set = Self;
        load(&[parameter]);
        set
    }
}

impl Drop for Parameter {
    fn drop(&mut self) {
        if loading::is_loaded() {
            let _ = try_unload();
        }
        drop(LoadAgain);
    }
}

fn each_space_has_max_iotlb_entries_of_its_own() {
    // This limit is far lower than vhost's own.
    const MOST: u64 = 8;
    let _parameter = Parameter::set(&format!("max_iotlb_entries={MOST}"));
    let answered = Answered::new(&[0], 1, 3);
    let vhost = answered.vhost();
    let page = memory::page_of(1);
    let iova = |n: u64| n * 2 * PAGE;
    for asid in 0..3 {
        for n in 0..MOST {
            vhost.map_in(asid, iova(n), &page, access::RW).unwrap();
        }
        // vhost returns EFAULT for every error of an IOTLB message.
        fails_at(
            vhost.map_in(asid, iova(MOST), &page, access::RW),
            Errno::FAULT,
            asid,
        );
    }
    let found = |asid, n| first_byte(&answered.file, asid, iova(n));
    for asid in 0..3 {
        for n in 0..MOST {
            assert_eq!(found(asid, n).unwrap(), 1, "{n} in {asid}");
        }
        fails_at(found(asid, MOST), Errno::INVAL, asid);
    }
    // After an unmap, there is room for another mapping.
    vhost.unmap_in(1, iova(3), PAGE).unwrap();
    vhost.map_in(1, iova(MOST), &page, access::RW).unwrap();
    assert_eq!(found(1, MOST).unwrap(), 1);
}

fn a_control_timeout_of_0_hides_control_queues() {
    let _parameter = Parameter::set("control_timeout_ms=0");
    let card = HandCard::new(&hand_config(), |_| None);
    let control = feature::NET_CTRL_VQ | feature::NET_MQ | feature::NET_CTRL_MAC_ADDR;
    assert_eq!(accepted(card.device.name()) & control, 0);
    // virtio_net sends no command, so nothing waits for an answer.
    assert!(card.ip("up"));
    assert!(card.ip("address 02:00:00:00:77:01"));
}

fn a_short_control_timeout_is_kept_to() {
    const LIMIT: Duration = Duration::from_millis(100);
    let _parameter = Parameter::set("control_timeout_ms=100");
    let watch = Watch::start();
    let card = HandCard::answering(|_| None);
    assert!(card.ip("up"));
    assert!(!card.ip("address 02:00:00:00:77:01"));
    watch
        .end()
        .assert("a limit of 100 ms", LIMIT + SLACK, 2 * SLACK);
}

fn maps_that_there_is_no_room_for_take_no_time() {
    const MOST: u64 = 8;
    // vhost's own limit is 2048 by default.
    const MANY: u64 = 2000;
    let _parameter = Parameter::set(&format!("max_iotlb_entries={MOST}"));
    let answered = Answered::new(&[0], 1, 1);
    let vhost = answered.vhost();
    let page = memory::page_of(1);
    let iova = |n: u64| n * 2 * PAGE;
    let mut mapped = 0;
    // Measures how long the device takes to refuse a set of `count` maps. vhost has done its own
    // work before the measurement.
    let [few, many] = [MOST + 1, MANY].map(|count| {
        vhost.batch_begin(0).unwrap();
        for n in mapped..count {
            vhost.map_in(0, iova(n), &page, access::RW).unwrap();
        }
        mapped = count;
        let times = (0..100).map(|_| {
            vhost.batch_begin(0).unwrap();
            let begin = Instant::now();
            // vhost does not report that the device refused the maps.
            vhost.batch_end(0).unwrap();
            begin.elapsed()
        });
        times.min().unwrap_or_default()
    });
    fails(answered.file.iotlb_fd(0, u64::MAX), Errno::INVAL);
    note(format_args!("{} maps: {few:?}, {MANY}: {many:?}", MOST + 1));
    assert!(many < few * 3);
}

fn rings_leave_room_for_the_bounce_area() {
    let two_queues = Shape {
        queues: 2,
        ..Default::default()
    };
    {
        let _parameter = Parameter::set("max_iotlb_entries=2");
        let disk = LiveDisk::new(two_queues);
        bus::driver_gives_up(disk.name());
    }
    let _parameter = Parameter::set("max_iotlb_entries=3");
    let disk = LiveDisk::new(two_queues);
    disk.block().write(0, &[1; 4096]).unwrap();
}
