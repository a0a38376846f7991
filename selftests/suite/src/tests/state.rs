// SPDX-License-Identifier: GPL-2.0

//! The state of a device, as sysfs shows it.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};

use rustix::io::Errno;
use vduse::state::DeviceState;
use vduse_uapi::{extension, F_QUEUE_READY, F_SUSPEND};

use crate::lab::assert::errors::fails_at;
use crate::lab::daemon::answered::{agree, Answered};
use crate::lab::device::negotiation::{create, Negotiation};
use crate::lab::device::spaces::{self, config};
use crate::lab::device::test_device::{disk_config, net_config, TestDevice};
use crate::lab::device::virtio::{id, status};
use crate::lab::driver::ring::{self, HandQueue};
use crate::lab::kernel::sysfs::{attribute, directory, read, write};

tests![
    a_new_device_is_shown_as_it_was_created,
    what_the_driver_has_set_is_shown_and_cleared_by_a_reset,
    groups_are_shown_where_they_are,
    many_of_each_are_shown_from_any_offset,
    a_broken_device_is_shown,
    the_configuration_space_is_shown_byte_by_byte,
    nothing_can_be_written,
    only_root_can_read_the_configuration_space,
    a_program_can_read_all_that_it_needs_to_take_over,
];

const IOVA: u64 = 0x10_0000;

const NEGOTIATION: Negotiation = Negotiation {
    version: 1,
    features: F_QUEUE_READY | F_SUSPEND,
    extensions: extension::F_RESUME,
};

#[track_caller]
fn shows(device: &TestDevice, what: &[(&str, &str)]) {
    for (name, expected) in what {
        let found = read(&attribute(device.name(), name)).expect(name);
        assert_eq!(found, *expected, "{name}");
    }
}

fn a_new_device_is_shown_as_it_was_created() {
    let mut config = config(3, 2, 5);
    config.features = 0x3_0000_1040;
    let device = create(&config, NEGOTIATION).unwrap();
    shows(
        &device,
        &[
            ("api_version", "1"),
            ("device_id", "2"),
            ("num_vqs", "3"),
            ("num_groups", "2"),
            ("num_asids", "5"),
            ("device_features", "0x0000000300001040"),
            ("driver_features", "0x0000000000000000"),
            ("status", "0x00"),
            ("suspended", "0"),
            ("broken", "0"),
            ("vduse_features", "0x0000000000000003"),
            ("vduse_extensions", "0x0000000000000001"),
            (
                "vqs",
                "    0     0     0 0\n    1     0     0 0\n    2     0     0 0",
            ),
        ],
    );
    let device = TestDevice::new(&net_config());
    shows(
        &device,
        &[
            ("api_version", "0"),
            ("device_id", &id::NET.to_string()),
            ("num_vqs", "2"),
            ("num_groups", "1"),
            ("num_asids", "1"),
            ("vduse_features", "0x0000000000000000"),
            ("vduse_extensions", "0x0000000000000000"),
        ],
    );
}

fn what_the_driver_has_set_is_shown_and_cleared_by_a_reset() {
    let device = create(&config(2, 2, 2), NEGOTIATION).unwrap();
    let setup = Answered::start(device, &[0, 1], agree);
    let vhost = setup.vhost();
    let fresh = "    0   256     0 0\n    1   256     1 0";
    shows(&setup.device, &[("vqs", fresh)]);
    ring::agree(&vhost);
    let queue = HandQueue::prepare(&vhost, 1, 0, IOVA);
    queue.set_up(&vhost);
    ring::start(&vhost);
    let features = setup.file.features().unwrap();
    assert_ne!(features, 0);
    shows(
        &setup.device,
        &[
            ("driver_features", &format!("{features:#018x}")),
            ("status", "0x0f"),
            ("vqs", "    0   256     0 0\n    1     8     1 1"),
        ],
    );
    vhost.suspend().unwrap();
    shows(&setup.device, &[("suspended", "1")]);
    vhost.resume().unwrap();
    shows(&setup.device, &[("suspended", "0")]);
    vhost.set_status(status::RESET).unwrap();
    shows(
        &setup.device,
        &[
            ("driver_features", "0x0000000000000000"),
            ("status", "0x00"),
            ("vqs", fresh),
        ],
    );
}

fn groups_are_shown_where_they_are() {
    let device = create(&config(2, 2, 3), NEGOTIATION).unwrap();
    let setup = Answered::start(device, &[0, 1], agree);
    let path = attribute(setup.device.name(), "groups");
    let vhost = setup.vhost();
    let asids = || fs::read_to_string(&path).unwrap();
    assert_eq!(asids(), "    0     0\n    1     0\n");
    vhost.set_group_asid(1, 2).unwrap();
    assert_eq!(asids(), "    0     0\n    1     2\n");
    vhost.set_group_asid(0, 1).unwrap();
    assert_eq!(asids(), "    0     1\n    1     2\n");
    // A refused change has no effect.
    assert!(vhost.set_group_asid(1, 3).is_err());
    assert_eq!(asids(), "    0     1\n    1     2\n");
    vhost.set_status(status::RESET).unwrap();
    assert_eq!(asids(), "    0     0\n    1     0\n");
}

