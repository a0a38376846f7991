// SPDX-License-Identifier: GPL-2.0

//! Virtqueue groups, which version 1 of the API adds, and moving them between address spaces.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::Instant;

use rustix::io::Errno;
use vduse::blk::Disk;
use vduse::request::{Answer, Kind};
use vduse::server::Server;
use vduse::{Control, DeviceConfig};
use vduse_uapi::{IovaInfo, VqConfig};

use crate::lab::assert::data::assert_same;
use crate::lab::assert::errors::{fails, fails_at};
use crate::lab::assert::limit::in_time;
use crate::lab::assert::timing::soon;
use crate::lab::daemon::answered::{agree, Answered};
use crate::lab::daemon::disk::{memory_file, Served};
use crate::lab::daemon::responder::Responder;
use crate::lab::daemon::served_groups::ServedGroups;
use crate::lab::device::bus::{self, Driver, OnBus};
use crate::lab::device::spaces;
use crate::lab::device::test_device::{disk_config, net_config, TestDevice};
use crate::lab::device::virtio::status::RESET;
use crate::lab::driver::block;
use crate::lab::driver::ring::{self, HandQueue};
use crate::lab::driver::vhost::{self, access, Vhost};
use crate::lab::driver::virtio_disk::{LiveDisk, Shape};
use crate::lab::kernel::trace::Trace;
use crate::lab::kernel::{cpu, memory, modules, sysfs};

tests![
    api_version_1_is_asked_for_or_found_out,
    version_0_clients_see_nothing_new,
    create_dev_with_version_1_fields_as_version_0_is_einval,
    create_dev_takes_1_to_0xffff_groups_and_spaces,
    create_dev_reserved_fields_must_be_0_in_version_1,
    create_dev_is_charged_to_the_memory_cgroup,
    vq_setup_takes_a_group_in_range_for_each_queue,
    vq_setup_reserved_fields_must_be_0_in_version_1,
    vq_setup_is_refused_once_attached_unless_it_repeats_what_is_there,
    vq_setup_of_version_0_takes_group_0_only,
    vq_setup_of_version_0_counts_for_the_next_driver,
    vq_setup_of_version_0_counts_when_a_driver_of_the_kernel_begins,
    get_vq_group_is_what_was_set_up,
    the_token_of_a_queue_is_its_groups,
    set_group_asid_is_sent_to_the_daemon,
    set_group_asid_that_the_daemon_refuses_changes_nothing,
    set_group_asid_that_nobody_answers_fails_in_time,
    set_group_asid_out_of_range_is_einval,
    set_group_asid_is_ebusy_once_the_driver_is_ready,
    set_group_asid_of_version_0_is_einval,
    a_reset_puts_the_groups_back_to_space_0,
    moving_groups_interrupts_no_cpus,
    a_reset_moves_many_groups_at_once => 40,
    the_example_serves_two_groups_in_two_spaces,
];

fn api_version_1_is_asked_for_or_found_out() {
    let control = Control::open().unwrap();
    assert_eq!(control.api_version().unwrap(), 1);
    for version in [0, 1] {
        control.set_api_version(version).unwrap();
        assert_eq!(control.api_version().unwrap(), version);
    }
    fails(control.set_api_version(2), Errno::INVAL);
    assert_eq!(control.api_version().unwrap(), 1);
    // The version belongs to the open file, so other files keep theirs.
    control.set_api_version(0).unwrap();
    let other = Control::open().unwrap();
    assert_eq!(other.api_version().unwrap(), 1);
    assert_eq!(control.api_version().unwrap(), 0);
}

