// SPDX-License-Identifier: GPL-2.0

//! Measurements of a daemon's access to the driver's memory, and of a device's use of kernel
//! memory.

use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use rustix::mm::{madvise, Advice};
use vduse::Mapping;
use vduse_selftests::lab::device::bus::{Driver, OnBus};
use vduse_selftests::lab::device::test_device::TestDevice;
use vduse_selftests::lab::kernel::memory::PAGE;
use vduse_selftests::lab::kernel::sysfs;

use crate::aio::{Direction, Flight};
use crate::measurement::{Bench, Row};
use crate::null::{NullDisk, Shape};
use crate::rows::disk;
use crate::{clock, profile};

const GET_FD: &str = "IOTLB_GET_FD";
const FIRST_TOUCH: &str = "first touch of a page of the bounce area";

/// Measures `IOTLB_GET_FD` for the bounce area, including closing the returned descriptor.
fn get_fd() -> Vec<f64> {
    const CALLS: u64 = 4000;
    let disk = NullDisk::new(Shape::default());
    let look = || drop(disk.device().iotlb_fd(0, 0).expect("the bounce area"));
    (0..100).for_each(|_| look());
    let took = clock::time(|| {
        profile::watch(GET_FD, CALLS as usize, || (0..CALLS).for_each(|_| look()));
    });
    vec![took as f64 / CALLS as f64]
}

/// Measures mapping a bounce area that is in use, and the first access to each of its pages.
fn faults() -> Vec<f64> {
    /// The number of requests in flight, each of which uses many pages of the bounce area. If the
    /// driver allows requests of 126 segments, these are nearly all pages.
    const DEPTH: usize = 120;
    const TIMES: u64 = 4;

    let disk = NullDisk::new(Shape::default());
    let block = disk::open(disk.name());
    // The length of the longest request if no two of its pages are physically adjacent. A longer one
    // would be split, and there might be too many requests for the disk.
    let bytes = disk::most_segments(&block) * PAGE as usize;
    let mut flight = Flight::new(DEPTH, bytes).expect("asynchronous I/O");
    // Pause the disk, so that all requests are mapped before the first one is served.
    let paused = disk.pause();
    let mut next = 0;
    let what = || {
        next += bytes as u64;
        (Direction::Write, next, bytes)
    };
    let slots: Vec<usize> = (0..DEPTH).collect();
    flight.submit(&block, &slots, what).expect("writing");

    let region = disk.device().iotlb_fd(0, 0).expect("the bounce area");
    let size = region.last - region.first + 1;
    let map = || {
        Mapping::of_file(region.file.as_fd(), region.offset, size, region.access)
            .expect("mapping the bounce area")
    };
    // Some pages are not present. Reading such a page would kill this process with `SIGBUS`, so
    // find the present pages with `madvise`.
    let mapping = map();
    let there: Vec<usize> = (0..mapping.len())
        .step_by(PAGE as usize)
        .filter(|&at| {
            let page = mapping.address().wrapping_add(at).cast();
            // SAFETY: The advice does not change the contents of the memory.
            unsafe { madvise(page, PAGE as usize, Advice::LinuxPopulateRead) }.is_ok()
        })
        .collect();
    drop(mapping);
    let least = DEPTH * bytes / PAGE as usize;
    assert!(there.len() >= least, "only {} pages are there", there.len());

    profile::begin(FIRST_TOUCH);
    let took = clock::time(|| {
        for _ in 0..TIMES {
            let mapping = map();
            for &at in &there {
                let byte = mapping.address().wrapping_add(at);
                // SAFETY: The byte is inside the mapping, in a page that is present.
                unsafe { byte.read_volatile() };
            }
        }
    });

    profile::end(FIRST_TOUCH, TIMES as usize * there.len());

    drop(paused);
    let mut left = DEPTH;
    while left != 0 {
        let mut done = Vec::new();
        flight.wait(1, &mut done).expect("writing");
        left -= done.len();
    }
    vec![took as f64 / (TIMES * there.len() as u64) as f64]
}

/// Returns the amount of free memory in KiB, after pending frees have completed.
fn free_memory() -> f64 {
    std::thread::sleep(Duration::from_millis(100));
    // Make the slab caches free those pages that hold no objects.
    for cache in std::fs::read_dir("/sys/kernel/slab").into_iter().flatten() {
        // Ignore errors, because some names are aliases of another cache.
        let _ = cache.map(|cache| sysfs::write(&cache.path().join("shrink"), "1"));
    }
    let vm = Path::new("/proc/sys/vm");
    for (file, value) in [("drop_caches", "3"), ("stat_refresh", "1")] {
        sysfs::write(&vm.join(file), value).expect("asking for memory");
    }
    // Pages that a CPU keeps for later allocations count as free, too.
    let text = std::fs::read_to_string("/proc/zoneinfo").expect("reading about memory");
    let free = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let pages = matches!(words.next(), Some("nr_free_pages" | "count:"));
        pages.then(|| words.next()?.parse::<u64>().ok()).flatten()
    });
    (free.sum::<u64>() * PAGE / 1024) as f64
}

/// An idle device on the vDPA bus. The fields are dropped in declaration order.
struct Idle {
    _on_bus: OnBus,
    _device: TestDevice,
}

impl Idle {
    fn new(shape: Shape, driver: Option<Driver>) -> Self {
        let device = shape.create();
        let file = device.open_ready(shape.queues);
        drop(file);
        let on_bus = OnBus::add(device.name()).expect("adding a device");
        if let Some(driver) = driver {
            on_bus.bind(driver).expect("binding a device");
        }
        Self {
            _on_bus: on_bus,
            _device: device,
        }
    }
}

/// Returns the amount of memory that a device uses, in KiB.
fn per_device(devices: usize, shape: Shape, driver: Option<Driver>) -> f64 {
    // The kernel keeps some memory that it allocates for the first device, so create a device
    // before the measurement.
    drop(Idle::new(shape, driver));
    let before = free_memory();
    let all: Vec<_> = (0..devices).map(|_| Idle::new(shape, driver)).collect();
    let after = free_memory();
    drop(all);
    // A negative result is within the precision of the measurement, and counts as 0.
    (before - after).max(0.0) / devices as f64
}

/// Returns the measurements of memory access and memory use.
pub fn benches() -> Vec<Bench> {
    let spaces = |spaces| Shape {
        spaces,
        ..Shape::default()
    };
    let memory = vec![
        Row::lower("memory of an idle device, unbound", "KiB", 0.5),
        Row::lower("memory of an idle device, bound to vhost-vdpa", "KiB", 0.5),
        Row::lower("memory of an idle address space", "KiB", 0.5),
    ];
    vec![
        Bench::new(vec![Row::lower(GET_FD, "ns", 1.0)], get_fd),
        Bench::new(vec![Row::lower(FIRST_TOUCH, "ns", 1.0)], faults),
        Bench::new(memory, move || {
            let unbound = per_device(256, spaces(1), None);
            let bound = per_device(256, spaces(1), Some(Driver::Vhost));
            let many = per_device(4, spaces(257), None);
            vec![unbound, bound, (many - unbound).max(0.0) / 256.0]
        }),
    ]
}
