// SPDX-License-Identifier: GPL-2.0

//! Bounce pages that nothing uses are given back.

use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use rustix::pipe::{pipe_with, PipeFlags};

use crate::lab::assert::counts::available;
use crate::lab::assert::random::Random;
use crate::lab::assert::timing::within;
use crate::lab::daemon::bounce_pages::BouncePages;
use crate::lab::driver::block::Block;
use crate::lab::driver::exerciser::{exercise, Exerciser};
use crate::lab::driver::virtio_disk::{LiveDisk, Shape};
use crate::lab::kernel::memory::PAGE;
use crate::lab::kernel::sysfs;
use crate::lab::run::report::note;

tests![
    pages_that_nothing_uses_are_given_back_after_a_while => 90,
    pages_go_at_once_when_the_kernel_needs_memory => 60,
    the_pages_of_a_small_area_are_given_back => 60,
    a_page_that_the_daemon_holds_stays => 60,
    data_is_intact_while_pages_are_given_back => 90,
    many_idle_disks_take_as_much_as_if_they_had_never_been_used => 400,
];

/// The number of pages of a disk's reserve, which are kept.
const RESERVED: usize = 53;

/// Asks the kernel to free what can be freed. Its shrinkers are asked as well.
#[track_caller]
fn press() {
    sysfs::write("/proc/sys/vm/drop_caches".as_ref(), "2").expect("asking for memory");
}

/// Writes to a disk from several threads, so that many pages are used at the same time. Returns the
/// exercisers, which know what the disk contains.
#[track_caller]
fn use_many_pages(block: &Block) -> Vec<Exerciser<'_>> {
    let mut all: Vec<_> = (0..8)
        .map(|n| Exerciser::new(block, n << 20, 1 << 20, 1 << 20, n + 1))
        .collect();
    exercise(&mut all, |all| all.go_on(3));
    all
}

fn big(shape: Shape) -> LiveDisk {
    LiveDisk::new(Shape {
        bytes: 8 << 20,
        queues: 2,
        ..shape
    })
}

/// Uses many pages of a disk and expects all but those of the reserve to be given back. Calls
/// `press` again and again until they are.
#[track_caller]
fn all_are_given_back(shape: Shape, limit: Duration, press: impl Fn()) {
    let disk = big(shape);
    let block = disk.block();
    let exercisers = use_many_pages(&block);
    let pages = BouncePages::of(&disk);
    let existing = pages.existing();
    assert!(existing.len() > RESERVED + 100, "{} pages", existing.len());
    let last = *existing.last().expect("a page");
    assert!(pages.is_mapped(last));

    let start = Instant::now();
    within(limit, "the pages are given back", || {
        press();
        // Looking at whether a page is mapped does not map it.
        existing
            .iter()
            .filter(|&&number| number > RESERVED)
            .all(|&number| !pages.is_mapped(number))
    });
    note(format_args!(
        "{} pages were given back after {:.1} s",
        existing.len() - RESERVED,
        start.elapsed().as_secs_f64()
    ));
    let kept: Vec<_> = (1..=RESERVED).collect();
    assert_eq!(pages.existing(), kept);

    // The disk works as before.
    for exerciser in &exercisers {
        exerciser.check_file(&disk.file);
        exerciser.check_disk();
    }
    drop(exercisers);
    let grown = pages.existing();
    assert!(grown.len() > RESERVED);
}

fn pages_that_nothing_uses_are_given_back_after_a_while() {
    all_are_given_back(Shape::default(), Duration::from_secs(45), || ());
}

fn pages_go_at_once_when_the_kernel_needs_memory() {
    all_are_given_back(Shape::default(), Duration::from_secs(8), press);
}

fn the_pages_of_a_small_area_are_given_back() {
    // So small an area has no blocks, whose slots are allocated without a lock.
    let shape = Shape {
        bounce: 2 << 20,
        ..Default::default()
    };
    all_are_given_back(shape, Duration::from_secs(8), press);
}

