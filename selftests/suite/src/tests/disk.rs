// SPDX-License-Identifier: GPL-2.0

//! Disks that the kernel's virtio_blk drives. Their data stays intact, even if another daemon takes
//! over.

use std::io::IoSliceMut;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use vduse::blk;

use crate::differences;
use crate::lab::assert::data::assert_same;
use crate::lab::assert::limit::in_time;
use crate::lab::assert::timing::soon;
use crate::lab::assert::waiting::Waiting;
use crate::lab::daemon::disk::{memory_file, Served};
use crate::lab::daemon::interrupt_on_drop::InterruptOnDrop;
use crate::lab::daemon::process::{Daemon, Manner};
use crate::lab::device::bus::{self, Driver, OnBus};
use crate::lab::device::test_device::{unique_name, TestDevice};
use crate::lab::device::virtio::feature;
use crate::lab::driver::block::{sectors, Aligned, Block};
use crate::lab::driver::exerciser::{exercise, Exerciser};
use crate::lab::driver::ring;
use crate::lab::driver::vhost::Vhost;
use crate::lab::driver::virtio_disk::{LiveDisk, Shape};
use crate::lab::kernel::huge_page::HugePage;
use crate::lab::kernel::memory::PAGE;
use crate::lab::kernel::sysfs;
use crate::lab::run::report::skip;
use crate::lab::run::scratch::Scratch;
use crate::lab::run::settings::driver;

tests![
    what_is_written_is_in_the_file_and_read_back,
    random_requests_are_intact,
    random_requests_are_intact_without_event_index,
    random_requests_of_several_threads_on_several_queues_are_intact => 40,
    random_requests_on_packed_queues_are_intact => 60,
    packed_queues_are_not_offered_to_virtio_blk,
    large_requests_are_intact,
    more_data_than_the_bounce_area_is_intact,
    a_request_of_half_the_bounce_area_ends,
    requests_larger_than_the_bounce_area_end,
    larger_pieces_find_room_after_many_pages,
    requests_longer_than_the_virtqueue_end,
    a_disk_without_room_for_a_request_is_not_driven,
    flushes_arrive,
    errors_of_the_device_are_errors_of_the_driver,
    a_live_disk_grows_and_shrinks,
    a_disk_grows_between_two_drivers,
    a_driver_that_tries_again_after_it_has_failed_is_interrupted,
    a_daemon_that_ends_and_comes_again_goes_on,
    a_daemon_killed_under_io_is_taken_over => 40,
    a_daemon_killed_with_requests_begun_is_taken_over,
    a_daemon_killed_before_it_interrupts_is_taken_over,
    several_kills_lose_nothing => 60,
    nothing_hangs_longer_than_msg_timeout_without_a_daemon,
    attaching_and_detaching_40_times_leaves_nothing => 60,
    rebinding_40_times_leaves_nothing => 60,
    a_reset_leaves_no_stale_mappings,
];

fn what_is_written_is_in_the_file_and_read_back() {
    let disk = LiveDisk::new(Shape::default());
    let block = disk.block();
    block.write(8192, &[0xab; 4096]).unwrap();
    let mut found = [0; 4096];
    disk.file.read_exact_at(&mut found, 8192).unwrap();
    assert_same(&found, &[0xab; 4096], "the file");
    disk.file.write_all_at(&[0xcd; 512], 512).unwrap();
    assert_same(&block.read(512, 512).unwrap(), &[0xcd; 512], "the disk");
    assert_eq!(sectors(block.name()), Some((4 << 20) / 512));
}

#[track_caller]
fn random(shape: Shape, steps: usize, seed: u64) {
    let disk = LiveDisk::new(shape);
    let block = disk.block();
    let mut exerciser = Exerciser::new(&block, 0, shape.bytes, 256 << 10, seed);
    for _ in 0..steps {
        exerciser.step();
    }
    exerciser.check_file(&disk.file);
    exerciser.check_disk();
}

fn random_requests_are_intact() {
    random(Shape::default(), 150, 1);
}

fn random_requests_are_intact_without_event_index() {
    let shape = Shape {
        // The disk offers neither event index nor indirect descriptors.
        without: feature::RING_EVENT_IDX | feature::RING_INDIRECT_DESC,
        ..Default::default()
    };
    random(shape, 100, 2);
}

/// Returns `count` exercisers, each of which uses its own MiB of the disk.
fn parts(block: &Block, count: u64) -> Vec<Exerciser<'_>> {
    (0..count)
        .map(|n| Exerciser::new(block, n << 20, 1 << 20, 64 << 10, n + 1))
        .collect()
}

