// SPDX-License-Identifier: GPL-2.0

//! The control device, through which programs set the API version, create devices and destroy
//! devices.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Gid, Uid};
use rustix::thread::{set_thread_gid, set_thread_groups, set_thread_uid, CapabilitySet};
use vduse::control::CONTROL_PATH;
use vduse::{Control, Device, DeviceConfig};
use vduse_uapi::{ioctl, DevConfig, NAME_MAX};

use crate::lab::assert::errors::{fails, fails_at};
use crate::lab::device::bus::{self, OnBus};
use crate::lab::device::test_device::{disk_config, net_config, unique_name, TestDevice};
use crate::lab::device::virtio::{feature, id};
use crate::lab::kernel::memory::PAGE;
use crate::lab::kernel::raw::{self, Edge};

tests![
    asking_for_the_version_of_a_fresh_file_moves_it_to_1,
    setting_the_version_takes_0_and_1,
    setting_version_2_is_einval_and_changes_nothing,
    the_version_belongs_to_the_file,
    a_file_without_a_version_creates_version_0_devices,
    a_file_opened_to_read_creates_devices,
    unknown_commands_are_einval,
    bad_pointers_are_efault,
    a_config_space_at_nothing_is_efault_and_creates_nothing,
    the_node_is_there_when_create_returns,
    create_existing_name_is_eexist,
    an_empty_name_is_einval,
    names_of_directories_are_einval,
    the_name_control_is_einval,
    a_name_with_a_slash_is_einval,
    an_exclamation_mark_is_a_part_of_a_name,
    a_name_with_control_characters_is_einval,
    a_name_of_255_bytes_works,
    a_name_in_utf_8_stays_as_it_is,
    names_in_the_devices_own_directory_are_einval,
    a_name_without_end_is_einval,
    vq_align_is_a_power_of_two_from_4_to_a_page,
    config_size_is_at_most_a_page,
    an_empty_config_space_works,
    vq_num_is_at_most_65535,
    a_device_without_queues_is_einval,
    only_blocks_nets_and_file_systems_are_allowed,
    access_platform_is_needed,
    a_disk_with_a_writable_cache_mode_is_einval,
    a_net_without_version_1_is_einval,
    a_net_with_a_control_queue_works,
    a_net_needs_cap_net_admin,
    a_disk_needs_no_cap_net_admin,
    the_nodes_are_for_root_only,
    a_node_belongs_to_who_created_it,
    capabilities_of_a_user_namespace_do_not_count,
    each_reserved_field_must_be_0,
    groups_and_spaces_must_be_0_in_version_0,
    groups_and_spaces_must_not_be_0_in_version_1,
    destroying_what_is_not_there_is_einval,
    destroying_an_open_device_is_ebusy,
    destroying_twice_is_einval,
    a_name_can_be_used_again,
    a_name_is_taken_until_its_device_is_gone => 40,
    devices_come_and_go_in_a_loop,
];

fn control() -> Control {
    Control::open().expect("opening the control device")
}

/// Creates a device and immediately destroys it.
fn create(config: &DeviceConfig) -> io::Result<()> {
    TestDevice::try_new(config).map(drop)
}

/// Returns the configuration of a disk, modified by `change`.
fn changed(change: impl FnOnce(&mut DeviceConfig)) -> DeviceConfig {
    let mut config = disk_config();
    change(&mut config);
    config
}

/// Creates a disk from a `DevConfig` that `change` has modified, and destroys the disk.
fn create_raw(control: &Control, change: impl FnOnce(&mut DevConfig)) -> io::Result<()> {
    let config = disk_config();
    let (mut abi, space) = config.to_abi()?;
    change(&mut abi);
    let result = control.create_raw(&abi, space);
    if result.is_ok() {
        drop(TestDevice::adopt(
            &vduse::control::name_of(&abi).to_string_lossy(),
        ));
    }
    result
}

fn asking_for_the_version_of_a_fresh_file_moves_it_to_1() {
    let control = control();
    assert_eq!(control.api_version().unwrap(), 1);
    // The open control file now uses version 1, in which `ngroups` must not be 0.
    fails(create_raw(&control, |_| {}), Errno::INVAL);
    create_raw(&control, |config| (config.ngroups, config.nas) = (1, 1)).unwrap();
}

fn setting_the_version_takes_0_and_1() {
    let control = control();
    for version in [0, 1, 0] {
        control.set_api_version(version).unwrap();
        assert_eq!(control.api_version().unwrap(), version);
    }
}