fn a_page_that_the_daemon_holds_stays() {
    let disk = big(Shape::default());
    let block = disk.block();
    let exercisers = use_many_pages(&block);
    drop(exercisers);
    let pages = BouncePages::of(&disk);
    let held = *pages.existing().last().expect("a page");

    // The pipe refers to the page itself until it is read.
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).expect("a pipe");
    let slice = rustix::pipe::IoSliceRaw::from_slice(
        // SAFETY: The page exists, and is accessed by the kernel only.
        unsafe { std::slice::from_raw_parts(pages.address(held), PAGE as usize) },
    );
    // SAFETY: The page is memory that is shared with the kernel in any case.
    let spliced =
        unsafe { rustix::pipe::vmsplice(&writer, &[slice], rustix::pipe::SpliceFlags::empty()) };
    assert_eq!(spliced, Ok(PAGE as usize));

    let lost = |number: usize| {
        press();
        !pages.is_mapped(number)
    };
    within(Duration::from_secs(8), "the page is unmapped", || {
        lost(held)
    });
    std::thread::sleep(Duration::from_secs(3));
    press();
    // It is the same page as before: what the daemon writes now is in the pipe as well.
    let prober = crate::lab::kernel::probe::Prober::new();
    prober
        .write(pages.address(held), 0x5a)
        .expect("the page is there");
    let mut found = [0; PAGE as usize];
    assert_eq!(rustix::io::read(&reader, &mut found), Ok(found.len()));
    assert_eq!(found[0], 0x5a);

    within(Duration::from_secs(8), "the page is given back", || {
        lost(held)
    });
    assert_eq!(pages.contents(held), None);
}

fn data_is_intact_while_pages_are_given_back() {
    let disk = big(Shape::default());
    let block = disk.block();
    let mut exercisers: Vec<_> = (0..8)
        .map(|n| Exerciser::new(&block, n << 20, 1 << 20, 256 << 10, n + 1))
        .collect();
    let mut random = Random::new(21);
    let pages = BouncePages::of({
        block.read(0, 4096).unwrap();
        &disk
    });
    let mut given_back = 0;
    for _ in 0..12 {
        exercise(&mut exercisers, |all| all.go_on(2));
        // Maps all of them. A page that is given back and allocated again is not mapped.
        let before = pages.existing();
        // The first look marks the pages as not used, and the second gives them back.
        for _ in 0..2 {
            std::thread::sleep(Duration::from_millis(1100));
            press();
        }
        // The exercisers begin again while that lasts, which is for two grace periods of some
        // milliseconds each, or shortly before or after it.
        std::thread::sleep(Duration::from_millis(random.below(12)));
        exercise(&mut exercisers, |all| all.go_on(1));
        given_back += u32::from(before.iter().any(|&number| !pages.is_mapped(number)));
    }
    note(format_args!("pages were given back {given_back} times"));
    assert!(given_back >= 6, "{given_back} times");
    for exerciser in &exercisers {
        exerciser.check_file(&disk.file);
        exerciser.check_disk();
    }
}

/// Returns the available memory in KiB, and the memory of programs. This is the memory that the
/// kernel does not use for itself or for files in memory.
#[track_caller]
fn free_for_the_kernel() -> i64 {
    let text = std::fs::read_to_string("/proc/meminfo").expect("reading about memory");
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("AnonPages:"));
    let size = line.and_then(|line| line.trim().strip_suffix(" kB"));
    available()
        + size
            .and_then(|size| size.parse::<i64>().ok())
            .expect("a size")
}

fn many_idle_disks_take_as_much_as_if_they_had_never_been_used() {
    const DISKS: usize = 200;
    const MIB: u64 = 1 << 20;
    let per_disk = |more: i64| more as f64 / DISKS as f64;
    let before = free_for_the_kernel();
    let disks: Vec<_> = (0..DISKS)
        .map(|_| {
            let disk = LiveDisk::new(Shape {
                bytes: MIB,
                ..Default::default()
            });
            // The memory of the disk's data is there from the beginning.
            disk.file
                .write_all_at(&vec![0; MIB as usize], 0)
                .expect("filling the disk");
            disk.block().read(0, 4096).expect("reading");
            disk
        })
        .collect();
    let blocks: Vec<_> = disks.iter().map(LiveDisk::block).collect();
    // What reading the partition table has used is given back, too.
    std::thread::sleep(Duration::from_secs(40));
    let never_used = before - free_for_the_kernel();

    for block in &blocks {
        std::thread::scope(|scope| {
            for n in 0..4 {
                scope.spawn(move || block.write(0, &vec![n; MIB as usize]).expect("writing"));
            }
        });
    }
    let busy = before - free_for_the_kernel();
    std::thread::sleep(Duration::from_secs(60));
    let idle = before - free_for_the_kernel();
    note(format_args!(
        "KiB for each of {DISKS} disks, with its data: {:.0} never used, {:.0} after use, {:.0} a \
         minute later",
        per_disk(never_used),
        per_disk(busy),
        per_disk(idle)
    ));
    assert!(
        busy - never_used > DISKS as i64 * 256,
        "many pages are used"
    );
    // A disk that was never used takes less than 256 KiB in the driver.
    let more = per_disk(idle - never_used);
    assert!(more < 24.0, "{more:.1} KiB more for each disk");
    let existing = |disk| BouncePages::of(disk).existing().len();
    assert!(disks.iter().all(|disk| existing(disk) == RESERVED));
}