fn random_requests_of_several_threads_on_several_queues_are_intact() {
    in_several_threads(Shape::default());
}

fn random_requests_on_packed_queues_are_intact() {
    if driver() == differences::Driver::Rust {
        skip("packed virtqueues are hidden from virtio_blk");
    }
    let both = feature::RING_EVENT_IDX | feature::RING_INDIRECT_DESC;
    for without in [
        0,
        feature::RING_EVENT_IDX,
        feature::RING_INDIRECT_DESC,
        both,
    ] {
        in_several_threads(Shape {
            with: feature::RING_PACKED,
            without,
            // The ring starts again often.
            queue_size: 32,
            seg_max: 16,
            ..Default::default()
        });
    }
}

fn packed_queues_are_not_offered_to_virtio_blk() {
    // If a mapping fails, virtio_blk fails a request on a packed virtqueue with EIO.
    let disk = LiveDisk::new(Shape {
        with: feature::RING_PACKED,
        ..Default::default()
    });
    disk.block().read(0, 4096).unwrap();
    let features = disk.vduse().features().unwrap();
    assert_eq!(features & feature::RING_PACKED, 0);
}

/// Runs four exercisers on two virtqueues for some time.
#[track_caller]
fn in_several_threads(shape: Shape) {
    let disk = LiveDisk::new(Shape { queues: 2, ..shape });
    let block = disk.block();
    let features = disk.vduse().features().unwrap();
    assert_eq!(features & shape.with, shape.with);
    let mut exercisers = parts(&block, 4);
    exercise(&mut exercisers, |all| {
        std::thread::sleep(Duration::from_secs(3));
        all.go_on(10);
    });
    for exerciser in &exercisers {
        exerciser.check_file(&disk.file);
        exerciser.check_disk();
    }
    let queues = Path::new("/sys/block").join(block.name()).join("mq");
    assert_eq!(bus::children(&queues, "").len(), 2);
    drop(exercisers);
    drop(block);
    let LiveDisk { on_bus, served, .. } = &disk;
    assert!(served.device().vq_info(1).unwrap().ready == 1);
    assert_eq!(on_bus.name(), disk.name());
}

fn large_requests_are_intact() {
    let disk = LiveDisk::new(Shape::default());
    let block = disk.block();
    let mut data = vec![0; 1 << 20];
    crate::lab::assert::random::Random::new(9).fill(&mut data);
    block.write(0, &data).unwrap();
    assert_same(&block.read(0, 1 << 20).unwrap(), &data, "a MiB");
}

fn more_data_than_the_bounce_area_is_intact() {
    let disk = LiveDisk::new(Shape {
        bytes: 8 << 20,
        bounce: 1 << 20,
        queues: 2,
        ..Default::default()
    });
    let block = disk.block();
    // Together, the threads' requests need more space than the bounce area has.
    let mut exercisers: Vec<Exerciser> = (0..6)
        .map(|n| Exerciser::new(&block, n << 20, 1 << 20, 256 << 10, n + 1))
        .collect();
    exercise(&mut exercisers, |all| {
        std::thread::sleep(Duration::from_secs(2));
        all.go_on(10);
    });
    for exerciser in &exercisers {
        exerciser.check_file(&disk.file);
    }
}

fn a_request_of_half_the_bounce_area_ends() {
    // The data is 2 MiB of contiguous memory. The bounce area has only two aligned ranges of 2 MiB.
    // The first range includes slot 0, which is reserved. The second range may already contain the
    // request's header and status. So it can happen that neither range has room for all the data.
    const LEN: usize = HugePage::LEN;
    let disk = LiveDisk::new(Shape {
        bounce: 4 << 20,
        ..Default::default()
    });
    let mut memory = HugePage::new();
    let block = disk.block();
    let limit = format!("/sys/block/{}/queue/max_sectors_kb", block.name());
    sysfs::write(limit.as_ref(), "4096").unwrap();
    crate::lab::assert::random::Random::new(11).fill(memory.bytes());
    block.write_from(0, memory.bytes()).unwrap();
    let mut found = vec![0; LEN];
    disk.file.read_exact_at(&mut found, 0).unwrap();
    assert_same(&found, memory.bytes(), "2 MiB");
}