fn setting_version_2_is_einval_and_changes_nothing() {
    let control = control();
    control.set_api_version(0).unwrap();
    for version in [2, 1 << 32, u64::MAX] {
        fails_at(control.set_api_version(version), Errno::INVAL, version);
        assert_eq!(control.api_version().unwrap(), 0);
    }
}

fn the_version_belongs_to_the_file() {
    let (first, second) = (control(), control());
    first.set_api_version(0).unwrap();
    assert_eq!(second.api_version().unwrap(), 1);
    assert_eq!(first.api_version().unwrap(), 0);
}

fn a_file_without_a_version_creates_version_0_devices() {
    let device = TestDevice::disk();
    let file = device.open();
    // A device of version 0 rejects `IOTLB_GET_FD2`, which is an ioctl of version 1.
    fails(file.iotlb_fd2(0, 0, 0), Errno::NOTTY);
}

fn a_file_opened_to_read_creates_devices() {
    let file = OpenOptions::new().read(true).open(CONTROL_PATH).unwrap();
    let config = disk_config();
    let (abi, space) = config.to_abi().unwrap();
    let mut bytes = abi_bytes(&abi);
    bytes.extend(space);
    raw::call(&file, ioctl::CREATE_DEV, &mut bytes).unwrap();
    drop(TestDevice::adopt(&config.name));
}

/// Returns the bytes of the fields of `config`, in the order of the structure.
fn abi_bytes(config: &DevConfig) -> Vec<u8> {
    let mut bytes = raw::Bytes(config.name.to_vec())
        .u32(config.vendor_id)
        .u32(config.device_id)
        .u64(config.features)
        .u32(config.vq_num)
        .u32(config.vq_align)
        .u32(config.ngroups)
        .u32(config.nas);
    for word in config.reserved {
        bytes = bytes.u32(word);
    }
    bytes.u32(config.config_size).0
}

fn unknown_commands_are_einval() {
    let control = control();
    let kind = 0x81;
    let numbers = [
        raw::number(raw::NONE, kind, 4, 0),
        raw::number(raw::READ, kind, 0, 4),
        raw::number(raw::WRITE, kind, 0, 8),
        raw::number(raw::WRITE, b'x', 2, 8),
        ioctl::VQ_SETUP,
        ioctl::IOTLB_GET_FD,
    ];
    for number in numbers {
        let result = raw::call(&control, number, &mut [0; 512]);
        fails_at(result, Errno::INVAL, format_args!("{number:#x}"));
    }
}

fn bad_pointers_are_efault() {
    let control = control();
    for number in [
        ioctl::GET_API_VERSION,
        ioctl::SET_API_VERSION,
        ioctl::CREATE_DEV,
        ioctl::DESTROY_DEV,
    ] {
        let at = format!("{number:#x}");
        fails_at(raw::call_at_nothing(&control, number), Errno::FAULT, &at);
        // Only half of the argument is mapped.
        let size = (number >> 16) as usize & 0x3fff;
        let half = vec![1; size / 2];
        fails_at(Edge::new().call(&control, number, &half), Errno::FAULT, &at);
    }
}

fn a_config_space_at_nothing_is_efault_and_creates_nothing() {
    let control = control();
    let config = disk_config();
    let (abi, space) = config.to_abi().unwrap();
    let mut bytes = abi_bytes(&abi);
    bytes.extend(&space[..space.len() / 2]);
    fails(
        Edge::new().call(&control, ioctl::CREATE_DEV, &bytes),
        Errno::FAULT,
    );
    assert!(!Device::path(&config.name).exists());
    create(&config).unwrap();
}

fn the_node_is_there_when_create_returns() {
    let device = TestDevice::disk();
    let path = Device::path(device.name());
    let kind = std::fs::metadata(&path).unwrap().file_type();
    assert!(kind.is_char_device());
    device.destroy().unwrap();
    assert!(!path.exists());
}

fn create_existing_name_is_eexist() {
    let config = disk_config();
    let device = TestDevice::new(&config);
    fails(create_again(&config), Errno::EXIST);
    let mut other = net_config();
    other.name = config.name.clone();
    fails(create_again(&other), Errno::EXIST);
    // The existing device is unchanged.
    device.open();
}

/// Creates a device without destroying it afterwards.
fn create_again(config: &DeviceConfig) -> io::Result<()> {
    control().create(config)
}

fn an_empty_name_is_einval() {
    fails(create(&changed(|c| c.name.clear())), Errno::INVAL);
}

fn names_of_directories_are_einval() {
    for name in [".", ".."] {
        fails_at(
            create(&changed(|c| c.name = name.to_owned())),
            Errno::INVAL,
            name,
        );
    }
}

