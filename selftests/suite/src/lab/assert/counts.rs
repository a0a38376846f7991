// SPDX-License-Identifier: GPL-2.0

//! Counts of the kernel resources in use, by which a test finds leaks: allocator objects, module
//! references, memory.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use crate::lab::assert::limit::Limit;
use crate::lab::kernel::memory::PAGE;
use crate::lab::kernel::modules;
use crate::lab::kernel::rcu::Expedited;
use crate::lab::run::report::skip;
use crate::lab::run::settings::driver;

/// Number of times that a test performs an operation that must not leak.
const TIMES: i64 = 20;

/// Maximum number of warm-up repetitions before the first count. During the warm-up, the kernel
/// allocates the objects that it allocates only once and then keeps.
const WARM_UP: i64 = 4;

/// Number of additional objects of each size that are always tolerated, even with few repetitions,
/// because other activities may have allocated them.
const OTHERS: i64 = 3;

/// Time limit for the kernel's deferred freeing of objects.
const SETTLING: Duration = Duration::from_secs(15);

/// Pause between counts.
const PAUSE: Duration = Duration::from_millis(500);

/// Decrease of the available memory that is tolerated, in KiB. Logs, page tables and caches may
/// have taken that much.
const TOLERANCE: i64 = 3 << 10;

/// Returns the available memory in KiB.
///
/// The kernel's `MemAvailable` does not include the free pages that each CPU caches for a few
/// seconds. These pages may amount to about 100 MiB, so this function adds them.
pub fn available() -> i64 {
    // Reading this file makes the kernel add up its per-CPU counters.
    let _ = fs::read("/proc/sys/vm/stat_refresh");
    let figures = |file: &str, name: &str| -> i64 {
        let text = fs::read_to_string(file).expect("reading what memory there is");
        let lines = text.lines().map(str::trim_start);
        lines
            .filter_map(|line| line.strip_prefix(name))
            .filter_map(|rest| rest.split_whitespace().next()?.parse::<i64>().ok())
            .sum()
    };
    figures("/proc/meminfo", "MemAvailable:")
        + figures("/proc/zoneinfo", "count:") * (PAGE >> 10) as i64
}

/// Returns whether this kernel tracks every allocated object with kmemleak. kmemleak's record of a
/// small object is larger than the object itself, and the kernel does not charge the records to a
/// control group.
pub fn has_kmemleak() -> bool {
    let objects = fs::read_to_string("/proc/slabinfo").expect("reading what objects there are");
    objects
        .lines()
        .any(|line| line.starts_with("kmemleak_object "))
}

/// Repeats an operation and asserts that it leaks no resources: no references to the module, no
/// allocator objects of any size, no open files, no memory. A few additional objects are tolerated,
/// because other activities run at the same time.
#[track_caller]
pub fn leaves_nothing(order: impl FnMut()) {
    times_leave_nothing(TIMES, order);
}

/// Variant of [`leaves_nothing`] with `times` repetitions, for an operation that takes long.
#[track_caller]
pub fn times_leave_nothing(times: i64, mut order: impl FnMut()) {
    let _expedited = Expedited::new();
    (0..(times / 2).clamp(1, WARM_UP)).for_each(|_| order());
    let first = left_by(times, &mut order);
    if first.is_empty() {
        return;
    }
    // A kernel cache that fills up grows during only one of the two runs. A leak grows during both
    // runs, with objects of the same kind.
    let before = sites();
    let second = left_by(times, &mut order);
    let leaks = first.keys().any(|kind| second.contains_key(kind));
    if leaks {
        for (site, count) in sites() {
            let grown = count - before.get(&site).copied().unwrap_or(0);
            if grown > 0 {
                eprintln!("{grown} objects more of {site}");
            }
        }
        panic!("{times} times left: {first:?}; {times} times more: {second:?}");
    }
}

