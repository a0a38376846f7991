// SPDX-License-Identifier: GPL-2.0

//! Measurements of requests to a disk through virtio_blk, on one CPU.

use std::os::fd::AsFd;
use std::path::Path;

use vduse_selftests::lab::assert::random::Random;
use vduse_selftests::lab::assert::timing::soon;
use vduse_selftests::lab::device::bus::{self, Driver};
use vduse_selftests::lab::device::test_device::unique_name;
use vduse_selftests::lab::driver::block::Block;
use vduse_selftests::lab::guest::qsd::Qsd;
use vduse_selftests::lab::kernel::sysfs;
use vduse_selftests::lab::run::scratch::Scratch;

use crate::aio::{Direction, Flight};
use crate::measurement::{Bench, Row};
use crate::null::{NullDisk, Shape, CAPACITY};
use crate::ublk::UblkDisk;
use crate::{clock, profile};

/// Opens the block device that virtio_blk has created for a VDUSE device.
pub fn open(device: &str) -> Block {
    soon("the disk appears", || bus::disk_name(device).is_some());
    open_block(&bus::disk_name(device).expect("a disk"))
}

/// Opens a block device by its name. Disables its I/O scheduler, so that requests go straight to
/// the driver.
pub fn open_block(name: &str) -> Block {
    let block = Block::open(name).expect("opening a disk");
    let directory = Path::new("/sys/block").join(block.name());
    sysfs::write(&directory.join("queue/scheduler"), "none").expect("choosing no scheduler");
    block
}

/// Returns a limit of a disk's requests, as the block layer has it.
fn limit(block: &Block, name: &str) -> usize {
    let queue = Path::new("/sys/block").join(block.name()).join("queue");
    let text = sysfs::read(&queue.join(name)).expect("reading a limit");
    text.trim().parse().expect("a number")
}

/// Returns the maximum size of a segment of a request, in bytes.
pub fn largest_segment(block: &Block) -> usize {
    limit(block, "max_segment_size")
}

/// Returns the maximum number of segments of a request.
pub fn most_segments(block: &Block) -> usize {
    limit(block, "max_segments")
}

/// Measures a row with `depth` requests in flight. `what` returns the direction, the offset and the
/// length of each of the `count` requests, which have at most `largest` bytes. Returns the number
/// of requests per second.
pub fn per_second(
    row: &str,
    file: &impl AsFd,
    depth: usize,
    largest: usize,
    count: usize,
    mut what: impl FnMut() -> (Direction, u64, usize),
) -> f64 {
    let mut flight = Flight::new(depth, largest).expect("asynchronous I/O");
    flight.run(file, depth.max(100), &mut what).expect("I/O");
    let run = || flight.run(file, count, &mut what).expect("I/O");
    let took = clock::time(|| profile::watch(row, count, run));
    count as f64 * 1e9 / took as f64
}

/// Returns a generator of requests with one size at random offsets in a null disk.
pub fn random(direction: Direction, bytes: usize) -> impl FnMut() -> (Direction, u64, usize) {
    random_in(CAPACITY, direction, bytes)
}

/// Returns a generator of requests with one size at random offsets in a disk of `capacity` bytes.
pub fn random_in(
    capacity: u64,
    direction: Direction,
    bytes: usize,
) -> impl FnMut() -> (Direction, u64, usize) {
    let mut random = Random::new(1);
    let places = capacity / bytes as u64;
    move || (direction, random.below(places) * bytes as u64, bytes)
}

/// Returns a generator of consecutive requests with one size in a null disk.
fn sequential(direction: Direction, bytes: usize) -> impl FnMut() -> (Direction, u64, usize) {
    sequential_in(CAPACITY, direction, bytes)
}

/// Returns a generator of consecutive requests with one size in a disk of `capacity` bytes.
pub fn sequential_in(
    capacity: u64,
    direction: Direction,
    bytes: usize,
) -> impl FnMut() -> (Direction, u64, usize) {
    let mut next = 0;
    move || {
        let offset = next % capacity;
        next += bytes as u64;
        (direction, offset, bytes)
    }
}