fn the_name_control_is_einval() {
    fails(
        create(&changed(|c| c.name = "control".to_owned())),
        Errno::INVAL,
    );
    // The control device still works.
    assert_eq!(control().api_version().unwrap(), 1);
}

fn a_name_with_a_slash_is_einval() {
    for name in ["a/b", "/", "../t"] {
        fails_at(
            create(&changed(|c| c.name = name.to_owned())),
            Errno::INVAL,
            name,
        );
    }
}

fn an_exclamation_mark_is_a_part_of_a_name() {
    let device = TestDevice::new(&changed(|c| c.name = "a!b".to_owned()));
    assert!(crate::lab::kernel::sysfs::directory("a!b").exists());
    device.open();
}

fn a_name_with_control_characters_is_einval() {
    for name in ["a\nb", "\x7f", "\x01"] {
        fails_at(
            create(&changed(|c| c.name = name.to_owned())),
            Errno::INVAL,
            name,
        );
    }
}

fn a_name_of_255_bytes_works() {
    let name = "n".repeat(NAME_MAX - 1);
    let device = TestDevice::new(&changed(|c| c.name.clone_from(&name)));
    device.open();
    assert!(crate::lab::kernel::sysfs::directory(&name).exists());
}

fn a_name_in_utf_8_stays_as_it_is() {
    // The second name is so long that a uevent about the device has no room for it.
    for name in ["b\u{fc}ro".to_owned(), "\u{fc}".repeat((NAME_MAX - 1) / 2)] {
        let device = TestDevice::new(&changed(|c| c.name.clone_from(&name)));
        device.open_ready(1);
        assert!(
            crate::lab::kernel::sysfs::directory(&name).exists(),
            "{name}"
        );
    }
    let device = TestDevice::new(&changed(|c| c.name = "b\u{fc}ro".to_owned()));
    device.open_ready(1);
    let on_bus = OnBus::add(device.name()).unwrap();
    assert!(bus::directory(device.name()).exists());
    on_bus.delete().unwrap();
}

/// Checks that `CREATE_DEV` refuses a device name that is the name of an entry in the sysfs
/// directory of a VDUSE device. The driver creates the vDPA device's directory there, under the
/// name of the device, so the two names would collide.
fn names_in_the_devices_own_directory_are_einval() {
    let device = TestDevice::disk();
    let entries: Vec<_> = std::fs::read_dir(format!("/sys/class/vduse/{}", device.name()))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    for expected in ["uevent", "power", "subsystem", "msg_timeout", "vq0"] {
        assert!(entries.iter().any(|name| name == expected), "{entries:?}");
    }
    for name in entries {
        fails_at(
            create(&changed(|c| c.name.clone_from(&name))),
            Errno::INVAL,
            name,
        );
    }
    // The device has no virtqueue 1, so this name is free.
    let device = TestDevice::new(&changed(|c| c.name = "vq1".to_owned()));
    device.open_ready(1);
    OnBus::add(device.name()).unwrap().delete().unwrap();
}

fn a_name_without_end_is_einval() {
    let control = control();
    fails(
        create_raw(&control, |config| config.name = [b'n'; NAME_MAX]),
        Errno::INVAL,
    );
}

fn vq_align_is_a_power_of_two_from_4_to_a_page() {
    for align in [4, 8, 64, 4096] {
        create(&changed(|c| c.queue_align = align)).unwrap();
    }
    for align in [0, 1, 2, 3, 5, 12, 4095, 8192, 1 << 31, u32::MAX] {
        let result = create(&changed(|c| c.queue_align = align));
        fails_at(result, Errno::INVAL, align);
    }
}

fn config_size_is_at_most_a_page() {
    create(&changed(|c| c.space = vec![0; PAGE as usize])).unwrap();
    fails(
        create(&changed(|c| c.space = vec![0; PAGE as usize + 1])),
        Errno::INVAL,
    );
    let control = control();
    for size in [1 << 31, u32::MAX] {
        // The driver must reject the size before it reads beyond the structure.
        let config = disk_config();
        let (mut abi, _) = config.to_abi().unwrap();
        abi.config_size = size;
        let result = Edge::new().call(&control, ioctl::CREATE_DEV, &abi_bytes(&abi));
        fails_at(result, Errno::INVAL, size);
    }
}

fn an_empty_config_space_works() {
    let device = TestDevice::new(&changed(|c| c.space.clear()));
    fails(device.open().set_config(0, &[0]), Errno::INVAL);
}