/// Repeats an operation. Returns the kinds of resources whose use has increased, each with the
/// increase. Waits up to [`SETTLING`] for the kernel to free resources.
#[track_caller]
fn left_by(times: i64, order: &mut impl FnMut()) -> BTreeMap<String, i64> {
    // The operation may leak one object per repetition. Other activities may free objects of the
    // same size at the same time, so the count may show only a part of such a leak. Therefore, an
    // increase by more than half of `times` counts as a leak.
    let others = OTHERS.max(times / 2);
    let allocators = Allocators::open();
    let mut before = Counts::take(&allocators);
    let mut settling = Limit::new(SETTLING);
    loop {
        std::thread::sleep(PAUSE);
        // Waits until the deferred freeing of earlier objects has ended. Otherwise, those objects
        // would offset leaked objects in the count.
        if !before.lower(&Counts::take(&allocators)) || settling.is_over() {
            break;
        }
    }
    let own = own_objects();
    (0..times).for_each(|_| order());
    let mut settling = Limit::new(SETTLING);
    let mut after = Counts::take(&allocators);
    loop {
        let over = settling.is_over();
        let mut left = after.more_than(&before, others);
        // Other activities do not allocate the driver's own objects, so no additional object of the
        // driver is tolerated.
        if let (true, Some(own)) = (over || left.is_empty(), own) {
            let grown = own_objects().unwrap_or(0) - own;
            if grown > 0 {
                left.insert("objects of the driver".to_owned(), grown);
            }
        }
        if left.is_empty() || over {
            return left;
        }
        std::thread::sleep(PAUSE);
        // A leaked object is part of every count, so the minimum of the counts includes it.
        after.lower(&Counts::take(&allocators));
    }
}

/// The files that report the kernel's allocators.
///
/// All files are opened in advance, because opening a file allocates objects. The CPU that
/// allocates an object then keeps a sheaf of about sixty objects of that size, which count as in
/// use.
struct Allocators {
    table: File,
    /// The `shrink` file of each counted cache.
    shrink: Vec<File>,
    lookups: File,
    /// Whether the kernel records the callers of allocations (`slab_debug=U`).
    tracked: bool,
}

impl Allocators {
    #[track_caller]
    fn open() -> Self {
        let Ok(table) = File::open("/proc/slabinfo") else {
            skip("no /proc/slabinfo here");
        };
        let write = |path: &Path| OpenOptions::new().write(true).open(path);
        let names =
            fs::read_to_string("/proc/slabinfo").expect("reading what allocators there are");
        Self {
            table,
            shrink: counted(&names)
                .filter_map(|(cache, _)| {
                    let directory = Path::new("/sys/kernel/slab").join(cache);
                    write(&directory.join("shrink")).ok()
                })
                .collect(),
            lookups: write(Path::new("/proc/sys/vm/drop_caches")).expect("what drops caches"),
            tracked: own_objects().is_some(),
        }
    }

    /// Returns the number of objects by size. If the kernel records the callers of allocations,
    /// this function leaves out the kmalloc caches, because [`own_objects`] covers them.
    #[track_caller]
    fn objects(&self) -> BTreeMap<String, i64> {
        // Drops dentries and inodes, because the kernel still caches dentries and inodes of deleted
        // sysfs files.
        let _ = self.lookups.write_at(b"2", 0);
        for file in &self.shrink {
            // Shrinks the cache. Otherwise, objects that a CPU caches would count as in use.
            let _ = file.write_at(b"1", 0);
        }
        let mut table = String::new();
        (&self.table)
            .rewind()
            .and_then(|()| (&self.table).read_to_string(&mut table))
            .expect("reading what objects there are");
        let mut objects = BTreeMap::new();
        for (cache, active) in counted(&table) {
            // The kmalloc caches also contain the allocator's own records. A record holds the
            // control groups to which the kernel charges the objects of one slab. The kernel may
            // allocate a record for a slab of any cache, so new records do not mean a leak.
            if self.tracked && cache.starts_with("kmalloc") {
                continue;
            }
            // The kernel has several caches for each size, such as `kmalloc-64` and
            // `kmalloc-cg-64`.
            let kind = cache.rsplit('-').next().unwrap_or(cache).to_owned();
            *objects.entry(kind).or_default() += active;
        }
        assert!(objects.contains_key("filp"), "{objects:?}");
        objects
    }
}