fn version_0_clients_see_nothing_new() {
    let answered = Answered::version_0(2);
    let vhost = answered.vhost();
    assert_eq!(vhost.groups().unwrap(), 1);
    assert_eq!(vhost.address_spaces().unwrap(), 1);
    assert_eq!(vhost.group_of(0).unwrap(), 0);
    assert_eq!(vhost.group_of(1).unwrap(), 0);
    answered.responder.take_kinds();
    // In version 0, the UPDATE_IOTLB message has no address space, so `asid` is 0.
    let page = memory::page_of(1);
    vhost.map_in(0, 0x1000, &page, access::RW).unwrap();
    let update = Kind::UpdateIotlb {
        first: 0,
        last: u64::MAX,
        asid: 0,
    };
    assert_eq!(answered.responder.take_kinds(), [update]);
    let file = &answered.file;
    assert_eq!(file.iotlb_fd(0x1000, 0x1000).unwrap().first, 0x1000);
    for asid in [0, 1] {
        fails(file.iotlb_fd2(asid, 0x1000, 0x1000), Errno::NOTTY);
    }
    fails(vhost.map_in(1, 0x2000, &page, access::RW), Errno::FAULT);
    assert_eq!(answered.responder.take_kinds(), []);
}

/// Tries to create a device, after setting the API version if `version` gives one.
#[track_caller]
fn create(version: Option<u64>, config: &DeviceConfig) -> Result<TestDevice, Errno> {
    let control = Control::open().unwrap();
    if let Some(version) = version {
        control.set_api_version(version).unwrap();
    }
    match control.create(config) {
        Ok(()) => Ok(TestDevice::adopt(&config.name)),
        Err(error) => Err(Errno::from_io_error(&error).unwrap()),
    }
}

fn create_dev_with_version_1_fields_as_version_0_is_einval() {
    let fields = [(1, 0), (0, 1), (1, 1), (2, 2), (u32::MAX, u32::MAX)];
    for version in [None, Some(0)] {
        for (groups, address_spaces) in fields {
            let config = DeviceConfig {
                groups,
                address_spaces,
                ..disk_config()
            };
            let found = create(version, &config).map(drop);
            assert_eq!(
                found,
                Err(Errno::INVAL),
                "{groups} groups, {address_spaces} spaces"
            );
        }
        create(version, &disk_config()).unwrap();
    }
}

fn create_dev_takes_1_to_0xffff_groups_and_spaces() {
    let try_counts = |groups, spaces| create(Some(1), &spaces::config(1, groups, spaces)).map(drop);
    for good in [1, 2, 0xffff] {
        assert_eq!(try_counts(good, 1), Ok(()), "{good} groups");
        assert_eq!(try_counts(1, good), Ok(()), "{good} spaces");
    }
    for bad in [0, 0x1_0000, 0x1_0001, 1 << 31, u32::MAX] {
        assert_eq!(try_counts(bad, 1), Err(Errno::INVAL), "{bad} groups");
        assert_eq!(try_counts(1, bad), Err(Errno::INVAL), "{bad} spaces");
    }
}

fn create_dev_reserved_fields_must_be_0_in_version_1() {
    let control = Control::open_v1().unwrap();
    let config = spaces::config(1, 2, 2);
    let (abi, space) = config.to_abi().unwrap();
    for index in 0..abi.reserved.len() {
        let mut abi = abi;
        abi.reserved[index] = 1 << (2 * index);
        fails_at(control.create_raw(&abi, space), Errno::INVAL, index);
    }
    control.create_raw(&abi, space).unwrap();
    TestDevice::adopt(&config.name);
}

fn create_dev_is_charged_to_the_memory_cgroup() {
    let cgroup = crate::lab::kernel::cgroup::Cgroup::new();
    cgroup.enter();
    let device = create(Some(1), &spaces::config(1, 1, 1)).unwrap();
    let before = cgroup.charged();
    let large = create(Some(1), &spaces::config(1, 0xffff, 0xffff)).unwrap();
    let charged = cgroup.charged() - before;
    crate::lab::run::report::note(format_args!(
        "0xffff groups and spaces: {} KiB charged",
        charged >> 10
    ));
    // Any implementation stores at least the number of its address space (4 bytes) for each of the
    // 0xffff groups, and a pointer (8 bytes) for each of the 0xffff address spaces.
    assert!(charged >= 12 * 0xffff, "{charged} bytes");
    drop(large);
    soon("what was charged is given back", || {
        cgroup.charged() < before + charged / 2
    });
    drop(device);
    cgroup.leave();
}