fn vq_num_is_at_most_65535() {
    let control = control();
    for count in [0x1_0000, u32::MAX] {
        let result = create_raw(&control, |config| config.vq_num = count);
        fails_at(result, Errno::INVAL, count);
    }
}

fn a_device_without_queues_is_einval() {
    fails(create(&changed(|c| c.queues = 0)), Errno::INVAL);
}

fn only_blocks_nets_and_file_systems_are_allowed() {
    create(&disk_config()).unwrap();
    create(&net_config()).unwrap();
    create(&changed(|c| c.device_id = id::FS)).unwrap();
    for device_id in [0, id::CONSOLE, 4, 25, 27, u32::MAX] {
        let result = create(&changed(|c| c.device_id = device_id));
        fails_at(result, Errno::INVAL, device_id);
    }
}

fn access_platform_is_needed() {
    fails(
        create(&changed(|c| c.features &= !feature::ACCESS_PLATFORM)),
        Errno::INVAL,
    );
}

fn a_disk_with_a_writable_cache_mode_is_einval() {
    fails(
        create(&changed(|c| c.features |= feature::BLK_CONFIG_WCE)),
        Errno::INVAL,
    );
}

fn a_net_without_version_1_is_einval() {
    let mut config = net_config();
    config.features &= !feature::VERSION_1;
    fails(create(&config), Errno::INVAL);
    // A disk may be a legacy device.
    create(&changed(|c| c.features &= !feature::VERSION_1)).unwrap();
}

fn a_net_with_a_control_queue_works() {
    let mut config = net_config();
    config.features |= feature::NET_CTRL_VQ;
    config.queues = 3;
    create(&config).unwrap();
}

/// Removes a capability from this thread's effective set.
fn drop_capability(capability: CapabilitySet) {
    let mut sets = rustix::thread::capabilities(None).unwrap();
    sets.effective &= !capability;
    rustix::thread::set_capabilities(None, sets).unwrap();
}

fn a_net_needs_cap_net_admin() {
    drop_capability(CapabilitySet::NET_ADMIN);
    fails(create(&net_config()), Errno::PERM);
}

fn a_disk_needs_no_cap_net_admin() {
    drop_capability(CapabilitySet::NET_ADMIN);
    create(&disk_config()).unwrap();
}

fn the_nodes_are_for_root_only() {
    let device = TestDevice::disk();
    for path in [CONTROL_PATH.into(), Device::path(device.name())] {
        assert_eq!(owner_and_mode(&path), (0, 0, 0o600));
    }
}

/// Returns the user, the group and the permissions of a file.
fn owner_and_mode(path: &Path) -> (u32, u32, u32) {
    let file = std::fs::metadata(path).unwrap();
    (file.uid(), file.gid(), file.mode() & 0o777)
}

/// Runs `operation` in a thread without privileges, whose user ID and group ID are both `id`.
fn as_user<T: Send + 'static>(id: u32, operation: impl FnOnce() -> T + Send + 'static) -> T {
    // Credentials belong to a thread, so the other threads of the test still run as root.
    let thread = std::thread::spawn(move || {
        set_thread_groups(&[]).unwrap();
        set_thread_gid(Gid::from_raw(id)).unwrap();
        set_thread_uid(Uid::from_raw(id)).unwrap();
        operation()
    });
    thread.join().unwrap()
}

/// Checks that an unprivileged user who has the control device open can open and serve the devices
/// that this user creates, and that other users cannot.
fn a_node_belongs_to_who_created_it() {
    let control = control();
    let (control, name) = as_user(4711, move || {
        let name = unique_name();
        control
            .create(&changed(|c| c.name.clone_from(&name)))
            .unwrap();
        // The user opens the node immediately after `CREATE_DEV`, before any udev rule is applied,
        // as daemons do.
        let device = Device::open(&name).expect("opening the node as its owner");
        device.vq_setup(0, 64).unwrap();
        (control, name)
    });
    assert_eq!(owner_and_mode(&Device::path(&name)), (4711, 4711, 0o600));
    let opened = as_user(4713, {
        let name = name.clone();
        move || Device::open(&name)
    });
    fails(opened, Errno::ACCESS);
    as_user(4711, move || control.destroy(&name)).unwrap();
    // The node of a device that root creates belongs to root.
    the_nodes_are_for_root_only();
}

