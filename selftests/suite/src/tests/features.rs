// SPDX-License-Identifier: GPL-2.0

//! The VDUSE features and the extensions of `vduse_rs` that the creator of a device negotiates.

use std::os::fd::AsFd;

use rustix::io::Errno;
use vduse::request::Kind;
use vduse::Control;
use vduse_uapi::{extension, ioctl, F_QUEUE_READY, F_SUSPEND};

use crate::lab::assert::errors::{fails, fails_at};
use crate::lab::daemon::answered::{agree, Answered};
use crate::lab::device::negotiation::{create, Negotiation};
use crate::lab::device::test_device::{disk_config, TestDevice};
use crate::lab::driver::vhost::backend;
use crate::lab::kernel::raw;

tests![
    the_kernel_has_both_features,
    reading_the_features_has_no_effect,
    unknown_features_are_einval_and_change_nothing,
    features_from_nowhere_are_efault,
    features_can_be_set_again_and_cleared,
    features_belong_to_the_open_file,
    features_are_independent_of_the_api_version,
    a_device_keeps_the_features_it_was_created_with,
    extensions_are_numbers_of_their_own,
    resuming_requires_suspending,
];

const BOTH: u64 = F_QUEUE_READY | F_SUSPEND;

/// Creates a device through `control`. Returns the VDUSE features that the device's daemon and
/// driver observe.
#[track_caller]
fn features_of_a_new_device(control: &Control) -> u64 {
    let mut config = disk_config();
    let version = control.api_version().expect("the API version") as u32;
    (config.groups, config.address_spaces) = (version, version);
    control.create(&config).expect("creating a device");
    features_of(TestDevice::adopt(&config.name))
}

#[track_caller]
fn features_of(device: TestDevice) -> u64 {
    let setup = Answered::start(device, &[0], agree);
    let vhost = setup.vhost();
    setup.responder.take_kinds();
    vhost.enable_queue(0).expect("enabling a queue");
    let asked = Kind::SetVqReady {
        index: 0,
        ready: true,
    };
    let mut features = 0;
    if setup.responder.take_kinds() == [asked] {
        features |= F_QUEUE_READY;
    }
    if vhost.backend_features().expect("vhost's features") & backend::SUSPEND != 0 {
        features |= F_SUSPEND;
    }
    features
}

fn the_kernel_has_both_features() {
    let control = Control::open().unwrap();
    assert_eq!(control.supported_features().unwrap(), BOTH);
}

fn reading_the_features_has_no_effect() {
    let control = Control::open().unwrap();
    control.supported_features().unwrap();
    assert_eq!(features_of_a_new_device(&control), 0);
    control.set_features(F_SUSPEND).unwrap();
    assert_eq!(control.supported_features().unwrap(), BOTH);
    assert_eq!(features_of_a_new_device(&control), F_SUSPEND);
}

fn unknown_features_are_einval_and_change_nothing() {
    let control = Control::open().unwrap();
    control.set_features(F_QUEUE_READY).unwrap();
    for bit in 2..64 {
        fails_at(control.set_features(BOTH | 1 << bit), Errno::INVAL, bit);
    }
    fails(control.set_features(u64::MAX), Errno::INVAL);
    assert_eq!(features_of_a_new_device(&control), F_QUEUE_READY);
}

fn features_from_nowhere_are_efault() {
    let control = Control::open().unwrap();
    control.set_features(F_SUSPEND).unwrap();
    for number in [ioctl::GET_FEATURES, ioctl::SET_FEATURES] {
        fails(raw::call_at_nothing(control.as_fd(), number), Errno::FAULT);
    }
    assert_eq!(features_of_a_new_device(&control), F_SUSPEND);
}

fn features_can_be_set_again_and_cleared() {
    let control = Control::open().unwrap();
    for features in [BOTH, F_SUSPEND, F_QUEUE_READY, 0, BOTH, 0] {
        control.set_features(features).unwrap();
        assert_eq!(features_of_a_new_device(&control), features);
    }
}

fn features_belong_to_the_open_file() {
    let (one, other) = (Control::open().unwrap(), Control::open().unwrap());
    one.set_features(BOTH).unwrap();
    assert_eq!(features_of_a_new_device(&other), 0);
    other.set_features(F_SUSPEND).unwrap();
    assert_eq!(features_of_a_new_device(&one), BOTH);
}

fn features_are_independent_of_the_api_version() {
    for version in [0, 1] {
        let control = Control::open().unwrap();
        control.set_features(BOTH).unwrap();
        control.set_api_version(version).unwrap();
        let other = Control::open().unwrap();
        other.set_api_version(version).unwrap();
        other.set_features(BOTH).unwrap();
        for control in [control, other] {
            assert_eq!(features_of_a_new_device(&control), BOTH);
        }
    }
}

fn a_device_keeps_the_features_it_was_created_with() {
    let control = Control::open().unwrap();
    control.set_features(F_SUSPEND).unwrap();
    let config = disk_config();
    control.create(&config).unwrap();
    let device = TestDevice::adopt(&config.name);
    control.set_features(0).unwrap();
    drop(control);
    assert_eq!(features_of(device), F_SUSPEND);
}

fn extensions_are_numbers_of_their_own() {
    let control = Control::open().unwrap();
    assert_eq!(control.supported_extensions().unwrap(), extension::F_RESUME);
    for bit in 1..64 {
        fails_at(control.set_extensions(1 | 1 << bit), Errno::INVAL, bit);
    }
    // Extensions use no ioctl number from upstream's ranges.
    for number in [extension::GET_FEATURES, extension::SET_FEATURES] {
        assert_ne!(number >> 8 & 0xff, ioctl::GET_FEATURES >> 8 & 0xff);
    }
    const { assert!(extension::RESUME > 1 << 30) };
    for number in [extension::GET_FEATURES, extension::SET_FEATURES] {
        fails(raw::call_at_nothing(control.as_fd(), number), Errno::FAULT);
    }
}

fn resuming_requires_suspending() {
    let resume = |features| Negotiation {
        features,
        extensions: extension::F_RESUME,
        ..Negotiation::default()
    };
    fails(create(&disk_config(), resume(0)), Errno::INVAL);
    fails(create(&disk_config(), resume(F_QUEUE_READY)), Errno::INVAL);
    create(&disk_config(), resume(F_SUSPEND)).unwrap();
    create(&disk_config(), resume(BOTH)).unwrap();
}