fn vq_setup_takes_a_group_in_range_for_each_queue() {
    let device = spaces::create(&spaces::config(3, 5, 1)).unwrap();
    let file = device.open_nonblocking();
    for queue in 0..3 {
        for group in [0, 4, 1] {
            spaces::set_up(&file, queue, group).unwrap();
        }
        for group in [5, 6, 0xffff, 0x1_0000, u32::MAX] {
            fails_at(spaces::set_up(&file, queue, group), Errno::INVAL, group);
        }
    }
}

fn vq_setup_reserved_fields_must_be_0_in_version_1() {
    let device = spaces::create(&spaces::config(1, 2, 2)).unwrap();
    let file = device.open_nonblocking();
    let config = VqConfig {
        max_size: 256,
        group: 1,
        ..Default::default()
    };
    let reserved1 = 1;
    let bad = VqConfig {
        reserved1,
        ..config
    };
    fails(file.vq_setup_raw(&bad), Errno::INVAL);
    for index in 0..config.reserved2.len() {
        let mut bad = config;
        bad.reserved2[index] = 1 << index;
        fails_at(file.vq_setup_raw(&bad), Errno::INVAL, index);
    }
    file.vq_setup_raw(&config).unwrap();
}

fn vq_setup_is_refused_once_attached_unless_it_repeats_what_is_there() {
    let answered = Answered::new(&[0, 1], 3, 2);
    let vhost = answered.vhost();
    let file = &answered.file;
    spaces::set_up(file, 1, 1).unwrap();
    for group in [0, 2] {
        fails_at(spaces::set_up(file, 1, group), Errno::INVAL, group);
    }
    let smaller = VqConfig {
        index: 1,
        max_size: 128,
        group: 1,
        ..Default::default()
    };
    fails(file.vq_setup_raw(&smaller), Errno::INVAL);
    assert_eq!(vhost.group_of(1).unwrap(), 1);
    drop(vhost);
    // VQ_SETUP may change the group of a device that is not on the bus.
    answered.on_bus.delete().unwrap();
    spaces::set_up(file, 1, 2).unwrap();
    let on_bus = OnBus::add(answered.device.name()).unwrap();
    on_bus.bind(Driver::Vhost).unwrap();
    let vhost = vhost::open(&answered.device);
    assert_eq!(vhost.group_of(1).unwrap(), 2);
    drop(vhost);
    drop(on_bus);
}

fn vq_setup_of_version_0_takes_group_0_only() {
    let device = TestDevice::disk();
    let file = device.open_nonblocking();
    for group in [1, 2, u32::MAX] {
        fails_at(spaces::set_up(&file, 0, group), Errno::INVAL, group);
    }
    spaces::set_up(&file, 0, 0).unwrap();
}

fn vq_setup_of_version_0_counts_for_the_next_driver() {
    let answered = Answered::version_0(1);
    let file = &answered.file;
    let sizes = |vhost: &Vhost| {
        (
            vhost.queue_size(0).unwrap(),
            vhost.max_queue_size().unwrap(),
        )
    };
    let vhost = answered.vhost();
    file.vq_setup(0, 128).unwrap();
    assert_eq!(sizes(&vhost), (256, 256));
    vhost.set_status(RESET).unwrap();
    assert_eq!(sizes(&vhost), (128, 128));
    file.vq_setup(0, 64).unwrap();
    drop(vhost);
    // Opening the vhost-vdpa node resets the device.
    let vhost = answered.vhost();
    assert_eq!(sizes(&vhost), (64, 64));
    fails(file.vq_setup(0, 0), Errno::INVAL);
    drop(vhost);
    // The next VQ_SETUP takes effect without a reset, when the device is put on the bus again.
    answered.on_bus.unbind(Driver::Vhost).unwrap();
    file.vq_setup(0, 32).unwrap();
    answered.on_bus.delete().unwrap();
    let on_bus = OnBus::add(answered.device.name()).unwrap();
    let largest = bus::vdpa().device(on_bus.name()).unwrap().max_queue_size;
    assert_eq!(largest, 32);
}

