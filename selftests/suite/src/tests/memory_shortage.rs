// SPDX-License-Identifier: GPL-2.0

//! Disks to which the kernel writes while memory is short: swap space, and dirty pages.
//!
//! The disk's data is in memory as well, all of it from the beginning. Memory is taken away until
//! little is left, and programs use more than that. They must go on all the time, and find what they
//! have written. If they do not, the test prints what each task waits for, and gives the memory back,
//! so that the machine can go on.
//!
//! `qemu-test/soak --memory` runs [`swap_and_dirty_pages_go_on_at_once`] for half an hour.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use vduse::memory::{prepare_for_shortage, touch_stack};

use crate::environment;
use crate::lab::assert::progress::{Counters, Stalls, Waits};
use crate::lab::daemon::vduse_blk::VduseBlk;
use crate::lab::device::bus::OnBus;
use crate::lab::device::test_device::unique_name;
use crate::lab::driver::load::{Kind, Load};
use crate::lab::guest::qsd::tool;
use crate::lab::kernel::ballast::Ballast;
use crate::lab::kernel::mount::Mounted;
use crate::lab::kernel::ram_disk::RamDisk;
use crate::lab::kernel::swap::{self, Swap};
use crate::lab::run::report::{need, note};
use crate::lab::run::scratch::Scratch;
use crate::lab::run::settings::setting;

tests![
    swap_goes_on_while_memory_is_short => 120,
    swap_of_huge_pages_goes_on => 120,
    swap_to_an_image_in_the_page_cache_goes_on => 120,
    dirty_pages_beyond_memory_are_written => 120,
    swap_and_dirty_pages_go_on_at_once => 120,
];

/// Length in bytes of a disk.
const DISK: u64 = 256 << 20;

/// How much memory is left to all programs, in bytes.
const LEFT: u64 = 112 << 20;

/// How much memory a program uses beyond what is left, in bytes.
const BEYOND: u64 = 160 << 20;

/// For how long a program may stand still before the test gives up. It may do so on an emulated machine
/// whose CPUs are shared, and will not if the machine hangs.
const PATIENCE: Duration = Duration::from_secs(20);

/// The longest that collecting what tasks wait for may take.
const COLLECTING: Duration = Duration::from_secs(10);

/// The beginnings of the names of the tasks whose stacks are shown in any case.
const TASKS: &[&str] = &[
    "vduse",
    "vq",
    "iou-",
    "kswapd",
    "kcompactd",
    "exe",
    "vdpa",
    "kworker/u",
];

/// A thread that collects what tasks wait for. It is there before memory is short. If it has to wait for
/// memory itself, this process can still give memory back.
struct Collector {
    shared: Arc<(Mutex<Waits>, AtomicBool)>,
    thread: JoinHandle<()>,
}

impl Collector {
    fn start(waits: Waits) -> Self {
        let shared = Arc::new((Mutex::new(waits), AtomicBool::new(false)));
        let (waits, done) = (shared.clone(), shared.clone());
        let thread = std::thread::spawn(move || {
            touch_stack();
            std::thread::park();
            waits.0.lock().expect("no panic").look();
            done.1.store(true, Ordering::Release);
        });
        Self { shared, thread }
    }

