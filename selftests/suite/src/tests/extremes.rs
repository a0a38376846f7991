// SPDX-License-Identifier: GPL-2.0

//! Devices with the largest or the smallest number of virtqueues, groups, or address spaces.

use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use vduse::DeviceConfig;

use crate::lab::assert::counts::{self, available};
use crate::lab::assert::data::assert_same;
use crate::lab::assert::errors::fails;
use crate::lab::assert::timing::soon;
use crate::lab::daemon::answered::{agree, Answered};
use crate::lab::daemon::regions::first_byte;
use crate::lab::daemon::responder::Responder;
use crate::lab::daemon::served_groups::ServedGroups;
use crate::lab::device::bus::{self, Driver, OnBus};
use crate::lab::device::spaces;
use crate::lab::device::test_device::{unique_name, TestDevice};
use crate::lab::driver::block::Block;
use crate::lab::driver::ring::{self, HandQueue};
use crate::lab::driver::vhost::{self, access, Vhost};
use crate::lab::driver::virtio_disk::{LiveDisk, Shape};
use crate::lab::kernel::cgroup::Cgroup;
use crate::lab::kernel::cpu;
use crate::lab::kernel::memory::page_of;
use crate::lab::kernel::rcu::Expedited;
use crate::lab::run::report::{note, skip};

tests![
    a_device_of_0xffff_groups_works,
    a_device_of_0xffff_spaces_is_created,
    a_device_of_0xffff_spaces_works,
    a_device_of_1024_spaces_works,
    a_device_of_many_spaces_costs_no_more_than_it_uses,
    a_device_of_1_queue_works,
    a_device_of_256_queues_works,
    a_device_of_128_queues_in_128_groups_and_spaces_works => 40,
    a_device_of_0xffff_queues_is_charged_to_its_creator => 120,
    spaces_that_are_moved_to_are_charged_to_the_client => 60,
    bounce_pages_are_no_more_than_bounce_size => 60,
];

/// A meter of the time and the memory that each step of a test takes.
struct Meter {
    what: String,
    available: i64,
    begin: Instant,
}

impl Meter {
    fn new(what: &str) -> Self {
        Self {
            what: what.to_owned(),
            available: available(),
            begin: Instant::now(),
        }
    }

    /// Ends a step, and reports its time and memory.
    fn step(&mut self, name: &str) {
        let took = self.begin.elapsed();
        let now = available();
        note(format_args!(
            "{}: {name}: {:.1} ms, {} KiB",
            self.what,
            took.as_secs_f64() * 1e3,
            self.available - now
        ));
        self.available = now;
        self.begin = Instant::now();
    }
}

/// Creates a device whose virtqueue 0 is in the last group, uses the device through vhost by
/// calling `with`, and destroys the device. Reports the time and the memory of each step.
#[track_caller]
fn life(what: &str, config: &DeviceConfig, bounce: u64, with: impl FnOnce(&Vhost, &vduse::Device)) {
    let mut meter = Meter::new(what);
    let device = spaces::create(config).expect("creating");
    meter.step("creating");
    if bounce != 0 {
        device.set_bounce_size(bounce);
    }
    let file = Arc::new(device.open_nonblocking());
    spaces::set_up(&file, 0, config.groups - 1).expect("setting the queue up");
    let responder = Responder::new(&file, agree);
    let on_bus = OnBus::add(device.name()).expect("adding");
    meter.step("putting it on the bus");
    on_bus.bind(Driver::Vhost).expect("binding");
    let vhost = vhost::open(&device);
    meter.step("opening it through vhost");
    assert_eq!(vhost.groups().unwrap(), config.groups);
    assert_eq!(vhost.address_spaces().unwrap(), config.address_spaces);
    assert_eq!(vhost.group_of(0).unwrap(), config.groups - 1);
    with(&vhost, &file);
    meter.step("using it");
    drop(vhost);
    meter.step("closing it");
    drop(on_bus);
    meter.step("taking it off the bus");
    drop(responder);
    drop(file);
    device.destroy().expect("destroying");
    meter.step("destroying it");
}