fn vq_setup_of_version_0_counts_when_a_driver_of_the_kernel_begins() {
    let disk = LiveDisk::new(Shape::default());
    let device = disk.served.device();
    let directory = bus::virtio_directory(disk.device.name()).unwrap();
    let name = directory.file_name().unwrap().to_str().unwrap();
    let driver = std::path::Path::new("/sys/bus/virtio/drivers/virtio_blk");
    // Unbinding virtio_blk resets the device. Binding virtio_blk does not.
    sysfs::write(&driver.join("unbind"), name).unwrap();
    device.vq_setup(0, 64).unwrap();
    sysfs::write(&driver.join("bind"), name).unwrap();
    assert_eq!(device.vq_info(0).unwrap().num, 64);
}

fn get_vq_group_is_what_was_set_up() {
    let groups = [3, 0, 1, 1, 4];
    let answered = Answered::new(&groups, 5, 7);
    let vhost = answered.vhost();
    assert_eq!(vhost.queues().unwrap(), 5);
    assert_eq!(vhost.groups().unwrap(), 5);
    assert_eq!(vhost.address_spaces().unwrap(), 7);
    for (queue, group) in (0..).zip(groups) {
        assert_eq!(vhost.group_of(queue).unwrap(), group);
    }
    fails(vhost.group_of(5), Errno::NOBUFS);
}

fn the_token_of_a_queue_is_its_groups() {
    // virtio_blk maps all its memory through the mapping tokens of its virtqueues. While virtio_blk
    // is bound, all groups are in address space 0.
    let disk = ServedGroups::new(2, 2);
    disk.on_bus.bind(Driver::Virtio).unwrap();
    soon("the disk appears", || {
        bus::disk_name(disk.device.name()).is_some()
    });
    let name = bus::disk_name(disk.device.name()).unwrap();
    let block = block::Block::open(&name).unwrap();
    // virtio_blk uses a different queue on each CPU.
    for number in 0..2 {
        cpu::run_on(number);
        for sector in 0..16u8 {
            let found = block.read(u64::from(sector) * 512, 512).unwrap();
            assert_same(&found, &[sector + 1; 512], "a sector");
        }
        let data = [0xa0 + number as u8; 4096];
        let at = 0x10000 + 4096 * number as u64;
        block.write(at, &data).unwrap();
        assert_same(&block.read(at, 4096).unwrap(), &data, "what was written");
    }
    let device = disk.served.device();
    for queue in 0..2 {
        let ring = device.vq_info(queue).unwrap();
        assert_eq!(ring.ready, 1);
        let at = ring.desc_addr;
        assert!(device.iotlb_fd2(0, at, at).is_ok());
        fails(device.iotlb_fd2(1, at, at), Errno::INVAL);
    }
}

fn moved(group: u32, asid: u32) -> Kind {
    Kind::SetGroupAsid { group, asid }
}

fn set_group_asid_is_sent_to_the_daemon() {
    let answered = Answered::new(&[0, 1, 2], 3, 4);
    let vhost = answered.vhost();
    answered.responder.take_kinds();
    let moves = [(0, 0), (1, 3), (2, 2), (1, 0), (1, 0), (0, 1)];
    for (group, asid) in moves {
        vhost.set_group_asid(group, asid).unwrap();
    }
    let expected = moves.map(|(group, asid)| moved(group, asid));
    assert_eq!(answered.responder.take_kinds(), expected);
}