/// Writes the whole disk from scattered pages, in the largest requests that virtio_blk can be
/// configured to send, and reads the data back.
#[track_caller]
fn large_requests_end(shape: Shape) {
    let disk = LiveDisk::new(shape);
    let block = disk.block();
    let queue = Path::new("/sys/block").join(block.name()).join("queue");
    let most = sysfs::read(&queue.join("max_hw_sectors_kb")).unwrap();
    sysfs::write(&queue.join("max_sectors_kb"), &most).unwrap();
    let mut data = vec![0; shape.bytes as usize];
    crate::lab::assert::random::Random::new(12).fill(&mut data);
    block.write(0, &data).unwrap();
    let mut found = vec![0; data.len()];
    disk.file.read_exact_at(&mut found, 0).unwrap();
    assert_same(&found, &data, "the file");
    assert_same(&block.read(0, data.len()).unwrap(), &data, "the disk");
}

fn requests_larger_than_the_bounce_area_end() {
    // Depending on `spaces`, the bounce area of an address space has a size of 1 MiB, 64 KiB, or
    // 24 KiB (6 pages). One page of each area is never used. Each request takes three pages in
    // addition to its data.
    for spaces in [1, 16, 43] {
        large_requests_end(Shape {
            bounce: 1 << 20,
            spaces,
            seg_max: u32::MAX,
            ..Default::default()
        });
    }
}

/// Reads from a disk's start into pages that are not adjacent in memory.
fn read_pages_apart(block: &Block) -> Vec<u8> {
    const PIECES: usize = 126;
    let mut memory = Aligned::new(PIECES * 2 * PAGE as usize);
    // Touches all pages of the buffer, so that the kernel allocates them all. If it allocated only
    // every other page, into which the disk is read, those pages could be adjacent in physical
    // memory.
    memory.fill(1);
    let pieces = memory.chunks_mut(2 * PAGE as usize);
    let mut pieces: Vec<_> = pieces
        .map(|piece| IoSliceMut::new(&mut piece[..PAGE as usize]))
        .collect();
    let done = rustix::io::preadv(block, &mut pieces, 0).expect("reading");
    assert_eq!(done, PIECES * PAGE as usize);
    pieces
        .iter()
        .flat_map(|piece| piece.iter().copied())
        .collect()
}

fn larger_pieces_find_room_after_many_pages() {
    let disk = LiveDisk::new(Shape {
        bounce: 16 << 20,
        ..Default::default()
    });
    let block = disk.block();
    let mut data = vec![0; 4 << 20];
    crate::lab::assert::random::Random::new(14).fill(&mut data);
    block.write(0, &data).unwrap();
    // While there is no daemon, the threads request twice as many pages as the bounce area has, so
    // that some requests wait for others.
    let in_flight = Path::new("/sys/block").join(block.name()).join("inflight");
    let mut readers = Vec::new();
    let disk = disk.restart(|| {
        for _ in 0..64 {
            let block = Block::open(block.name()).unwrap();
            readers.push(std::thread::spawn(move || read_pages_apart(&block)));
        }
        // A request counts as in flight once it has found room in the bounce area. It takes 126
        // pages for its data and three other pages.
        soon("the area is full", || {
            let counts = sysfs::read(&in_flight).unwrap();
            let reads: usize = counts.split_whitespace().next().unwrap().parse().unwrap();
            reads >= 4095 / 129 - 1
        });
    });
    for reader in readers {
        let found = reader.join().unwrap();
        assert_same(&found, &data[..found.len()], "the pages");
    }
    // This write comes from contiguous memory, so virtio_blk maps pieces of as many pages as
    // possible.
    let mut memory = HugePage::new();
    crate::lab::assert::random::Random::new(15).fill(memory.bytes());
    block.write_from(0, memory.bytes()).unwrap();
    let mut found = vec![0; HugePage::LEN];
    disk.file.read_exact_at(&mut found, 0).unwrap();
    assert_same(&found, memory.bytes(), "2 MiB");
}

fn requests_longer_than_the_virtqueue_end() {
    for queue_size in [4, 16] {
        large_requests_end(Shape {
            queue_size,
            without: feature::RING_INDIRECT_DESC,
            seg_max: 254,
            ..Default::default()
        });
    }
}

