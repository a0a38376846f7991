// SPDX-License-Identifier: GPL-2.0

//! The vDPA bus. VDUSE's management device adds devices to the bus and deletes them.

use std::path::Path;
use std::sync::Arc;

use rustix::io::Errno;
use vduse::request::Kind;
use vduse::Control;

use crate::lab::assert::errors::fails;
use crate::lab::assert::timing::soon;
use crate::lab::assert::waiting::Waiting;
use crate::lab::daemon::disk::{memory_file, Served};
use crate::lab::daemon::responder::Responder;
use crate::lab::device::bus::{self, disk_name, vdpa, Driver, OnBus};
use crate::lab::device::test_device::{disk_config, net_config, TestDevice};
use crate::lab::device::virtio::status::DRIVER_OK;
use crate::lab::device::virtio::{feature, id};
use crate::lab::driver::block;
use crate::lab::driver::virtio_disk::{LiveDisk, Shape};
use crate::lab::kernel::sysfs;

tests![
    the_management_device_is_called_vduse_and_makes_blocks_and_nets,
    the_management_device_makes_file_systems,
    adding_what_was_not_created_is_einval,
    adding_a_device_whose_queues_are_not_set_up_is_einval,
    adding_twice_is_eexist,
    adding_to_no_management_device_is_enodev,
    deleting_what_is_not_on_the_bus_is_enodev,
    destroying_a_device_on_the_bus_is_ebusy,
    a_device_says_what_it_is,
    a_device_is_added_without_a_daemon,
    the_config_of_a_disk_is_what_was_created,
    the_config_of_a_net_is_what_was_created,
    a_short_config_space_reads_as_0,
    a_config_space_reads_as_0_behind_its_end,
    set_config_is_seen_at_once,
    negotiated_features_are_those_of_the_driver,
    a_device_without_a_driver_comes_and_goes,
    adding_again_leaks_nothing,
    adding_a_disk_that_serves_no_data_ends_with_the_next_daemon => 40,
];

fn the_management_device_is_called_vduse_and_makes_blocks_and_nets() {
    let management = vdpa().management_device("vduse").unwrap();
    assert_eq!(management.bus, None);
    let wanted = 1 << id::BLOCK | 1 << id::NET;
    assert_eq!(management.classes & wanted, wanted);
    let all = vdpa().management_devices().unwrap();
    assert!(all.contains(&management));
}

fn the_management_device_makes_file_systems() {
    let management = vdpa().management_device("vduse").unwrap();
    let wanted = 1 << id::BLOCK | 1 << id::NET | 1 << id::FS;
    assert_eq!(management.classes, wanted);
}

fn adding_what_was_not_created_is_einval() {
    fails(vdpa().add("nothing-of-the-kind", "vduse"), Errno::INVAL);
}

fn adding_a_device_whose_queues_are_not_set_up_is_einval() {
    let mut config = disk_config();
    config.queues = 2;
    let device = TestDevice::new(&config);
    let file = device.open();
    fails(vdpa().add(device.name(), "vduse"), Errno::INVAL);
    file.vq_setup(0, 64).unwrap();
    fails(vdpa().add(device.name(), "vduse"), Errno::INVAL);
    file.vq_setup(1, 64).unwrap();
    drop(OnBus::add(device.name()).unwrap());
}

fn adding_twice_is_eexist() {
    let device = TestDevice::disk();
    let _file = device.open_ready(1);
    let on_bus = OnBus::add(device.name()).unwrap();
    fails(vdpa().add(device.name(), "vduse"), Errno::EXIST);
    assert_eq!(vdpa().device(on_bus.name()).unwrap().name, device.name());
}

fn adding_to_no_management_device_is_enodev() {
    let device = TestDevice::disk();
    let _file = device.open_ready(1);
    fails(vdpa().add(device.name(), "vduse-not"), Errno::NODEV);
}

fn deleting_what_is_not_on_the_bus_is_enodev() {
    let device = TestDevice::disk();
    let _file = device.open_ready(1);
    fails(vdpa().delete(device.name()), Errno::NODEV);
}

fn destroying_a_device_on_the_bus_is_ebusy() {
    let device = TestDevice::disk();
    drop(device.open_ready(1));
    let on_bus = OnBus::add(device.name()).unwrap();
    fails(Control::open().unwrap().destroy(device.name()), Errno::BUSY);
    on_bus.delete().unwrap();
    device.destroy().unwrap();
}

fn a_device_says_what_it_is() {
    let mut config = disk_config();
    config.vendor_id = 0x1234_5678;
    config.queues = 3;
    let device = TestDevice::new(&config);
    let file = device.open();
    for (index, size) in [(0, 64), (1, 512), (2, 128)] {
        file.vq_setup(index, size).unwrap();
    }
    let _on_bus = OnBus::add(device.name()).unwrap();
    let info = vdpa().device(device.name()).unwrap();
    assert_eq!(info.name, device.name());
    assert_eq!(info.management_device, "vduse");
    assert_eq!((info.device_id, info.vendor_id), (id::BLOCK, 0x1234_5678));
    assert_eq!((info.queues, info.max_queue_size), (3, 512));
    let all = vdpa().devices().unwrap();
    assert!(all.contains(&info));
}

fn a_device_is_added_without_a_daemon() {
    let device = TestDevice::disk();
    drop(device.open_ready(1));
    let on_bus = OnBus::add(device.name()).unwrap();
    device.open();
    on_bus.delete().unwrap();
}