/// Returns the number of existing objects by allocation site, which is the list of callers with the
/// innermost function first. Covers the caches for which the kernel records the callers
/// (`slab_debug=U`).
fn sites() -> BTreeMap<String, i64> {
    let mut sites = BTreeMap::new();
    let table = fs::read_to_string("/proc/slabinfo").unwrap_or_default();
    for (cache, _) in counted(&table) {
        let directory = Path::new("/sys/kernel/debug/slab").join(cache);
        let text = fs::read_to_string(directory.join("alloc_traces")).unwrap_or_default();
        for site in text.split("\n\n") {
            // The first line has the number of objects, their ages and their CPUs. Each other line
            // has a caller, as `name+offset/size [module]`.
            let mut lines = site.lines();
            let count = lines
                .next()
                .and_then(|line| line.split_whitespace().next()?.parse::<i64>().ok());
            let Some(count) = count else { continue };
            let callers: Vec<_> = lines
                .map(|line| {
                    let (name, rest) = line.trim().split_once('+').unwrap_or((line, ""));
                    let module = rest.split_once(' ').unwrap_or_default().1;
                    format!("{name} {module}").trim_end().to_owned()
                })
                .collect();
            *sites
                .entry(format!("{cache}: {}", callers.join(" < ")))
                .or_default() += count;
        }
    }
    sites
}

/// Returns the number of objects allocated by the driver or on its behalf, or `None` if the kernel
/// does not record the callers of allocations.
fn own_objects() -> Option<i64> {
    // Functions in which the allocator allocates objects for its own use. These objects remain when
    // the driver's objects are freed.
    const ALLOCATORS: &[&str] = &["alloc_slab_obj_exts", "__alloc_empty_sheaf"];
    let module = format!("[{}]", modules::name(driver()));
    let sites = sites();
    let own = |site: &String| {
        site.contains(&module) && !ALLOCATORS.iter().any(|name| site.contains(name))
    };
    (!sites.is_empty()).then(|| {
        sites
            .iter()
            .filter(|(site, _)| own(site))
            .map(|(_, count)| count)
            .sum()
    })
}

/// The kernel resources in use at one time.
#[derive(Debug)]
struct Counts {
    references: i64,
    /// Available memory in KiB, or `None` if kmemleak makes that number meaningless.
    available: Option<i64>,
    /// Number of objects, by size or by the name of their cache.
    objects: BTreeMap<String, i64>,
}

impl Counts {
    #[track_caller]
    fn take(allocators: &Allocators) -> Self {
        Self {
            references: modules::references(modules::name(driver())).expect("the module"),
            // On a kernel with kmemleak, available memory varies by many MiB: kmemleak has a record
            // of each object, and other debugging options delay the freeing of objects.
            available: (!has_kmemleak()).then(available),
            objects: allocators.objects(),
        }
    }

    /// Keeps the lower usage of `self` and `other` for each resource. Returns whether the number of
    /// objects of any size was lowered.
    fn lower(&mut self, other: &Self) -> bool {
        let mut is_less = false;
        self.references = self.references.min(other.references);
        self.available = self.available.max(other.available);
        for (kind, &count) in &other.objects {
            let lowest = self.objects.entry(kind.clone()).or_insert(count);
            is_less |= count < *lowest;
            *lowest = count.min(*lowest);
        }
        is_less
    }

    /// Returns the kinds of resources whose use is higher in `self` than in `before`, each with the
    /// increase. Up to `others` additional objects of each size are tolerated.
    fn more_than(&self, before: &Self, others: i64) -> BTreeMap<String, i64> {
        let mut more = BTreeMap::new();
        if self.references > before.references {
            let count = self.references - before.references;
            more.insert("references to the module".to_owned(), count);
        }
        if let (Some(was), Some(is)) = (before.available, self.available) {
            if was - is > TOLERANCE {
                more.insert("KiB less memory".to_owned(), was - is);
            }
        }
        for (kind, &count) in &self.objects {
            let grown = count - before.objects.get(kind).copied().unwrap_or(0);
            if grown > others {
                more.insert(format!("objects of {kind}"), grown);
            }
        }
        more
    }
}

/// Dedicated slab caches that may contain objects of a VDUSE driver.
const OTHER_CACHES: &[&str] = &["filp", "mm_struct", "iommu_iova", "iommu_iova_magazine"];

/// Returns the slab caches that may contain the driver's objects, and the number of objects in use
/// in each cache. `table` is the text of `/proc/slabinfo`.
fn counted(table: &str) -> impl Iterator<Item = (&str, i64)> {
    table.lines().filter_map(|line| {
        let mut fields = line.split_whitespace();
        let cache = fields.next()?;
        let active = fields.next()?.parse().ok()?;
        (cache.starts_with("kmalloc") || OTHER_CACHES.contains(&cache)).then_some((cache, active))
    })
}