fn a_disk_without_room_for_a_request_is_not_driven() {
    let too_short = Shape {
        queue_size: 2,
        without: feature::RING_INDIRECT_DESC,
        ..Default::default()
    };
    // Each address space has a bounce area of 4 pages.
    let too_small = Shape {
        bounce: 1 << 20,
        spaces: 64,
        ..Default::default()
    };
    for shape in [too_short, too_small] {
        let disk = LiveDisk::new(shape);
        bus::driver_gives_up(disk.name());
        assert_eq!(bus::disk_name(disk.name()), None);
        // vhost-vdpa still accepts the device, because its clients may be able to use the device.
        disk.on_bus.unbind(Driver::Virtio).unwrap();
        disk.on_bus.bind(Driver::Vhost).unwrap();
        let vhost = Vhost::open(&bus::vhost_path(disk.name()).unwrap()).unwrap();
        vhost.set_owner().unwrap();
        assert_eq!(vhost.queue_size(0).unwrap(), u32::from(shape.queue_size));
    }
}

fn flushes_arrive() {
    let disk = LiveDisk::new(Shape::default());
    let block = disk.block();
    block.write(0, &[1; 4096]).unwrap();
    block.flush().unwrap();
    drop(block);
    let LiveDisk {
        on_bus,
        served,
        device,
        ..
    } = disk;
    drop(on_bus);
    let stats = served.stop().stats();
    drop(device);
    assert!(stats.flushes >= 1, "{stats:?}");
    assert!(stats.writes >= 1, "{stats:?}");
    assert_eq!(stats.errors, 0, "{stats:?}");
}

fn errors_of_the_device_are_errors_of_the_driver() {
    let disk = LiveDisk::new(Shape::default());
    let block = disk.block();
    // The file becomes shorter, but virtio_blk does not know that yet.
    disk.file.set_len(1 << 20).unwrap();
    block.read(0, 4096).unwrap();
    let error = block.read(2 << 20, 4096).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(5));
    disk.file.set_len(4 << 20).unwrap();
    block.read(2 << 20, 4096).unwrap();
}

fn a_live_disk_grows_and_shrinks() {
    let disk = LiveDisk::new(Shape::default());
    let name = disk.disk();
    let block = disk.block();
    for mebibytes in [8u64, 6, 16, 4] {
        disk.file.set_len(mebibytes << 20).unwrap();
        blk::resize(disk.vduse(), mebibytes << 20).unwrap();
        soon("the new size is seen", || {
            sectors(&name) == Some((mebibytes << 20) / 512)
        });
        let last = (mebibytes << 20) - 4096;
        block.write(last, &[mebibytes as u8; 4096]).unwrap();
        assert_eq!(block.read(last, 4096).unwrap()[..], [mebibytes as u8; 4096]);
    }
}

fn a_disk_grows_between_two_drivers() {
    let disk = LiveDisk::new(Shape::default());
    disk.on_bus.unbind(Driver::Virtio).unwrap();
    disk.file.set_len(8 << 20).unwrap();
    blk::resize(disk.vduse(), 8 << 20).unwrap();
    disk.on_bus.bind(Driver::Virtio).unwrap();
    assert_eq!(sectors(&disk.disk()), Some((8 << 20) / 512));
}

fn a_driver_that_tries_again_after_it_has_failed_is_interrupted() {
    const BYTES: u64 = 4 << 20;
    // The byte range of `blk_size` in `struct virtio_blk_config`.
    const BLOCK_SIZE: std::ops::Range<usize> = 20..24;
    let mut config = blk::device_config(&unique_name(), BYTES, 1);
    config.space[BLOCK_SIZE].copy_from_slice(&3u32.to_le_bytes());
    let device = TestDevice::new(&config);
    let served = Served::start(device.open_nonblocking(), 1, memory_file(BYTES)).unwrap();
    let on_bus = OnBus::add(device.name()).unwrap();
    on_bus.bind(Driver::Virtio).unwrap();
    bus::driver_gives_up(device.name());
    // The first probe by virtio_blk has failed. virtio's core does not reset the device before
    // virtio_blk probes the device again.
    let offset = BLOCK_SIZE.start as u32;
    served
        .device()
        .set_config(offset, &512u32.to_le_bytes())
        .unwrap();
    let directory = bus::virtio_directory(device.name()).unwrap();
    let name = directory.file_name().unwrap().to_str().unwrap();
    sysfs::write(Path::new("/sys/bus/virtio/drivers/virtio_blk/bind"), name).unwrap();
    let block = Block::open(&bus::disk_name(device.name()).unwrap()).unwrap();
    block.write(4096, &[0xab; 4096]).unwrap();
    assert_same(&block.read(4096, 4096).unwrap(), &[0xab; 4096], "the disk");
    drop(block);
    drop(on_bus);
    drop(served);
}

