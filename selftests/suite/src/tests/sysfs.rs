// SPDX-License-Identifier: GPL-2.0

//! The sysfs attributes of VDUSE devices.

use std::path::Path;

use rustix::io::Errno;

use crate::lab::assert::errors::{fails, fails_at};
use crate::lab::device::test_device::{disk_config, TestDevice};
use crate::lab::driver::virtio_disk::{LiveDisk, Shape};
use crate::lab::kernel::cpu::OfflineCpu;
use crate::lab::kernel::modules;
use crate::lab::kernel::sysfs::{affinity, attribute, directory, read, write};

tests![
    the_class_has_the_device_and_its_attributes,
    the_control_node_has_no_attributes_of_a_device,
    a_disk_is_below_its_device,
    msg_timeout_is_30_and_can_be_set,
    msg_timeout_that_is_no_number_is_einval,
    bounce_size_is_64_mib_and_can_be_set,
    bounce_size_is_from_1_mib_to_1_gib,
    bounce_size_is_rounded_down_to_pages,
    bounce_size_on_the_bus_is_eperm,
    affinity_is_all_cpus_and_can_be_set,
    affinity_without_an_online_cpu_is_einval,
    affinity_beyond_the_cpus_is_eoverflow,
    affinity_that_is_no_mask_is_einval,
    each_queue_has_an_affinity,
    max_iotlb_entries_is_a_parameter,
];

fn the_class_has_the_device_and_its_attributes() {
    let device = TestDevice::disk();
    let directory = directory(device.name());
    for name in ["msg_timeout", "bounce_size", "vq0/irq_cb_affinity", "dev"] {
        assert!(directory.join(name).is_file(), "{name}");
    }
    assert_eq!(
        std::fs::canonicalize(&directory).unwrap(),
        Path::new("/sys/devices/virtual/vduse").join(device.name())
    );
    assert!(Path::new("/sys/class/vduse/control").is_dir());
    device.destroy().unwrap();
    assert!(!directory.exists());
}

fn the_control_node_has_no_attributes_of_a_device() {
    for name in ["msg_timeout", "bounce_size", "vq0"] {
        assert!(!attribute("control", name).exists(), "{name}");
    }
}

fn a_disk_is_below_its_device() {
    let disk = LiveDisk::new(Shape::default());
    let name = disk.disk();
    let below = std::fs::canonicalize(Path::new("/sys/block").join(&name)).unwrap();
    let device = Path::new("/sys/devices/virtual/vduse").join(disk.name());
    assert!(
        below.starts_with(device.join(disk.name())),
        "{}",
        below.display()
    );
}

fn msg_timeout_is_30_and_can_be_set() {
    let device = TestDevice::disk();
    let path = attribute(device.name(), "msg_timeout");
    assert_eq!(read(&path).unwrap(), "30");
    for value in ["0", "1", "7", "4294967295"] {
        write(&path, value).unwrap();
        assert_eq!(read(&path).unwrap(), value);
    }
    write(&path, "5\n").unwrap();
    assert_eq!(read(&path).unwrap(), "5");
}

fn msg_timeout_that_is_no_number_is_einval() {
    let device = TestDevice::disk();
    let path = attribute(device.name(), "msg_timeout");
    for value in ["", "x", "-1", "1 2", "0x10", "\n"] {
        let result = write(&path, value);
        // The kernel does not pass an empty write to the driver.
        if !value.is_empty() {
            fails_at(result, Errno::INVAL, value);
        }
    }
    fails(write(&path, "4294967296"), Errno::RANGE);
    assert_eq!(read(&path).unwrap(), "30");
}

fn bounce_size_is_64_mib_and_can_be_set() {
    let device = TestDevice::disk();
    let path = attribute(device.name(), "bounce_size");
    assert_eq!(read(&path).unwrap(), "67108864");
    write(&path, "1048576\n").unwrap();
    assert_eq!(read(&path).unwrap(), "1048576");
}

fn bounce_size_is_from_1_mib_to_1_gib() {
    let device = TestDevice::disk();
    let path = attribute(device.name(), "bounce_size");
    for value in ["1048576", "1073741824"] {
        write(&path, value).unwrap();
    }
    for value in ["0", "1048575", "1073741825", "4294967295", "x"] {
        fails_at(write(&path, value), Errno::INVAL, value);
    }
    fails(write(&path, "4294967296"), Errno::RANGE);
    assert_eq!(read(&path).unwrap(), "1073741824");
}

fn bounce_size_is_rounded_down_to_pages() {
    let device = TestDevice::disk();
    let path = attribute(device.name(), "bounce_size");
    write(&path, "1052671").unwrap();
    assert_eq!(read(&path).unwrap(), "1048576");
}

fn bounce_size_on_the_bus_is_eperm() {
    let disk = LiveDisk::new(Shape::default());
    let path = attribute(disk.name(), "bounce_size");
    fails(write(&path, "1048576"), Errno::PERM);
    assert_eq!(read(&path).unwrap(), "67108864");
}

/// Parses the text of an affinity attribute. Returns the CPUs as a bit mask.
fn mask(text: &str) -> u64 {
    let digits: String = text.chars().filter(|&c| c != ',').collect();
    // A kernel for many CPUs prints many digits. This machine has few CPUs, so the last 16 digits
    // are enough.
    let tail = digits.len().saturating_sub(16);
    u64::from_str_radix(&digits[tail..], 16).expect("a mask in hexadecimal")
}

fn affinity_is_all_cpus_and_can_be_set() {
    let device = TestDevice::disk();
    let path = affinity(device.name(), 0);
    let online = (1 << std::thread::available_parallelism().unwrap().get()) - 1;
    assert_eq!(mask(&read(&path).unwrap()) & online, online);
    write(&path, "1").unwrap();
    assert_eq!(mask(&read(&path).unwrap()), 1);
    write(&path, "3\n").unwrap();
    assert_eq!(mask(&read(&path).unwrap()), 3);
}

fn affinity_without_an_online_cpu_is_einval() {
    let device = TestDevice::disk();
    let path = affinity(device.name(), 0);
    write(&path, "1").unwrap();
    fails(write(&path, "0"), Errno::INVAL);
    let offline = OfflineCpu::new();
    fails(write(&path, "2"), Errno::INVAL);
    // One of the two CPUs in this mask is online, which is enough.
    write(&path, "3").unwrap();
    drop(offline);
    write(&path, "2").unwrap();
    assert_eq!(mask(&read(&path).unwrap()), 2);
}

fn affinity_beyond_the_cpus_is_eoverflow() {
    let device = TestDevice::disk();
    let path = affinity(device.name(), 0);
    let digits = "1".to_owned() + &"0".repeat(5000);
    fails(write(&path, &digits[..3000]), Errno::OVERFLOW);
}

fn affinity_that_is_no_mask_is_einval() {
    let device = TestDevice::disk();
    let path = affinity(device.name(), 0);
    for value in ["x", "-1", "g"] {
        fails_at(write(&path, value), Errno::INVAL, value);
    }
}

fn each_queue_has_an_affinity() {
    let mut config = disk_config();
    config.queues = 12;
    let device = TestDevice::new(&config);
    for queue in 0..12 {
        assert!(affinity(device.name(), queue).is_file(), "{queue}");
    }
    assert!(!affinity(device.name(), 12).exists());
}

fn max_iotlb_entries_is_a_parameter() {
    let path = Path::new("/sys/module")
        .join(modules::name(crate::lab::run::settings::driver()))
        .join("parameters/max_iotlb_entries");
    assert_eq!(read(&path).unwrap(), "2048");
    fails(write(&path, "1"), Errno::ACCESS);
}