/// Returns a generator of reads and writes of 512 bytes to 128 KiB that start at any sector.
fn mixed() -> impl FnMut() -> (Direction, u64, usize) {
    const SECTOR: u64 = 512;
    const LARGEST: u64 = 256;
    let mut random = Random::new(1);
    move || {
        let sectors = 1 + random.below(LARGEST);
        let at = random.below(CAPACITY / SECTOR - sectors);
        let direction = match random.below(2) {
            0 => Direction::Read,
            _ => Direction::Write,
        };
        (direction, at * SECTOR, (sectors * SECTOR) as usize)
    }
}

const DIRECTIONS: [(Direction, &str); 2] = [(Direction::Read, "read"), (Direction::Write, "write")];

/// Measures reads from a disk that qemu-storage-daemon serves from a file in memory.
fn qsd() -> Bench {
    const MIB: usize = 1 << 20;
    let kib = [1, 16].map(|depth| format!("qemu-storage-daemon: 4 KiB random read, depth {depth}"));
    let mib = "qemu-storage-daemon: 1024 KiB sequential read, depth 4";
    let rows = vec![
        Row::higher(&kib[0], "IO/s", 1.3),
        Row::higher(&kib[1], "IO/s", 1.15),
        Row::higher(mib, "MB/s", 1.0),
    ];
    Bench::new(rows, move || {
        let scratch = Scratch::new();
        let name = unique_name();
        let mut daemon = Qsd::start(&name, &scratch.file("disk", CAPACITY));
        let on_bus = daemon.add(&name);
        on_bus.bind(Driver::Virtio).expect("binding a disk");
        let block = open(&name);
        let small = [(&kib[0], 1), (&kib[1], 16)].map(|(row, depth)| {
            per_second(
                row,
                &block,
                depth,
                4096,
                2000,
                random(Direction::Read, 4096),
            )
        });
        let large = per_second(mib, &block, 4, MIB, 120, sequential(Direction::Read, MIB));
        drop(block);
        drop(on_bus);
        daemon.stop();
        vec![small[0], small[1], large * MIB as f64 / 1e6]
    })
}

/// Creates a measurement that calls `measure` with a null disk with one queue. To measure VDUSE,
/// the disk is served through VDUSE. To measure ublk for comparison, the disk is served by ublk.
fn on_null_disks(rows: Vec<Row>, measure: impl Fn(&Block) -> Vec<f64> + Clone + 'static) -> Bench {
    let on_ublk = measure.clone();
    let mut bench = Bench::new(rows, move || {
        let disk = NullDisk::new(Shape::default());
        let block = open(disk.name());
        measure(&block)
    });
    bench.on_ublk = Some(Box::new(move || {
        let disk = UblkDisk::new();
        // `block` must be dropped before `disk`, because removing the disk waits until the block
        // device is closed.
        let block = open_block(&disk.block());
        on_ublk(&block)
    }));
    bench
}

/// Returns the measurements of requests to a disk.
pub fn benches() -> Vec<Bench> {
    let mut benches = Vec::new();
    for (depth, count, target) in [(1, 4000, 1.3), (16, 6000, 1.15), (128, 6000, 1.15)] {
        let name = move |verb| format!("4 KiB random {verb}, depth {depth}");
        let rows = DIRECTIONS.map(|(_, verb)| Row::higher(name(verb), "IO/s", target));
        benches.push(on_null_disks(rows.to_vec(), move |block| {
            let measure = |(direction, verb)| {
                let what = random(direction, 4096);
                per_second(&name(verb), block, depth, 4096, count, what)
            };
            DIRECTIONS.map(measure).to_vec()
        }));
    }
    for (kib, depth, count) in [(128, 4, 800), (1024, 4, 120)] {
        let name = move |verb| format!("{kib} KiB sequential {verb}, depth {depth}");
        let rows = DIRECTIONS.map(|(_, verb)| Row::higher(name(verb), "MB/s", 1.0));
        benches.push(on_null_disks(rows.to_vec(), move |block| {
            let bytes = kib << 10;
            let measure = |(direction, verb)| {
                let what = sequential(direction, bytes);
                per_second(&name(verb), block, depth, bytes, count, what) * bytes as f64 / 1e6
            };
            DIRECTIONS.map(measure).to_vec()
        }));
    }
    let name = "512 B to 128 KiB mixed, any sector, depth 16";
    let rows = vec![Row::higher(name, "IO/s", 1.15)];
    benches.push(on_null_disks(rows, |block| {
        vec![per_second(name, block, 16, 128 << 10, 1500, mixed())]
    }));
    benches.push(qsd());
    benches
}
