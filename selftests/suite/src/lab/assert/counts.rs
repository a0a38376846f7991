// SPDX-License-Identifier: GPL-2.0

//! Kernel resources in use: allocator objects, files, memory.

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

/// How many times a test performs an operation that must not leak.
const TIMES: i64 = 20;

/// Maximum number of times that the operation is performed before the first count, so that objects
/// that are allocated once and kept exist by then.
const WARM_UP: i64 = 4;

/// Number of new objects that may exist for other reasons, however often the operation is
/// performed.
const OTHERS: i64 = 3;

/// Time limit for deferred freeing.
const SETTLING: Duration = Duration::from_secs(15);

/// Pause between counts.
const PAUSE: Duration = Duration::from_millis(500);

/// Memory in KiB that may be used for other reasons: logs, page tables, caches.
const TOLERANCE: i64 = 3 << 10;

/// Returns the available memory in KiB.
///
/// The kernel's own figure does not include the freed pages that each CPU caches and gives back
/// within seconds. These pages may amount to about 100 MiB and are added here.
pub fn available() -> i64 {
    // Makes the kernel sum up its per-CPU counters.
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

/// Returns whether this kernel tracks every allocated object (kmemleak). Tracking takes more memory
/// than small objects themselves do, and that memory is not charged to any control group.
pub fn has_kmemleak() -> bool {
    let objects = fs::read_to_string("/proc/slabinfo").expect("reading what objects there are");
    objects
        .lines()
        .any(|line| line.starts_with("kmemleak_object "))
}

/// Repeats an operation and asserts that the kernel has no more resources in use afterwards: no
/// references to the module, no objects of any size, no files, no memory, except for a few that
/// other activities use at the same time.
#[track_caller]
pub fn leaves_nothing(order: impl FnMut()) {
    times_leave_nothing(TIMES, order);
}

/// Variant of [`leaves_nothing`] with this number of repetitions, for an operation that does a lot.
#[track_caller]
pub fn times_leave_nothing(times: i64, mut order: impl FnMut()) {
    let _expedited = Expedited::new();
    (0..(times / 2).clamp(1, WARM_UP)).for_each(|_| order());
    let first = left_by(times, &mut order);
    if first.is_empty() {
        return;
    }
    // Caches in the kernel fill up, so they grow in only one of the runs. A leak grows in both, and
    // is of the same kind each time.
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

/// Repeats an operation. Returns the resources in use afterwards that were not in use before and
/// are not freed.
#[track_caller]
fn left_by(times: i64, order: &mut impl FnMut()) -> BTreeMap<String, i64> {
    // Other activities free objects meanwhile, so a leak of one object per repetition may be
    // counted in part only.
    let others = OTHERS.max(times / 2);
    let allocators = Allocators::open();
    let mut before = Counts::take(&allocators);
    let mut settling = Limit::new(SETTLING);
    loop {
        std::thread::sleep(PAUSE);
        // Deferred freeing of earlier objects would otherwise hide objects that are leaked later.
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
        // Other activities do not use the driver's own objects, so none are tolerated.
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
        // Leaked objects are included in every count, so the minimum includes them.
        after.lower(&Counts::take(&allocators));
    }
}

/// The files that report the kernel's allocators.
///
/// All files are opened in advance: opening one allocates objects, upon which a CPU keeps a whole
/// sheaf of objects of that size, about sixty, which count as in use.
struct Allocators {
    table: File,
    /// The `shrink` file of each counted cache.
    shrink: Vec<File>,
    lookups: File,
    /// Whether the kernel records the callers of allocations.
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
    /// only the objects of dedicated caches are counted here; [`own_objects`] counts the others.
    #[track_caller]
    fn objects(&self) -> BTreeMap<String, i64> {
        // Dentries and inodes of sysfs stay cached after their files are gone.
        let _ = self.lookups.write_at(b"2", 0);
        for file in &self.shrink {
            // Objects cached by a CPU would count as in use.
            let _ = file.write_at(b"1", 0);
        }
        let mut table = String::new();
        (&self.table)
            .rewind()
            .and_then(|()| (&self.table).read_to_string(&mut table))
            .expect("reading what objects there are");
        let mut objects = BTreeMap::new();
        for (cache, active) in counted(&table) {
            // These caches include the kernel's own records of the charges for a page's objects,
            // which the kernel allocates whenever it takes a page for any cache.
            if self.tracked && cache.starts_with("kmalloc") {
                continue;
            }
            // The kernel has several caches for each size.
            let kind = cache.rsplit('-').next().unwrap_or(cache).to_owned();
            *objects.entry(kind).or_default() += active;
        }
        assert!(objects.contains_key("filp"), "{objects:?}");
        objects
    }
}

/// Returns the number of existing objects by allocation site, innermost function first, for the
/// caches whose allocation sites the kernel records (`slab_debug=U`).
fn sites() -> BTreeMap<String, i64> {
    let mut sites = BTreeMap::new();
    let table = fs::read_to_string("/proc/slabinfo").unwrap_or_default();
    for (cache, _) in counted(&table) {
        let directory = Path::new("/sys/kernel/debug/slab").join(cache);
        let text = fs::read_to_string(directory.join("alloc_traces")).unwrap_or_default();
        for site in text.split("\n\n") {
            // The number of objects, their ages and CPUs; then the callers, each as
            // `name+offset/size [module]`.
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
    // Objects that belong to the allocator itself are not freed with the driver's objects.
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

/// The resources in use at one time.
#[derive(Debug)]
struct Counts {
    references: i64,
    /// Available memory in KiB, if that is meaningful.
    available: Option<i64>,
    /// Number of objects, by size or by the name of their cache.
    objects: BTreeMap<String, i64>,
}

impl Counts {
    #[track_caller]
    fn take(allocators: &Allocators) -> Self {
        Self {
            references: modules::references(modules::name(driver())).expect("the module"),
            // kmemleak keeps a record of each object, and debugging keeps freed objects: many MiB,
            // more or less.
            available: (!has_kmemleak()).then(available),
            objects: allocators.objects(),
        }
    }

    /// Lowers each count to that of `other`. Returns whether the number of any objects was lowered.
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

    /// Returns the resources in use in addition to `before`, except up to `others` objects of each
    /// size.
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

/// Dedicated caches whose objects such a driver may hold.
const OTHER_CACHES: &[&str] = &["filp", "mm_struct", "iommu_iova", "iommu_iova_magazine"];

/// Returns the caches of the driver's objects, and the number of objects in each.
fn counted(table: &str) -> impl Iterator<Item = (&str, i64)> {
    table.lines().filter_map(|line| {
        let mut fields = line.split_whitespace();
        let cache = fields.next()?;
        let active = fields.next()?.parse().ok()?;
        (cache.starts_with("kmalloc") || OTHER_CACHES.contains(&cache)).then_some((cache, active))
    })
}