fn the_config_of_a_disk_is_what_was_created() {
    let mut config = disk_config();
    config.queues = 2;
    config.space = vduse::blk::config_space(0x1_2345_6789, 2);
    let device = TestDevice::new(&config);
    let _file = device.open_ready(2);
    let _on_bus = OnBus::add(device.name()).unwrap();
    let found = vdpa().config(device.name()).unwrap();
    assert_eq!(found.device_id, id::BLOCK);
    assert_eq!(found.features, config.features);
    assert_eq!(found.negotiated_features, None);
    assert_eq!(found.blk_capacity, Some(0x1_2345_6789));
    assert_eq!(found.blk_block_size, Some(512));
    assert_eq!(found.blk_queues, Some(2));
    assert_eq!(found.blk_read_only, Some(false));
}

fn the_config_of_a_net_is_what_was_created() {
    let config = net_config();
    let device = TestDevice::new(&config);
    let _file = device.open_ready(2);
    let _on_bus = OnBus::add(device.name()).unwrap();
    let found = vdpa().config(device.name()).unwrap();
    assert_eq!(found.device_id, id::NET);
    assert_eq!(found.net_mac, Some([2, 0, 0, 0, 0, 1]));
    assert_eq!(found.net_mtu, None);
}

fn a_short_config_space_reads_as_0() {
    let mut config = disk_config();
    // The config space ends in the middle of the capacity field.
    config.space = vec![0xff; 4];
    let device = TestDevice::new(&config);
    let _file = device.open_ready(1);
    let _on_bus = OnBus::add(device.name()).unwrap();
    let found = vdpa().config(device.name()).unwrap();
    assert_eq!(found.blk_capacity, Some(0xffff_ffff));
    assert_eq!(found.blk_block_size, Some(0));
    assert_eq!(found.blk_segments, Some(0));
}

fn a_config_space_reads_as_0_behind_its_end() {
    // virtio_blk reads the config space field by field. The space ends in the middle of the
    // capacity field.
    let mut config = disk_config();
    config.features &= !(feature::BLK_SIZE | feature::BLK_MQ);
    config.space.truncate(4);
    let device = TestDevice::new(&config);
    let served = Served::start(device.open_nonblocking(), 1, memory_file(1 << 20)).unwrap();
    let on_bus = OnBus::add(device.name()).unwrap();
    on_bus.bind(Driver::Virtio).unwrap();
    soon("the disk appears", || disk_name(device.name()).is_some());
    let disk = disk_name(device.name()).unwrap();
    assert_eq!(block::sectors(&disk), Some((1 << 20) / 512));
    // `seg_max`, at offset 12, is beyond the end of the space and reads as 0. virtio_blk then uses
    // 1 segment.
    let segments = Path::new("/sys/block")
        .join(disk)
        .join("queue/max_segments");
    assert_eq!(sysfs::read(&segments).unwrap(), "1");
    drop(on_bus);
    drop(served);
}

fn set_config_is_seen_at_once() {
    let device = TestDevice::disk();
    let file = device.open_ready(1);
    let _on_bus = OnBus::add(device.name()).unwrap();
    file.set_config(0, &7u64.to_le_bytes()).unwrap();
    assert_eq!(vdpa().config(device.name()).unwrap().blk_capacity, Some(7));
    // The daemon writes only one byte of the capacity field.
    file.set_config(1, &[1]).unwrap();
    assert_eq!(
        vdpa().config(device.name()).unwrap().blk_capacity,
        Some(0x107)
    );
}

fn negotiated_features_are_those_of_the_driver() {
    let disk = LiveDisk::new(Shape::default());
    soon("features are agreed on", || {
        vdpa()
            .config(disk.name())
            .unwrap()
            .negotiated_features
            .is_some()
    });
    let config = vdpa().config(disk.name()).unwrap();
    let negotiated = config.negotiated_features.unwrap();
    assert_eq!(negotiated, disk.vduse().features().unwrap());
    assert_eq!(negotiated & !config.features, 0);
    let needed = feature::VERSION_1 | feature::ACCESS_PLATFORM;
    assert_eq!(negotiated & needed, needed);
}

fn a_device_without_a_driver_comes_and_goes() {
    for _ in 0..5 {
        let device = TestDevice::disk();
        drop(device.open_ready(1));
        drop(OnBus::add(device.name()).unwrap());
    }
}

fn adding_again_leaks_nothing() {
    let device = TestDevice::disk();
    drop(device.open_ready(1));
    for _ in 0..10 {
        OnBus::add(device.name()).unwrap().delete().unwrap();
    }
}

fn adding_a_disk_that_serves_no_data_ends_with_the_next_daemon() {
    let device = TestDevice::disk();
    let file = Arc::new(device.open_ready(1));
    // The responder answers VDUSE messages. Nothing serves the virtqueue, so I/O requests stay
    // pending.
    let responder = Responder::ok(&file);
    bus::set_autoprobe(true).unwrap();
    let name = device.name().to_owned();
    let adding = Waiting::new(move || OnBus::add(&name));
    soon("the driver is ready", || {
        let ready = |kind| matches!(kind, Kind::SetStatus(s) if s & DRIVER_OK != 0);
        responder.seen().iter().any(|request| ready(request.kind))
    });
    let asking = Waiting::new(|| vdpa().devices());
    adding.assert_waits();
    asking.assert_waits();
    // The first daemon ends while both threads are still waiting.
    drop(responder);
    drop(file);
    let served = Served::start(device.open_nonblocking(), 1, memory_file(1 << 20)).unwrap();
    let on_bus = adding.result().unwrap();
    let found = asking.result().unwrap();
    bus::set_autoprobe(false).unwrap();
    assert!(found.iter().any(|info| info.name == device.name()));
    let disk = disk_name(device.name()).expect("a disk");
    block::Block::open(&disk).unwrap().read(0, 4096).unwrap();
    on_bus.delete().unwrap();
    drop(served);
}
