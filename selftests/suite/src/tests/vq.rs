// SPDX-License-Identifier: GPL-2.0

//! Virtqueues, as a driver sets them up and a daemon sees them.

use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::io::Errno;
use vduse::request::{Answer, Kind};
use vduse_uapi::PackedState;

use crate::lab::assert::errors::fails;
use crate::lab::assert::race::beside;
use crate::lab::daemon::responder::Responder;
use crate::lab::device::bus::{self, Driver, OnBus};
use crate::lab::device::test_device::{disk_config, TestDevice};
use crate::lab::device::virtio::feature;
use crate::lab::device::virtio::status::{
    ACKNOWLEDGE, DRIVER, RESET, UP_TO_DRIVER_OK, UP_TO_FEATURES_OK,
};
use crate::lab::driver::bare_disk::{open_vhost, BareDisk, IOVA};
use crate::lab::driver::ring::{HandDriver, SIZE};
use crate::lab::driver::vhost::RingAddress;

tests![
    features_are_those_that_the_driver_accepted,
    features_that_were_not_offered_are_refused,
    get_info_tells_what_the_driver_set,
    get_info_tells_packed_state,
    packed_state_is_asked_for_and_masked,
    a_reset_clears_queues_and_features,
    a_reset_that_the_daemon_refuses_clears_queues_and_features,
    vq_setup_can_be_repeated_on_a_queue_in_use,
    get_info_shows_addresses_that_were_set_together => 40,
    queues_enabled_after_driver_ok_are_served,
];

fn features_are_those_that_the_driver_accepted() {
    let bare = BareDisk::new();
    let accepted = bare.file.features().unwrap();
    let offered = bare.driver.vhost.features().unwrap();
    assert_eq!(accepted, offered & !feature::RING_EVENT_IDX);
    assert_eq!(
        bus::vdpa()
            .config(bare.device.name())
            .unwrap()
            .negotiated_features,
        Some(accepted)
    );
}

fn features_that_were_not_offered_are_refused() {
    let device = TestDevice::disk();
    let file = Arc::new(device.open_ready(1));
    let _responder = Responder::ok(&file);
    let on_bus = OnBus::add(device.name()).unwrap();
    on_bus.bind(Driver::Vhost).unwrap();
    let vhost = open_vhost(device.name());
    vhost.set_status(ACKNOWLEDGE | DRIVER).unwrap();
    let offered = vhost.features().unwrap();
    for bit in [1u64 << 20, feature::RING_PACKED, 1 << 63] {
        fails(vhost.set_features(offered | bit), Errno::INVAL);
    }
    assert_eq!(file.features().unwrap() & !offered, 0);
    vhost.set_features(offered).unwrap();
    drop(vhost);
    drop(on_bus);
}

fn get_info_tells_what_the_driver_set() {
    let bare = BareDisk::new();
    bare.driver.set_queue_up();
    bare.driver.vhost.set_queue_base(0, 0x1234).unwrap();
    let info = bare.file.vq_info(0).unwrap();
    let address = bare.driver.address();
    assert_eq!(info.num, u32::from(SIZE));
    assert_eq!(info.desc_addr, address.desc);
    assert_eq!(info.driver_addr, address.avail);
    assert_eq!(info.device_addr, address.used);
    assert_eq!(info.state.split(), 0x1234);
    assert_eq!(info.ready, 1);
}

/// Creates a device that offers packed virtqueues, and negotiates its features through vhost. The
/// daemon reports `answer` as the state of each virtqueue.
#[track_caller]
fn packed(answer: PackedState) -> BareDisk {
    let mut config = disk_config();
    config.features |= feature::RING_PACKED;
    let device = TestDevice::new(&config);
    let file = Arc::new(device.open_ready(1));
    let responder = Responder::new(&file, move |request| {
        Some(match request.kind {
            Kind::GetVqState { index } => Answer::PackedState {
                index,
                state: answer,
            },
            _ => Answer::Ok,
        })
    });
    let on_bus = OnBus::add(device.name()).expect("adding");
    on_bus.bind(Driver::Vhost).expect("binding");
    let driver = HandDriver::prepare(open_vhost(device.name()), IOVA);
    BareDisk {
        driver,
        on_bus,
        responder,
        file,
        device,
    }
}

fn get_info_tells_packed_state() {
    let bare = packed(PackedState::default());
    assert_ne!(bare.file.features().unwrap() & feature::RING_PACKED, 0);
    bare.driver
        .vhost
        .set_queue_base(0, 0x8005 | 0x0003 << 16)
        .unwrap();
    assert_eq!(
        bare.file.vq_info(0).unwrap().state.packed(),
        PackedState {
            last_avail_counter: 1,
            last_avail_idx: 5,
            last_used_counter: 0,
            last_used_idx: 3,
        }
    );
}