fn a_daemon_that_ends_and_comes_again_goes_on() {
    let mut disk = LiveDisk::new(Shape::default());
    for round in 1..=5u8 {
        let block = disk.block();
        block.write(0, &[round; 4096]).unwrap();
        disk = disk.restart(|| {});
        assert_eq!(block.read(0, 4096).unwrap()[..], [round; 4096]);
    }
}

/// A disk whose daemon is a separate process. The fields are dropped in declaration order.
struct Remote {
    on_bus: OnBus,
    daemon: Option<Daemon>,
    device: TestDevice,
    path: std::path::PathBuf,
    _scratch: Scratch,
}

impl Remote {
    const QUEUES: u16 = 2;

    #[track_caller]
    fn new() -> Self {
        let scratch = Scratch::new();
        let path = scratch.file("disk", 4 << 20);
        let name = unique_name();
        let daemon = Daemon::start(&name, &path, Self::QUEUES, Manner::Serve);
        let device = TestDevice::adopt(&name);
        let on_bus = OnBus::add(&name).expect("adding");
        on_bus.bind(Driver::Virtio).expect("binding");
        Self {
            on_bus,
            daemon: Some(daemon),
            device,
            path,
            _scratch: scratch,
        }
    }

    #[track_caller]
    fn block(&self) -> Block {
        Block::open(&bus::disk_name(self.device.name()).expect("a disk")).expect("opening it")
    }

    #[track_caller]
    fn start(&mut self, manner: Manner) {
        self.daemon = Some(Daemon::start(
            self.device.name(),
            &self.path,
            Self::QUEUES,
            manner,
        ));
    }

    fn kill(&mut self) {
        if let Some(daemon) = self.daemon.take() {
            daemon.kill();
        }
    }