fn set_group_asid_that_the_daemon_refuses_changes_nothing() {
    let refuse = Arc::new(AtomicBool::new(true));
    let theirs = refuse.clone();
    let answered = Answered::with(&[0, 1], 2, 2, move |request| match request.kind {
        Kind::SetGroupAsid { .. } if theirs.load(Ordering::Relaxed) => Some(Answer::Failed),
        _ => agree(request),
    });
    let vhost = answered.vhost();
    fails(vhost.set_group_asid(1, 1), Errno::IO);
    fails(vhost.set_group_asid(1, 0), Errno::IO);
    // The device still works after the refusals.
    refuse.store(false, Ordering::Relaxed);
    vhost.set_group_asid(1, 1).unwrap();
    drop(vhost);
    drop(answered);

    // virtio_blk also works after the daemon has refused to move a group. The server below has only
    // address space 0, and refuses to move a group to any other address space.
    let device = spaces::create(&spaces::config(2, 2, 2)).unwrap();
    let disk = Disk::new(memory_file(1 << 20));
    let queues = [(256, 0), (256, 1)];
    let server = Server::with_groups(device.open_nonblocking(), &queues, 1, disk).unwrap();
    let served = Served::run(server);
    let on_bus = OnBus::add(device.name()).unwrap();
    on_bus.bind(Driver::Vhost).unwrap();
    let vhost = vhost::open(&device);
    fails(vhost.set_group_asid(1, 1), Errno::IO);
    drop(vhost);
    on_bus.unbind(Driver::Vhost).unwrap();
    on_bus.bind(Driver::Virtio).unwrap();
    soon("the disk appears", || {
        bus::disk_name(device.name()).is_some()
    });
    let block = block::Block::open(&bus::disk_name(device.name()).unwrap()).unwrap();
    for number in 0..2 {
        cpu::run_on(number);
        block.write(0, &[number as u8; 512]).unwrap();
        assert_same(
            &block.read(0, 512).unwrap(),
            &[number as u8; 512],
            "a sector",
        );
    }
    drop(block);
    drop(on_bus);
    drop(served);
}

fn set_group_asid_that_nobody_answers_fails_in_time() {
    let answered = Answered::with(&[0, 1], 2, 2, |request| match request.kind {
        Kind::SetGroupAsid { .. } => None,
        _ => agree(request),
    });
    let vhost = answered.vhost();
    let timeout = sysfs::attribute(answered.device.name(), "msg_timeout");
    sysfs::write(&timeout, "1").unwrap();
    let limit = std::time::Duration::from_secs(3);
    fails(
        in_time(limit, "a move", || vhost.set_group_asid(1, 1)),
        Errno::IO,
    );
    // The timeout has broken the device.
    fails(vhost.set_group_asid(1, 0), Errno::IO);
}

fn set_group_asid_out_of_range_is_einval() {
    let answered = Answered::new(&[0, 1, 2, 2], 3, 2);
    let vhost = answered.vhost();
    answered.responder.take_kinds();
    for (group, asid) in [(3, 0), (0, 2), (2, 2), (0, 0x1_0000), (1, u32::MAX)] {
        fails_at(
            vhost.set_group_asid(group, asid),
            Errno::INVAL,
            (group, asid),
        );
    }
    // vhost-vdpa itself rejects these groups, because it requires the number of a group to be less
    // than the number of virtqueues.
    for group in [4, 0xffff, u32::MAX] {
        fails_at(vhost.set_group_asid(group, 0), Errno::NOBUFS, group);
    }
    assert_eq!(answered.responder.take_kinds(), []);
    vhost.set_group_asid(2, 1).unwrap();
}

fn set_group_asid_is_ebusy_once_the_driver_is_ready() {
    let disk = ServedGroups::new(2, 2);
    disk.on_bus.bind(Driver::Vhost).unwrap();
    let vhost = vhost::open(&disk.device);
    ring::agree(&vhost);
    vhost.set_group_asid(1, 1).unwrap();
    let mut queue = HandQueue::prepare(&vhost, 1, 1, 0x10_0000);
    queue.set_up(&vhost);
    ring::start(&vhost);
    fails(vhost.set_group_asid(1, 0), Errno::BUSY);
    assert_same(&queue.read(4), &[5; 512], "a sector");
}

fn set_group_asid_of_version_0_is_einval() {
    let answered = Answered::version_0(2);
    let vhost = answered.vhost();
    answered.responder.take_kinds();
    for (group, asid) in [(0, 0), (0, 1), (1, 0)] {
        fails_at(
            vhost.set_group_asid(group, asid),
            Errno::INVAL,
            (group, asid),
        );
    }
    assert_eq!(answered.responder.take_kinds(), []);
}