fn packed_state_is_asked_for_and_masked() {
    let bare = packed(PackedState {
        last_avail_counter: 0xfffe,
        last_avail_idx: 0xffff,
        last_used_counter: 0xffff,
        last_used_idx: 0x8007,
    });
    // The driver keeps one bit of each wrap counter, and 15 bits of each index.
    assert_eq!(
        bare.driver.vhost.queue_base(0).unwrap(),
        0x7fff | (0x8000 | 7) << 16
    );
}

fn a_reset_clears_queues_and_features() {
    let bare = BareDisk::started();
    bare.driver.vhost.set_status(RESET).unwrap();
    is_cleared(&bare);
}

fn a_reset_that_the_daemon_refuses_clears_queues_and_features() {
    let mut bare = BareDisk::started();
    // The old responder must end before the new one reads requests.
    let file = bare.file.clone();
    drop(std::mem::replace(
        &mut bare.responder,
        Responder::new(&file, |_| Some(Answer::Failed)),
    ));
    fails(bare.driver.vhost.set_status(RESET), Errno::IO);
    is_cleared(&bare);
    drop(std::mem::replace(&mut bare.responder, Responder::ok(&file)));
}

/// Asserts that nothing of what the driver has set is left.
fn is_cleared(bare: &BareDisk) {
    let info = bare.file.vq_info(0).unwrap();
    assert_eq!((info.num, info.ready), (0, 0));
    assert_eq!((info.desc_addr, info.driver_addr), (0, 0));
    assert_eq!((info.device_addr, info.state.split()), (0, 0));
    assert_eq!(bare.file.features().unwrap(), 0);
}

fn vq_setup_can_be_repeated_on_a_queue_in_use() {
    let bare = BareDisk::started();
    bare.file.vq_setup(0, 256).unwrap();
    let info = bare.file.vq_info(0).unwrap();
    assert_eq!((info.num, info.ready), (u32::from(SIZE), 1));
}

fn get_info_shows_addresses_that_were_set_together() {
    let bare = BareDisk::new();
    let set = |at: u64| {
        let address = RingAddress {
            desc: at,
            avail: at + 0x1000,
            used: at + 0x2000,
        };
        bare.driver.vhost.set_queue_address(0, address).unwrap();
    };
    set(IOVA);
    beside(
        || [0x7fff_0000_0000, IOVA].into_iter().for_each(set),
        || {
            let info = bare.file.vq_info(0).unwrap();
            let behind =
                [info.driver_addr, info.device_addr].map(|a| a.wrapping_sub(info.desc_addr));
            assert_eq!(behind, [0x1000, 0x2000], "{info:x?}");
        },
    );
}

fn queues_enabled_after_driver_ok_are_served() {
    let device = TestDevice::disk();
    let file = crate::lab::daemon::disk::memory_file(1 << 20);
    let served =
        crate::lab::daemon::disk::Served::start(device.open_nonblocking(), 1, file.clone())
            .unwrap();
    let on_bus = OnBus::add(device.name()).unwrap();
    on_bus.bind(Driver::Vhost).unwrap();
    let mut driver = HandDriver::prepare(open_vhost(device.name()), IOVA);
    driver.start();
    assert_eq!(driver.vhost.status().unwrap(), UP_TO_DRIVER_OK);
    // After `DRIVER_OK`, vhost-vdpa accepts no virtqueue addresses. So the client sets up the
    // virtqueue before `DRIVER_OK`, and enables it afterwards.
    let vhost = &driver.vhost;
    vhost.set_status(RESET).unwrap();
    vhost.set_status(ACKNOWLEDGE | DRIVER).unwrap();
    let features = vhost.features().unwrap() & !feature::RING_EVENT_IDX;
    vhost.set_features(features).unwrap();
    vhost.set_status(UP_TO_FEATURES_OK).unwrap();
    vhost.set_queue_size(0, SIZE.into()).unwrap();
    vhost.set_queue_address(0, driver.address()).unwrap();
    vhost.set_queue_base(0, 0).unwrap();
    driver.start();
    driver.vhost.set_kick(0, driver.kick.as_fd()).unwrap();
    driver.vhost.set_call(0, Some(driver.call.as_fd())).unwrap();
    // Before the daemon agreed to `DRIVER_OK`, it looked for ready virtqueues and found none.
    driver.vhost.enable_queue(0).unwrap();
    assert_eq!(driver.read(0), [0; 512]);
    drop(driver);
    drop(on_bus);
    drop(served);
}