    /// Collects what tasks wait for. Returns whether that is done in time.
    fn collect(&self) -> bool {
        self.thread.thread().unpark();
        let begin = Instant::now();
        while begin.elapsed() < COLLECTING {
            if self.shared.1.load(Ordering::Acquire) {
                return true;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        false
    }

    /// Returns what was collected, or will be once there is memory.
    fn text(self) -> String {
        self.thread.join().expect("no panic");
        let waits = self.shared.0.lock().expect("no panic");
        waits.text().to_owned()
    }
}

/// Runs programs until they end, or for `time`. Fails if a thread stands still for longer than
/// `patience`.
#[track_caller]
fn watch(
    loads: &mut [Load],
    disk: &str,
    ballast: &mut Ballast,
    time: Option<Duration>,
    patience: Duration,
) {
    let collector = Collector::start(Waits::new(disk, TASKS));
    let begin = Instant::now();
    let before = swap::counters();
    let mut stalls = Stalls::new(&counters(loads));
    let mut next_report = REPORT;
    let mut failed = None;
    while failed.is_none() {
        let stood = stalls.look(&counters(loads));
        if stood > patience {
            let in_time = collector.collect();
            // Now that the state is recorded, the machine may go on.
            ballast.release();
            let when = if in_time {
                ""
            } else {
                "what follows was read when memory was given back:\n"
            };
            let found = collector.text();
            let stood = stood.as_secs_f64();
            failed = Some(format!("nothing went on for {stood:.1} s\n{when}{found}"));
            break;
        }
        let mut running = false;
        for load in loads.iter_mut() {
            match load.ended() {
                None => running = true,
                Some(status) if status.success() => {}
                Some(status) => failed = Some(format!("a program ended: {status}")),
            }
        }
        if !running {
            break;
        }
        let passed = begin.elapsed();
        if time.is_some_and(|time| passed > time) {
            loads.iter().for_each(|load| load.counters().stop());
        }
        if time.is_some() && passed > next_report {
            next_report += REPORT;
            report(&stalls, before, passed);
        }
    }
    report(&stalls, before, begin.elapsed());
    ballast.release();
    if let Some(why) = failed {
        loads.iter_mut().for_each(Load::kill);
        panic!("{why}");
    }
    let longest = stalls.longest();
    assert!(longest <= patience, "nothing went on for {longest:?}");
}

fn counters(loads: &[Load]) -> Vec<&Counters> {
    loads.iter().map(Load::counters).collect()
}

/// The interval of reports of a run that lasts long.
const REPORT: Duration = Duration::from_secs(30);

fn report(stalls: &Stalls, before: (u64, u64), passed: Duration) {
    let (into, out) = swap::counters();
    note(format_args!(
        "{:.0} s: {} pages swapped in, {} out; longest stall {:.2} s (this process did not run for {:.2} s)",
        passed.as_secs_f64(),
        into - before.0,
        out - before.1,
        stalls.longest().as_secs_f64(),
        stalls.blind().as_secs_f64(),
    ));
}

/// A disk of our daemon.
struct Disk {
    daemon: VduseBlk,
    on_bus: OnBus,
    name: String,
}

impl Disk {
    #[track_caller]
    fn new(image: &Path, options: &[&str]) -> Self {
        let options = [&["--queues", "2", "--for-swap"], options].concat();
        let mut daemon = VduseBlk::start(&unique_name(), image, &options);
        let (on_bus, name) = daemon.attach();
        Self {
            daemon,
            on_bus,
            name,
        }
    }

    #[track_caller]
    fn detach(self) {
        self.daemon.detach(self.on_bus);
    }
}

/// Makes this process one that goes on when memory is short. All daemons must be there already, as they
/// are to do the same by themselves.
#[track_caller]
fn prepare() {
    prepare_for_shortage().expect("root may lock memory");
}

#[track_caller]
fn swaps_to(image: &Path, options: &[&str], kind: Kind<'_>) {
    let scratch = Scratch::new();
    let disk = Disk::new(image, options);
    prepare();
    let swap = Swap::on(&disk.name);
    let before = swap::counters();
    let mut ballast = Ballast::leave(LEFT);
    let eater = Load::start(kind, LEFT + BEYOND, 2, &scratch.path("eater"));
    watch(&mut [eater], &disk.name, &mut ballast, None, PATIENCE);
    let (into, out) = swap::counters();
    let least = BEYOND / 4096;
    assert!(into - before.0 > least && out - before.1 > least);
    swap.off();
    disk.detach();
}

/// Creates a file of `bytes` bytes, all of which are written.
#[track_caller]
fn fill(path: &Path, bytes: u64) {
    let mut file = File::create(path).expect("a file");
    let piece = vec![0xa5; 1 << 20];
    for _ in 0..bytes >> 20 {
        file.write_all(&piece).expect("filling a file");
    }
}

fn swap_goes_on_while_memory_is_short() {
    let image = RamDisk::new(DISK);
    swaps_to(image.path(), &[], Kind::Eat);
}

fn swap_of_huge_pages_goes_on() {
    let image = RamDisk::new(DISK);
    swaps_to(image.path(), &[], Kind::EatHuge);
}

/// The image is on a file system without direct I/O, in pages that cannot be dropped. The daemon's
/// requests are executed by threads of io_uring, which the kernel starts when it needs them.
fn swap_to_an_image_in_the_page_cache_goes_on() {
    let scratch = Scratch::new();
    let directory = scratch.path("ramfs");
    let _mounted = Mounted::new(&["-t", "ramfs", "none"], &directory);
    let image = directory.join("image");
    fill(&image, DISK);
    swaps_to(&image, &["--buffered"], Kind::Eat);
}

/// Makes a file system on a disk and mounts it.
#[track_caller]
fn file_system(disk: &str, at: &Path) -> Mounted {
    need("mkfs.ext4", "-V");
    let node = format!("/dev/{disk}");
    tool("mkfs.ext4", &["-q", "-F", "-E", "nodiscard", &node]);
    Mounted::new(&[&node], at)
}

fn dirty_pages_beyond_memory_are_written() {
    let scratch = Scratch::new();
    let image = RamDisk::new(DISK);
    let disk = Disk::new(image.path(), &[]);
    prepare();
    let mounted = file_system(&disk.name, &scratch.path("mounted"));
    let mut ballast = Ballast::leave(LEFT);
    let kind = Kind::Dirty(mounted.path());
    let writer = Load::start(kind, DISK * 3 / 4, 2, &scratch.path("writer"));
    watch(&mut [writer], &disk.name, &mut ballast, None, PATIENCE);
    drop(mounted);
    disk.detach();
}

/// Half of a disk is swap space, half of it a file system: both are used at once, by daemons of their
/// own.
fn swap_and_dirty_pages_go_on_at_once() {
    let number = |name| setting(name).and_then(|text| text.parse().ok());
    let time = number(environment::SHORTAGE_SECONDS).unwrap_or(15);
    let patience = number(environment::LONGEST_STALL).unwrap_or(PATIENCE.as_secs());
    let scratch = Scratch::new();
    let image = RamDisk::new(DISK);
    let directory = scratch.path("ramfs");
    let _ramfs = Mounted::new(&["-t", "ramfs", "none"], &directory);
    let file = directory.join("image");
    fill(&file, DISK / 2);
    let disk = Disk::new(image.path(), &[]);
    let files = Disk::new(&file, &["--buffered"]);
    prepare();
    let mounted = file_system(&files.name, &scratch.path("mounted"));
    let swap = Swap::on(&disk.name);
    let mut ballast = Ballast::leave(LEFT);
    let start = |kind, bytes, name| Load::start(kind, bytes, u64::MAX, &scratch.path(name));
    let mut loads = [
        start(Kind::EatHuge, (LEFT + BEYOND) / 2, "huge"),
        start(Kind::Eat, (LEFT + BEYOND) / 2, "eater"),
        start(Kind::Dirty(mounted.path()), DISK * 3 / 8, "writer"),
    ];
    watch(
        &mut loads,
        &disk.name,
        &mut ballast,
        Some(Duration::from_secs(time)),
        Duration::from_secs(patience),
    );
    drop(mounted);
    swap.off();
    disk.detach();
    files.detach();
}
