// SPDX-License-Identifier: GPL-2.0

//! The device as a virtual machine's driver sees it through vhost-vdpa.

use std::os::unix::fs::FileExt;

use rustix::io::Errno;

use crate::lab::assert::data::assert_same;
use crate::lab::assert::errors::fails;
use crate::lab::assert::timing::soon;
use crate::lab::daemon::disk::{memory_file, Served};
use crate::lab::device::bus::{self, Driver, OnBus};
use crate::lab::device::test_device::TestDevice;
use crate::lab::device::virtio::id;
use crate::lab::device::virtio::status::{ACKNOWLEDGE, DRIVER, RESET, UP_TO_FEATURES_OK};
use crate::lab::driver::ring::HandDriver;
use crate::lab::driver::vhost::{backend, Vhost};

tests![
    a_device_says_what_it_is,
    the_config_space_is_read_and_not_written,
    config_beyond_the_end_is_einval,
    a_second_open_is_ebusy,
    features_cannot_change_after_features_ok,
    data_of_the_disk_arrives,
    requests_are_interrupts,
    a_driver_can_come_again,
    a_device_goes_from_one_driver_to_the_other_and_back,
    invalidated_memory_is_looked_up_again,
];

/// A served disk bound to vhost-vdpa. The fields are dropped in declaration order.
struct Machine {
    on_bus: OnBus,
    _served: Served,
    file: std::sync::Arc<std::fs::File>,
    device: TestDevice,
}

impl Machine {
    #[track_caller]
    fn new() -> Self {
        let device = TestDevice::disk();
        let file = memory_file(1 << 20);
        for sector in 0..16u8 {
            file.write_all_at(&[sector + 1; 512], u64::from(sector) * 512)
                .expect("filling the disk");
        }
        let served =
            Served::start(device.open_nonblocking(), 1, file.clone()).expect("serving the disk");
        let on_bus = OnBus::add(device.name()).expect("adding");
        on_bus.bind(Driver::Vhost).expect("binding");
        Self {
            on_bus,
            _served: served,
            file,
            device,
        }
    }

    #[track_caller]
    fn vhost(&self) -> Vhost {
        Vhost::open(&bus::vhost_path(self.device.name()).expect("a node")).expect("opening")
    }

    #[track_caller]
    fn driver(&self) -> HandDriver {
        let driver = HandDriver::prepare(self.vhost(), 0x7_0000_0000);
        driver.set_queue_up();
        driver.start();
        driver
    }
}

fn a_device_says_what_it_is() {
    let machine = Machine::new();
    let vhost = machine.vhost();
    assert_eq!(vhost.device_id().unwrap(), id::BLOCK);
    assert_eq!(vhost.queues().unwrap(), 1);
    assert_eq!(vhost.groups().unwrap(), 1);
    assert_eq!(vhost.address_spaces().unwrap(), 1);
    assert_eq!(vhost.max_queue_size().unwrap(), 256);
    assert_eq!(vhost.config_size().unwrap(), 60);
    assert_eq!(vhost.iova_range().unwrap(), (0, u64::MAX));
    assert_eq!(vhost.features().unwrap(), vduse::blk::FEATURES);
    assert_ne!(vhost.backend_features().unwrap() & backend::IOTLB_MSG_V2, 0);
    assert_eq!(vhost.status().unwrap(), RESET);
}

fn the_config_space_is_read_and_not_written() {
    let machine = Machine::new();
    let vhost = machine.vhost();
    let space = vduse::blk::config_space((1 << 20) / 512, 1);
    assert_eq!(vhost.config(0, 60).unwrap(), space);
    assert_eq!(vhost.config(20, 4).unwrap(), 512u32.to_le_bytes());
    vhost.set_config(0, &[0xff; 8]).unwrap();
    assert_eq!(vhost.config(0, 60).unwrap(), space);
}

fn config_beyond_the_end_is_einval() {
    let machine = Machine::new();
    let vhost = machine.vhost();
    for (offset, len) in [(0, 61), (60, 1), (61, 1), (u32::MAX, 1)] {
        fails(vhost.config(offset, len), Errno::INVAL);
    }
}

fn a_second_open_is_ebusy() {
    let machine = Machine::new();
    let vhost = machine.vhost();
    let path = bus::vhost_path(machine.device.name()).unwrap();
    fails(Vhost::open(&path), Errno::BUSY);
    drop(vhost);
    machine.vhost();
}

fn features_cannot_change_after_features_ok() {
    let machine = Machine::new();
    let vhost = machine.vhost();
    let features = vhost.features().unwrap();
    vhost.set_status(ACKNOWLEDGE | DRIVER).unwrap();
    vhost.set_features(features).unwrap();
    vhost.set_status(UP_TO_FEATURES_OK).unwrap();
    fails(vhost.set_features(features), Errno::BUSY);
}

fn data_of_the_disk_arrives() {
    let machine = Machine::new();
    let mut driver = machine.driver();
    for round in 0..40u64 {
        let sector = round % 16;
        assert_same(&driver.read(sector), &[sector as u8 + 1; 512], "a sector");
    }
    // A read beyond the disk's end fails.
    driver.submit_read(1 << 40);
    assert_eq!(driver.finish_read().1, 1);
}

fn requests_are_interrupts() {
    let machine = Machine::new();
    let mut driver = machine.driver();
    driver.read(0);
    soon("an interrupt", || driver.call.take().unwrap() > 0);
}

fn a_driver_can_come_again() {
    let machine = Machine::new();
    for _ in 0..5 {
        let mut driver = machine.driver();
        assert_same(&driver.read(3), &[4; 512], "a sector");
    }
}

fn a_device_goes_from_one_driver_to_the_other_and_back() {
    let machine = Machine::new();
    for round in 0..3u8 {
        let mut driver = machine.driver();
        let expected = if round == 0 { 6 } else { 100 + round - 1 };
        assert_same(&driver.read(5), &[expected; 512], "a sector");
        // The client unmaps its memory, as a virtual machine does when it ends.
        driver.vhost.set_status(RESET).unwrap();
        driver.vhost.unmap(0, u64::MAX).unwrap();
        drop(driver);
        machine.on_bus.unbind(Driver::Vhost).unwrap();
        machine.on_bus.bind(Driver::Virtio).unwrap();
        let disk = bus::disk_name(machine.device.name()).expect("a disk");
        let block = crate::lab::driver::block::Block::open(&disk).unwrap();
        assert_same(&block.read(5 * 512, 512).unwrap(), &[expected; 512], "it");
        block.write(5 * 512, &[100 + round; 512]).unwrap();
        drop(block);
        machine.on_bus.unbind(Driver::Virtio).unwrap();
        machine.on_bus.bind(Driver::Vhost).unwrap();
        let mut data = [0; 512];
        machine.file.read_exact_at(&mut data, 5 * 512).unwrap();
        assert_same(&data, &[100 + round; 512], "the file");
    }
}

fn invalidated_memory_is_looked_up_again() {
    let machine = Machine::new();
    let mut driver = machine.driver();
    assert_same(&driver.read(1), &[2; 512], "a sector");
    // Replaces the memory at these IOVAs with other memory.
    driver.move_memory();
    assert_same(&driver.read(2), &[3; 512], "a sector");
    assert_same(&driver.read(1), &[2; 512], "a sector");
}
