// SPDX-License-Identifier: GPL-2.0

//! The reserve of bounce pages with which a disk's requests get through while memory is short.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::lab::daemon::bounce_pages::BouncePages;
use crate::lab::device::bus::Driver;
use crate::lab::device::virtio::feature;
use crate::lab::driver::exerciser::{exercise_on, Exerciser};
use crate::lab::driver::virtio_disk::{LiveDisk, Shape};
use crate::lab::kernel::cpu;
use crate::lab::kernel::fault_injection::{Below, Outage};
use crate::lab::kernel::memory::PAGE;
use crate::lab::run::report::note;

tests![
    a_request_is_no_larger_than_the_reserve,
    the_pages_of_the_reserve_are_there_from_the_beginning,
    a_request_longer_than_a_short_virtqueue_is_not_made,
    mapping_the_area_allocates_its_page_tables,
    virtqueues_take_turns_if_the_area_is_full => 60,
    requests_get_through_while_every_allocation_fails => 120,
    the_reserve_goes_when_the_kernel_driver_goes => 120,
];

/// The number of pages of the reserve.
const RESERVED: usize = 53;
/// The number of segments of the largest request: all of the reserve but the header, the status and
/// the table of descriptors.
const SEGMENTS: usize = RESERVED - 3;

/// Returns a limit of a disk's queue, as the block layer has it.
#[track_caller]
fn limit(disk: &str, name: &str) -> usize {
    let path = Path::new("/sys/block").join(disk).join("queue").join(name);
    let text = fs::read_to_string(path).expect("reading a limit");
    text.trim().parse().expect("a number")
}

fn a_request_is_no_larger_than_the_reserve() {
    let limits = |shape| {
        let disk = LiveDisk::new(shape);
        let name = disk.disk();
        (
            limit(&name, "max_segments"),
            limit(&name, "max_segment_size"),
        )
    };
    let shape = Shape::default();
    assert_eq!(limits(shape), (SEGMENTS, PAGE as usize));
    // A daemon may ask for less.
    assert_eq!(
        limits(Shape {
            seg_max: 7,
            ..shape
        }),
        (7, PAGE as usize)
    );
    // The smallest area has 256 pages, of which each address space gets a part. Less than half of
    // that is the reserve.
    for (spaces, segments) in [(1, SEGMENTS), (4, 31 - 3), (16, 7 - 3)] {
        let shape = Shape {
            bounce: 1 << 20,
            spaces,
            ..shape
        };
        assert_eq!(limits(shape), (segments, PAGE as usize), "{spaces} spaces");
    }
}

fn a_request_longer_than_a_short_virtqueue_is_not_made() {
    let disk = LiveDisk::new(Shape {
        queue_size: 16,
        ..Default::default()
    });
    assert_eq!(limit(&disk.disk(), "max_segments"), 14);
}

fn the_pages_of_the_reserve_are_there_from_the_beginning() {
    let disk = LiveDisk::new(Shape::default());
    disk.block().read(0, 4096).unwrap();
    let pages = BouncePages::of(&disk);
    for number in 1..=RESERVED {
        let contents = pages.contents(number).expect("a page of the reserve");
        assert!(contents.iter().all(|&byte| byte == 0), "page {number}");
    }
    assert_eq!(pages.contents(0), None);
    assert_eq!(pages.contents(RESERVED + 1), None);
}

/// Returns the size of this process's page tables, in bytes.
#[track_caller]
fn page_tables() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("reading the status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmPTE:"));
    let size = line.and_then(|line| line.trim().strip_suffix(" kB"));
    size.and_then(|size| size.parse::<u64>().ok())
        .expect("a size")
        << 10
}

fn mapping_the_area_allocates_its_page_tables() {
    let disk = LiveDisk::new(Shape::default());
    disk.block().read(0, 4096).unwrap();
    let before = page_tables();
    let pages = BouncePages::of(&disk);
    // A page table has 512 entries of 8 bytes.
    let tables = (pages.room() as u64).div_ceil(512) * PAGE;
    assert!(page_tables() >= before + tables, "{before} + {tables}");
    // Nothing is mapped by that.
    assert!((0..pages.room())
        .step_by(97)
        .all(|number| !pages.is_mapped(number)));
    drop(pages);
    assert!(page_tables() < before + tables);
}

/// Runs an exerciser on each CPU, so that each virtqueue of a disk of two queues has some to do,
/// twice. Calls `during` meanwhile.
#[track_caller]
fn on_each_cpu(
    disk: &LiveDisk,
    largest: u64,
    during: impl FnOnce(&crate::lab::driver::exerciser::Progress),
) {
    let block = disk.block();
    let cpus = cpu::online();
    let mut exercisers: Vec<_> = (0..8)
        .map(|n| Exerciser::new(&block, n << 20, 1 << 20, largest, n + 1))
        .collect();
    exercise_on(
        &mut exercisers,
        |number| cpu::run_on(cpus[number % cpus.len()]),
        during,
    );
    for exerciser in &exercisers {
        exerciser.check_file(&disk.file);
        exerciser.check_disk();
    }
}

fn virtqueues_take_turns_if_the_area_is_full() {
    let disk = LiveDisk::new(Shape {
        bytes: 8 << 20,
        queues: 2,
        bounce: 1 << 20,
        ..Default::default()
    });
    // Each thread has up to six requests of 50 pages at a time, and the area has 256 pages.
    on_each_cpu(&disk, 1 << 20, |all| {
        for _ in 0..3 {
            std::thread::sleep(Duration::from_secs(1));
            all.go_on(3);
        }
    });
}

fn requests_get_through_while_every_allocation_fails() {
    // Without indirect tables, a request needs no mapping for its table, but more descriptors.
    for without in [0, feature::RING_INDIRECT_DESC] {
        let disk = LiveDisk::new(Shape {
            bytes: 8 << 20,
            queues: 2,
            without,
            ..Default::default()
        });
        // virtio_blk has read the beginning of the disk before, so some pages exist already.
        on_each_cpu(&disk, 512 << 10, |all| {
            let outage = Outage::new(Below::Driver);
            let start = Instant::now();
            let mut rounds = 0;
            while start.elapsed() < Duration::from_secs(5) {
                all.go_on(1);
                rounds += 1;
            }
            let faults = outage.end();
            note(format_args!(
                "{faults} allocations failed, each thread got through {rounds} requests"
            ));
            assert!(faults > 100, "{faults} allocations failed");
            // Once memory is there again, all is as before.
            all.go_on(20);
        });
    }
}

fn the_reserve_goes_when_the_kernel_driver_goes() {
    let disk = LiveDisk::new(Shape::default());
    disk.block().read(0, 4096).unwrap();
    let pages = BouncePages::of(&disk);
    assert!(pages.contents(1).is_some());
    disk.on_bus.unbind(Driver::Virtio).unwrap();
    crate::lab::assert::timing::within(
        Duration::from_secs(40),
        "the reserve is given back",
        || !pages.is_mapped(1),
    );
    // Other pages may stay for a while.
    assert!(pages.existing().iter().all(|&number| number > RESERVED));
    disk.on_bus.bind(Driver::Virtio).unwrap();
    disk.block().read(0, 4096).unwrap();
    let existing = pages.existing();
    assert!((1..=RESERVED).all(|number| existing.contains(&number)));
}