/// Returns a function that uses the first and the last address space of a device that has `spaces`
/// address spaces.
fn use_ends(spaces: u32) -> impl FnOnce(&Vhost, &vduse::Device) {
    move |vhost, file| {
        let pages = [page_of(1), page_of(2)];
        for (asid, page) in [0, spaces - 1].into_iter().zip(&pages) {
            vhost.set_group_asid(0, asid).unwrap();
            vhost.map_in(asid, 0x1000, page, access::RW).unwrap();
        }
        assert_eq!(first_byte(file, 0, 0x1000).unwrap(), 1);
        assert_eq!(first_byte(file, spaces - 1, 0x1000).unwrap(), 2);
        if spaces > 2 {
            fails(file.iotlb_fd2(spaces / 2, 0, u64::MAX), Errno::INVAL);
        }
    }
}

fn a_device_of_0xffff_groups_works() {
    let config = spaces::config(1, 0xffff, 2);
    life("0xffff groups", &config, 0, use_ends(2));
}

fn a_device_of_0xffff_spaces_is_created() {
    let mut meter = Meter::new("0xffff spaces");
    let device = spaces::create(&spaces::config(1, 1, 0xffff)).unwrap();
    meter.step("creating");
    device.destroy().unwrap();
    meter.step("destroying it");
}

fn a_device_of_0xffff_spaces_works() {
    // 1 GiB is the size of the bounce area, which the address spaces share equally. With the
    // default size of 64 MiB, each address space would get less than a page.
    let config = spaces::config(1, 1, 0xffff);
    life("0xffff spaces", &config, 1 << 30, use_ends(0xffff));
}

fn a_device_of_1024_spaces_works() {
    let config = spaces::config(1, 1, 1024);
    life("1024 spaces", &config, 0, use_ends(1024));
}

fn a_device_of_many_spaces_costs_no_more_than_it_uses() {
    // Allocating all of these address spaces would take 12 MiB.
    const SPACES: u32 = 8192;
    let config = spaces::config(1, 1, SPACES);
    let before = available();
    let mut cost = 0;
    life("8192 spaces", &config, 0, |vhost, file| {
        use_ends(SPACES)(vhost, file);
        cost = before - available();
    });
    assert!(cost < 4 << 10, "{cost} KiB");
}

fn a_device_of_1_queue_works() {
    let disk = ServedGroups::new(1, 1);
    disk.on_bus.bind(Driver::Vhost).unwrap();
    let vhost = vhost::open(&disk.device);
    ring::agree(&vhost);
    assert_eq!(vhost.queues().unwrap(), 1);
    fails(vhost.set_queue_size(1, 256), Errno::NOBUFS);
    let mut queue = HandQueue::prepare(&vhost, 0, 0, 0x10_0000);
    queue.set_up(&vhost);
    ring::start(&vhost);
    assert_same(&queue.read(9), &[10; 512], "a sector");
}

fn a_device_of_256_queues_works() {
    // This test uses virtio-vdpa. vhost-vdpa cannot bind to a device with 256 virtqueues, because
    // it allocates the memory for all virtqueues in one piece.
    let mut meter = Meter::new("256 queues");
    let disk = ServedGroups::new(256, 256);
    meter.step("creating it and putting it on the bus");
    disk.on_bus.bind(Driver::Virtio).unwrap();
    soon("the disk appears", || {
        bus::disk_name(disk.device.name()).is_some()
    });
    let block = Block::open(&bus::disk_name(disk.device.name()).unwrap()).unwrap();
    for number in 0..2 {
        cpu::run_on(number);
        assert_same(&block.read(512, 512).unwrap(), &[2; 512], "a sector");
    }
    meter.step("a request in each queue that the kernel uses");
}