/// Checks a sysfs file whose lines all have the same length. `line` returns the line with the given
/// number.
#[track_caller]
fn is_a_table(device: &TestDevice, name: &str, lines: usize, line: impl Fn(usize) -> String) {
    let path = attribute(device.name(), name);
    let text = fs::read(&path).expect("reading the file");
    let expected: String = (0..lines).map(line).collect();
    assert!(text == expected.as_bytes(), "{name}");
    let size = fs::metadata(&path).expect("the file").size();
    assert_eq!(size, text.len() as u64, "{name}");
    let file = fs::File::open(&path).expect("opening the file");
    for (offset, len) in [
        (1, 1),
        (11, 3),
        (19, 23),
        (4095, 5000),
        (text.len() - 1, 100),
    ] {
        let mut part = vec![0; len];
        let read = file.read_at(&mut part, offset as u64).expect("reading it");
        assert!(read > 0, "{name}");
        assert_eq!(part[..read], text[offset..offset + read], "{name}");
    }
    assert_eq!(file.read_at(&mut [0; 8], size).expect("the end"), 0);
}

fn many_of_each_are_shown_from_any_offset() {
    let device = create(&config(1, 65_535, 1), NEGOTIATION).unwrap();
    is_a_table(&device, "groups", 65_535, |group| {
        format!("{group:5}     0\n")
    });
    let device = create(&config(1000, 3, 1), NEGOTIATION).unwrap();
    let file = device.open();
    for index in 0..1000 {
        spaces::set_up(&file, index, index % 3).unwrap();
    }
    is_a_table(&device, "vqs", 1000, |index| {
        format!("{index:5}   256 {:5} 0\n", index % 3)
    });
}

fn a_broken_device_is_shown() {
    let setup = Answered::negotiated(NEGOTIATION_0, 1, |request| match request.kind {
        vduse::request::Kind::SetVqReady { .. } => None,
        _ => agree(request),
    });
    write(&attribute(setup.device.name(), "msg_timeout"), "1").unwrap();
    let vhost = setup.vhost();
    vhost.enable_queue(0).unwrap();
    shows(
        &setup.device,
        &[("broken", "1"), ("vqs", "    0   256     0 0")],
    );
    let (on_bus, device) = setup.end_daemon();
    let file = std::sync::Arc::new(device.open_nonblocking());
    shows(&device, &[("broken", "0"), ("vqs", "    0   256     0 1")]);
    let _responder = crate::lab::daemon::responder::Responder::ok(&file);
    drop(vhost);
    drop(on_bus);
}

const NEGOTIATION_0: Negotiation = Negotiation {
    version: 0,
    ..NEGOTIATION
};

fn the_configuration_space_is_shown_byte_by_byte() {
    let config = disk_config();
    let device = TestDevice::new(&config);
    let path = attribute(device.name(), "config");
    assert_eq!(fs::read(&path).unwrap(), config.space);
    assert_eq!(
        fs::metadata(&path).unwrap().size(),
        config.space.len() as u64
    );
    let file = fs::File::open(&path).unwrap();
    for offset in 0..config.space.len() {
        let mut part = [0xaa; 5];
        let read = file.read_at(&mut part, offset as u64).unwrap();
        let expected = &config.space[offset..];
        assert_eq!(read, expected.len().min(5), "{offset}");
        assert_eq!(part[..read], expected[..read], "{offset}");
    }
    assert_eq!(
        file.read_at(&mut [0; 5], config.space.len() as u64)
            .unwrap(),
        0
    );
    device.open().set_config(3, &[9, 8]).unwrap();
    assert_eq!(
        fs::read(&path).unwrap()[2..6],
        [config.space[2], 9, 8, config.space[5]]
    );

    // A device without a configuration space has an empty file.
    let mut config = disk_config();
    config.space.clear();
    if let Ok(device) = TestDevice::try_new(&config) {
        let path = attribute(device.name(), "config");
        assert!(fs::read(&path).unwrap().is_empty());
    }
}

/// The sysfs files that show the state of a device.
const FILES: &[&str] = &[
    "api_version",
    "device_id",
    "num_vqs",
    "num_groups",
    "num_asids",
    "device_features",
    "driver_features",
    "status",
    "suspended",
    "broken",
    "vduse_features",
    "vduse_extensions",
    "groups",
    "config",
    "vqs",
];

fn nothing_can_be_written() {
    let device = TestDevice::disk();
    for name in FILES {
        let path = attribute(device.name(), name);
        let before = fs::read(&path).unwrap();
        // The files are read-only, and not even root may open a read-only file of sysfs for
        // writing.
        for text in ["0", "1\n", "0x0f"] {
            let written = write(&path, text);
            fails_at(written, Errno::ACCESS, name);
        }
        assert_eq!(fs::read(&path).unwrap(), before, "{name}");
    }
}

fn only_root_can_read_the_configuration_space() {
    let device = TestDevice::disk();
    for name in FILES {
        let metadata = fs::metadata(attribute(device.name(), name)).unwrap();
        let expected = if *name == "config" { 0o400 } else { 0o444 };
        assert_eq!(metadata.permissions().mode() & 0o777, expected, "{name}");
        assert_eq!((metadata.uid(), metadata.gid()), (0, 0), "{name}");
    }
    assert!(!directory("control").join("status").exists());
}

fn a_program_can_read_all_that_it_needs_to_take_over() {
    let device = create(&config(2, 2, 2), NEGOTIATION).unwrap();
    let setup = Answered::start(device, &[0, 1], agree);
    let vhost = setup.vhost();
    vhost.set_group_asid(1, 1).unwrap();
    ring::agree(&vhost);
    ring::start(&vhost);
    vhost.suspend().unwrap();
    let state = DeviceState::read(setup.device.name()).unwrap().unwrap();
    assert_eq!(
        state,
        DeviceState {
            features: 3,
            status: status::UP_TO_DRIVER_OK,
            suspended: true,
            asids: vec![0, 1],
        }
    );
}