    #[track_caller]
    fn check(&self, exercisers: &[Exerciser<'_>]) {
        let file = std::fs::File::open(&self.path).expect("the file");
        for exerciser in exercisers {
            exerciser.check_disk();
            exerciser.check_file(&file);
        }
    }
}

fn a_daemon_killed_under_io_is_taken_over() {
    let mut remote = Remote::new();
    let block = remote.block();
    let mut exercisers = parts(&block, 3);
    exercise(&mut exercisers, |all| {
        all.go_on(50);
        remote.kill();
        // The disk stays without a daemon for a while.
        std::thread::sleep(Duration::from_millis(300));
        remote.start(Manner::Serve);
        all.go_on(50);
    });
    remote.check(&exercisers);
}

fn a_daemon_killed_with_requests_begun_is_taken_over() {
    let mut remote = Remote::new();
    let block = remote.block();
    let mut exercisers = parts(&block, 3);
    remote.kill();
    remote.start(Manner::StallAfter(20));
    let in_flight = Path::new("/sys/block").join(block.name()).join("inflight");
    exercise(&mut exercisers, |all| {
        let stalled = || {
            let daemon = remote.daemon.as_ref();
            daemon.is_some_and(|daemon| daemon.has_stalled(&remote.path))
        };
        soon("the daemon stands still", stalled);
        soon("the other threads' requests wait behind it", || {
            let counts = sysfs::read(&in_flight).unwrap();
            let number = |text: &str| text.parse::<u32>().unwrap();
            counts.split_whitespace().map(number).sum::<u32>() >= 3
        });
        remote.kill();
        remote.start(Manner::Serve);
        all.go_on(10);
    });
    remote.check(&exercisers);
}

fn a_daemon_killed_before_it_interrupts_is_taken_over() {
    let scratch = Scratch::new();
    let path = scratch.file("disk", 4 << 20);
    let name = unique_name();
    let daemon = Daemon::start_blockable(&name, &path, 1);
    let device = TestDevice::adopt(&name);
    let on_bus = OnBus::add(&name).unwrap();
    on_bus.bind(Driver::Virtio).unwrap();
    let block = Block::open(&bus::disk_name(&name).unwrap()).unwrap();
    block.write(4096, &[0xab; 4096]).unwrap();

    let _interrupt = InterruptOnDrop {
        name: name.clone(),
        queues: 1,
    };
    daemon.irq_blocker().block();
    let reading = Waiting::new(move || block.read(4096, 4096));
    soon("the daemon is about to interrupt", || {
        daemon.irq_blocker().has_blocked()
    });
    daemon.kill();
    // The daemon has done everything except for the interrupt. Nothing in the virtqueue shows that
    // the interrupt is missing.
    let (available, used) = ring::counters(&name, 0);
    assert_eq!(available, used);
    reading.assert_waits();
    let daemon = Daemon::start(&name, &path, 1, Manner::Serve);
    assert_same(&reading.result().unwrap(), &[0xab; 4096], "what was read");
    drop(on_bus);
    drop(daemon);
    drop(device);
}

fn several_kills_lose_nothing() {
    let mut remote = Remote::new();
    let block = remote.block();
    let mut exercisers = parts(&block, 2);
    exercise(&mut exercisers, |all| {
        for round in 0..8 {
            // The moment of the kill differs in each round.
            std::thread::sleep(Duration::from_millis(37 * round));
            all.go_on(5);
            remote.kill();
            remote.start(Manner::Serve);
        }
        all.go_on(5);
    });
    remote.check(&exercisers);
}

fn nothing_hangs_longer_than_msg_timeout_without_a_daemon() {
    let mut remote = Remote::new();
    remote.block().read(0, 4096).unwrap();
    let timeout = sysfs::attribute(remote.device.name(), "msg_timeout");
    sysfs::write(&timeout, "2").unwrap();
    remote.kill();
    in_time(Duration::from_secs(10), "unbinding", || {
        remote.on_bus.unbind(Driver::Virtio).unwrap();
    });
}

/// Returns how many objects of a slab cache exist, or `None` if the kernel does not count them.
fn slab(name: &str) -> Option<u64> {
    let text = std::fs::read_to_string("/proc/slabinfo").ok()?;
    let line = text
        .lines()
        .find(|line| line.split_whitespace().next() == Some(name))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// Returns the available memory according to `/proc/meminfo`, in KiB.
fn available() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap();
    text.lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .unwrap()
}

/// Runs `cycle` 3 times, and then 40 times more. Checks that the last 40 runs lose less than 16 MiB
/// of memory, and fewer than 200 IOVA magazines.
#[track_caller]
fn leaves_nothing(mut cycle: impl FnMut()) {
    for _ in 0..3 {
        cycle();
    }
    let (objects, before) = (slab("iommu_iova_magazine"), available());
    for _ in 0..40 {
        cycle();
    }
    let lost = before.saturating_sub(available());
    assert!(lost < 16 << 10, "{lost} KiB are gone");
    if let (Some(before), Some(after)) = (objects, slab("iommu_iova_magazine")) {
        assert!(
            after < before + 200,
            "{before} IOVA magazines became {after}"
        );
    }
}

fn attaching_and_detaching_40_times_leaves_nothing() {
    let device = TestDevice::new(&blk::device_config(&unique_name(), 1 << 20, 1));
    let file = crate::lab::daemon::disk::memory_file(1 << 20);
    let served = Served::start(device.open_nonblocking(), 1, file).unwrap();
    leaves_nothing(|| {
        let on_bus = OnBus::add(device.name()).unwrap();
        on_bus.bind(Driver::Virtio).unwrap();
        let disk = bus::disk_name(device.name()).expect("a disk");
        let block = Block::open(&disk).unwrap();
        block.write(4096, &[1; 8192]).unwrap();
        assert_eq!(block.read(4096, 8192).unwrap()[..], [1; 8192]);
        drop(block);
        on_bus.delete().unwrap();
    });
    drop(served);
}

fn rebinding_40_times_leaves_nothing() {
    let disk = LiveDisk::new(Shape::default());
    leaves_nothing(|| {
        disk.on_bus.unbind(Driver::Virtio).unwrap();
        disk.on_bus.bind(Driver::Virtio).unwrap();
        let block = disk.block();
        block.write(4096, &[1; 8192]).unwrap();
        assert_eq!(block.read(4096, 8192).unwrap()[..], [1; 8192]);
    });
}

fn a_reset_leaves_no_stale_mappings() {
    let disk = LiveDisk::new(Shape::default());
    let iova = disk.vduse().vq_info(0).unwrap().desc_addr;
    let device: Arc<vduse::Device> = disk.vduse().clone();
    let region = device.iotlb_fd(iova, iova).unwrap();
    disk.on_bus.unbind(Driver::Virtio).unwrap();
    for (first, last) in [(0, 0), (iova, iova), (0, u64::MAX)] {
        crate::lab::assert::errors::fails(device.iotlb_fd(first, last), rustix::io::Errno::INVAL);
    }
    drop(region);
}