fn a_device_of_128_queues_in_128_groups_and_spaces_works() {
    const COUNT: u32 = 128;
    let _expedited = Expedited::new();
    let mut meter = Meter::new("128 queues, groups and spaces");
    let disk = ServedGroups::new(COUNT as u16, COUNT);
    meter.step("creating it and putting it on the bus");
    disk.on_bus.bind(Driver::Vhost).unwrap();
    let vhost = vhost::open(&disk.device);
    ring::agree(&vhost);
    assert_eq!(vhost.queues().unwrap(), COUNT);
    for n in 0..COUNT {
        assert_eq!(vhost.group_of(n).unwrap(), n);
        vhost.set_group_asid(n, n).unwrap();
    }
    // All queues use the same address, each in its own address space.
    let mut queues: Vec<_> = (0..COUNT)
        .map(|n| HandQueue::prepare(&vhost, n, n, 0x10_0000))
        .collect();
    for queue in &queues {
        queue.set_up(&vhost);
    }
    ring::start(&vhost);
    meter.step("setting all queues up");
    for (n, queue) in queues.iter_mut().enumerate() {
        let sector = n as u64 % 16;
        assert_same(&queue.read(sector), &[sector as u8 + 1; 512], "a sector");
    }
    meter.step("a request in each queue");
}

/// The memory, in KiB, that may be in use without being charged to a cgroup. The kernel does not
/// charge the 400 bytes or so that sysfs takes for each virtqueue to any process.
const TOLERANCE: i64 = 36 << 10;

/// Runs a process in a new cgroup, and asserts that the memory that the process used up is charged
/// to the cgroup, so that a container's memory limit covers it. Returns the charge in KiB.
#[track_caller]
fn is_charged_for(command: &mut Command) -> i64 {
    let cgroup = Cgroup::new();
    let before = available();
    let status = cgroup.spawn(command).wait().expect("waiting");
    let fallen = before - available();
    let charged = (cgroup.charged() >> 10) as i64;
    note(format_args!(
        "{fallen} KiB less memory, {charged} KiB of it charged"
    ));
    assert!(status.success(), "{status}");
    assert!(
        fallen < charged + TOLERANCE,
        "{fallen} KiB, {charged} KiB charged"
    );
    charged
}

fn helper(arguments: &[&str]) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.arg("--helper").args(arguments);
    command
}

fn a_device_of_0xffff_queues_is_charged_to_its_creator() {
    if counts::has_kmemleak() {
        skip("what kmemleak takes for each object is charged to nobody");
    }
    let device = TestDevice::adopt(&unique_name());
    is_charged_for(&mut helper(&["queues", device.name(), "65535"]));
    device.destroy().unwrap();
}

fn spaces_that_are_moved_to_are_charged_to_the_client() {
    const SPACES: u32 = 1024;
    let _expedited = Expedited::new();
    let answered = Answered::new(&[0], 1, SPACES);
    let path = bus::vhost_path(answered.device.name()).unwrap();
    let spaces = SPACES.to_string();
    let charged = is_charged_for(&mut helper(&["moves", path.to_str().unwrap(), &spaces]));
    // Every implementation needs at least 256 bytes for each address space.
    assert!(charged >= i64::from(SPACES) / 4, "{charged} KiB");
}

fn bounce_pages_are_no_more_than_bounce_size() {
    const SIZE: u64 = 64 << 20;
    for lent in [false, true] {
        let disk = LiveDisk::new(Shape {
            bytes: 256 << 20,
            ..Default::default()
        });
        let block = disk.block();
        block.read(0, 4096).unwrap();
        crate::lab::kernel::memlock::unlimited_memlock();
        if lent {
            disk.served.handle().register_umem().unwrap();
        }
        let before = available();
        // A separate process writes to the disk, so that the process's own memory is freed before
        // the measurement.
        let filled = helper(&["fill", block.name()]).status();
        assert!(filled.unwrap().success());
        let busy = before - available();
        std::thread::sleep(Duration::from_secs(2));
        let idle = before - available();
        note(format_args!(
            "lent {lent}: {busy} KiB after I/O, {idle} KiB when idle, of {} KiB",
            SIZE >> 10
        ));
        // The memory in use may exceed the size of the bounce area by a quarter, for page tables
        // and the like.
        assert!(idle < (SIZE * 5 / 4 >> 10) as i64, "{idle} KiB");
        drop(block);
        drop(disk);
        soon("it is given back", || before - available() < TOLERANCE);
    }
}