fn a_reset_puts_the_groups_back_to_space_0() {
    let mut config = net_config();
    config.groups = 2;
    config.address_spaces = 2;
    let device = spaces::create(&config).unwrap();
    let file = Arc::new(device.open_nonblocking());
    for queue in 0..2 {
        spaces::set_up(&file, queue, queue).unwrap();
    }
    let responder = Responder::new(&file, agree);
    let on_bus = OnBus::add(device.name()).unwrap();
    on_bus.bind(Driver::Vhost).unwrap();
    let vhost = vhost::open(&device);
    vhost.set_group_asid(0, 1).unwrap();
    vhost.set_group_asid(1, 1).unwrap();
    drop(vhost);
    on_bus.unbind(Driver::Vhost).unwrap();
    modules::tool("modprobe", &["virtio_net"]).unwrap();
    // The reset has moved both groups back to address space 0, so the daemon finds the rings of the
    // next driver there.
    on_bus.bind(Driver::Virtio).unwrap();
    soon("the driver sets its queues up", || {
        (0..2).all(|queue| file.vq_info(queue).unwrap().desc_addr != 0)
    });
    for queue in 0..2 {
        let at = file.vq_info(queue).unwrap().desc_addr;
        let region = file.iotlb_fd2(0, at, at);
        assert!(region.is_ok(), "queue {queue}: {region:?}");
    }
    let info = IovaInfo {
        last: u64::MAX,
        asid: 1,
        ..Default::default()
    };
    fails(file.iotlb_info(info), Errno::INVAL);
    drop(on_bus);
    drop(responder);
}

fn moving_groups_interrupts_no_cpus() {
    const MOVES: usize = 40;
    let answered = Answered::new(&[0, 1], 2, 2);
    let vhost = answered.vhost();
    // `synchronize_rcu_expedited` interrupts all CPUs.
    let trace = Trace::of_function("synchronize_rcu_expedited");
    for n in 0..MOVES {
        vhost.set_group_asid(1, (n as u32 + 1) % 2).unwrap();
    }
    vhost.set_group_asid(1, 1).unwrap();
    vhost.set_status(RESET).unwrap();
    // Other parts of the kernel may call `synchronize_rcu_expedited` once in a while.
    let times = trace.events().len();
    assert!(times < MOVES / 4, "{times} times in {MOVES} moves");
}

fn a_reset_moves_many_groups_at_once() {
    const GROUPS: u32 = 64;
    let queues: Vec<u32> = (0..GROUPS).collect();
    let answered = Answered::new(&queues, GROUPS, 2);
    let vhost = answered.vhost();
    let begin = Instant::now();
    for group in 0..GROUPS {
        vhost.set_group_asid(group, 1).unwrap();
    }
    let there = begin.elapsed();
    let begin = Instant::now();
    vhost.set_status(RESET).unwrap();
    let back = begin.elapsed();
    crate::lab::run::report::note(format_args!(
        "{GROUPS} groups: {there:?}, and back {back:?}"
    ));
    assert!(back < there / 5);
}

fn the_example_serves_two_groups_in_two_spaces() {
    let name = crate::lab::device::test_device::unique_name();
    let mut child = std::process::Command::new("/proc/self/exe")
        .args(["--helper", "isolated", &name, "65536"])
        .spawn()
        .expect("starting the example");
    let device = TestDevice::adopt(&name);
    let on_bus = OnBus::add_soon(&name);
    on_bus.bind(Driver::Vhost).unwrap();
    let vhost = vhost::open(&device);
    assert_eq!(vhost.groups().unwrap(), 2);
    assert_eq!(vhost.address_spaces().unwrap(), 2);
    ring::agree(&vhost);
    vhost.set_group_asid(1, 1).unwrap();
    // Both queues use the same IOVAs, each in its own address space.
    let mut queues: Vec<_> = (0..2)
        .map(|n| HandQueue::prepare(&vhost, n, n, 0x10_0000))
        .collect();
    for queue in &queues {
        queue.set_up(&vhost);
    }
    ring::start(&vhost);
    for queue in &mut queues {
        assert_same(&queue.read(3), &[0; 512], "a sector");
    }
    drop(vhost);
    drop(on_bus);
    child.kill().unwrap();
    child.wait().unwrap();
}