fn capabilities_of_a_user_namespace_do_not_count() {
    if !std::path::Path::new("/proc/self/ns/user").exists() {
        crate::lab::run::report::skip("this kernel has no user namespaces");
    }
    let device = TestDevice::disk();
    drop(device.open_ready(1));
    let program = std::process::Command::new("/proc/self/exe")
        .args(["--helper", "unprivileged", device.name()])
        .status();
    assert!(program.unwrap().success());
    // Capabilities of the initial user namespace do count.
    drop(OnBus::add(device.name()).unwrap());
}

fn each_reserved_field_must_be_0() {
    let control = control();
    for index in 0..11 {
        for value in [1, 1 << 31] {
            let result = create_raw(&control, |config| config.reserved[index] = value);
            fails_at(result, Errno::INVAL, index);
        }
    }
}

fn groups_and_spaces_must_be_0_in_version_0() {
    let control = control();
    for (groups, spaces) in [(1, 0), (0, 1), (1, 1), (u32::MAX, 0)] {
        let result = create_raw(&control, |config| {
            (config.ngroups, config.nas) = (groups, spaces);
        });
        fails_at(result, Errno::INVAL, (groups, spaces));
    }
}

fn groups_and_spaces_must_not_be_0_in_version_1() {
    let control = control();
    control.set_api_version(1).unwrap();
    for (groups, spaces) in [(0, 0), (1, 0), (0, 1), (0x1_0000, 1), (1, 0x1_0000)] {
        let result = create_raw(&control, |config| {
            (config.ngroups, config.nas) = (groups, spaces);
        });
        fails_at(result, Errno::INVAL, (groups, spaces));
    }
    create_raw(&control, |config| (config.ngroups, config.nas) = (1, 1)).unwrap();
}

fn destroying_what_is_not_there_is_einval() {
    let control = control();
    for name in ["", "control", "nothing-of-the-kind"] {
        fails_at(control.destroy(name), Errno::INVAL, name);
    }
    // `DESTROY_DEV` also refuses a name that has no terminating NUL.
    fails(
        raw::call(&control, ioctl::DESTROY_DEV, &mut [b'n'; NAME_MAX]),
        Errno::INVAL,
    );
}

fn destroying_an_open_device_is_ebusy() {
    let device = TestDevice::disk();
    let file = device.open();
    fails(control().destroy(device.name()), Errno::BUSY);
    // The failed DESTROY leaves the device usable.
    file.vq_info(0).unwrap();
    drop(file);
    device.destroy().unwrap();
}

fn destroying_twice_is_einval() {
    let name = unique_name();
    TestDevice::new(&changed(|c| c.name.clone_from(&name)))
        .destroy()
        .unwrap();
    fails(control().destroy(&name), Errno::INVAL);
}

fn a_name_can_be_used_again() {
    let config = disk_config();
    for _ in 0..3 {
        let device = TestDevice::new(&config);
        device.open().vq_setup(0, 64).unwrap();
    }
}

fn a_name_is_taken_until_its_device_is_gone() {
    let config = changed(|config| config.queues = 64);
    let end = Instant::now() + Duration::from_secs(3);
    // The threads stop at `end`. On a slow machine, they go on until they have created more than 3
    // devices.
    let all = AtomicU32::new(0);
    let goes_on = || Instant::now() < end || all.load(Relaxed) <= 3;
    let one_of = |result: io::Result<()>, errors: &[Errno]| match result {
        Ok(()) => 1,
        Err(error) => {
            let errno = Errno::from_io_error(&error).expect("a system call's error");
            assert!(errors.contains(&errno), "{errno:?}");
            0
        }
    };
    let counts = std::thread::scope(|scope| {
        let threads = [(); 3].map(|()| {
            scope.spawn(|| {
                let control = control();
                let mut counts = (0, 0);
                while goes_on() {
                    let created = one_of(control.create(&config), &[Errno::EXIST]);
                    all.fetch_add(created, Relaxed);
                    counts.0 += created;
                    counts.1 += one_of(control.destroy(&config.name), &[Errno::INVAL, Errno::BUSY]);
                }
                counts
            })
        });
        threads.map(|thread| thread.join().expect("only such errors"))
    });
    let created: u32 = counts.iter().map(|(created, _)| created).sum();
    let destroyed: u32 = counts.iter().map(|(_, destroyed)| destroyed).sum();
    assert_eq!(created, destroyed, "{counts:?}");
    drop(TestDevice::new(&config));
}

fn devices_come_and_go_in_a_loop() {
    let devices: Vec<TestDevice> = (0..20).map(|_| TestDevice::disk()).collect();
    for device in &devices {
        device.open();
    }
    drop(devices);
    for _ in 0..20 {
        create(&changed(|c| c.queues = 8)).unwrap();
    }
}
