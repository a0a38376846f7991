// SPDX-License-Identifier: GPL-2.0

//! How much the kernel holds: objects of its allocators, files, memory.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use crate::lab::limit::Limit;
use crate::lab::memory::PAGE;
use crate::lab::rcu::Expedited;
use crate::lab::{driver, skip};
use crate::modules;

/// How often a test does what is to leave nothing.
const TIMES: i64 = 20;

/// How often it does so before anything is counted, at most: what is allocated once and kept is
/// there then.
const WARM_UP: i64 = 4;

/// How many objects may be there for other reasons, however often something is done.
const OTHERS: i64 = 3;

/// How long it may take until all is freed whose freeing was put off.
const SETTLING: Duration = Duration::from_secs(15);

/// How long until it is worth while to count again.
const PAUSE: Duration = Duration::from_millis(500);

/// How much memory may be less afterwards for other reasons, in KiB: logs, page tables, caches.
const TOLERANCE: i64 = 3 << 10;

/// How much memory can be had, in KiB.
///
/// The kernel's own figure leaves out what each CPU keeps of freed pages, to be given back in the
/// seconds to come: that may be some 100 MiB, and is added.
pub fn available() -> i64 {
    // Has the kernel add up what each CPU counts by itself.
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

/// Whether this kernel remembers every object that it allocates, which takes more memory than small
/// objects themselves do, and charges nobody for it.
pub fn has_kmemleak() -> bool {
    let objects = fs::read_to_string("/proc/slabinfo").expect("reading what objects there are");
    objects
        .lines()
        .any(|line| line.starts_with("kmemleak_object "))
}

/// Does something again and again, and asserts that the kernel then has no more than before: no
/// references to the module, no objects of any size, no files, no memory; but for a few of what
/// others have at the same time.
#[track_caller]
pub fn leaves_nothing(order: impl FnMut()) {
    times_leave_nothing(TIMES, order);
}

/// The same, so many times, of something that does a lot.
#[track_caller]
pub fn times_leave_nothing(times: i64, mut order: impl FnMut()) {
    let _expedited = Expedited::new();
    (0..(times / 2).clamp(1, WARM_UP)).for_each(|_| order());
    let first = left_by(times, &mut order);
    if first.is_empty() {
        return;
    }
    // What some part of the kernel keeps for later fills up; what leaks grows on, and is of the same
    // kind each time.
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

/// Does something again and again, and says what there is then that was not there before, and does
/// not go away.
#[track_caller]
fn left_by(times: i64, order: &mut impl FnMut()) -> BTreeMap<String, i64> {
    // Others come and go meanwhile, so that one left by each time may not be counted in full.
    let others = OTHERS.max(times / 2);
    let allocators = Allocators::open();
    let mut before = Counts::take(&allocators);
    let mut settling = Limit::new(SETTLING);
    loop {
        std::thread::sleep(PAUSE);
        // What was begun before is freed meanwhile, and would hide what is left later.
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
        // Of the driver's own, none are there for other reasons.
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
        // What is left for good is in each.
        after.lower(&Counts::take(&allocators));
    }
}

/// The kernel's allocators, by the files that count their objects.
///
/// All are open beforehand: opening one allocates, and then a CPU keeps a whole sheaf of objects
/// of that size for itself, some sixty that count as in use.
struct Allocators {
    table: File,
    /// Of each that is counted.
    shrink: Vec<File>,
    lookups: File,
    /// Whether the kernel remembers who allocated what.
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
                    let folder = Path::new("/sys/kernel/slab").join(cache);
                    write(&folder.join("shrink")).ok()
                })
                .collect(),
            lookups: write(Path::new("/proc/sys/vm/drop_caches")).expect("what drops caches"),
            tracked: own_objects().is_some(),
        }
    }

    /// How many objects there are, by their size; or, where it is known who allocated them, of caches
    /// of their own only, as [`own_objects`] counts the others.
    #[track_caller]
    fn objects(&self) -> BTreeMap<String, i64> {
        // What was looked up in sysfs is remembered after it is gone.
        let _ = self.lookups.write_at(b"2", 0);
        for file in &self.shrink {
            // What a CPU keeps for itself would count as in use.
            let _ = file.write_at(b"1", 0);
        }
        let mut table = String::new();
        (&self.table)
            .rewind()
            .and_then(|()| (&self.table).read_to_string(&mut table))
            .expect("reading what objects there are");
        let mut objects = BTreeMap::new();
        for (cache, active) in counted(&table) {
            // Among them are the kernel's notes of who is charged for the objects of a page, which it
            // makes whenever it takes a page for any cache.
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

/// Who allocated the objects that there are, innermost function first, and how many each: for those
/// caches of which the kernel remembers it (`slab_debug=U`).
fn sites() -> BTreeMap<String, i64> {
    let mut sites = BTreeMap::new();
    let table = fs::read_to_string("/proc/slabinfo").unwrap_or_default();
    for (cache, _) in counted(&table) {
        let folder = Path::new("/sys/kernel/debug/slab").join(cache);
        let text = fs::read_to_string(folder.join("alloc_traces")).unwrap_or_default();
        for site in text.split("\n\n") {
            // How many there are, how old and on which CPUs; then the callers, each as
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

/// How many objects there are that the driver allocated, or had allocated, where the kernel remembers
/// it.
fn own_objects() -> Option<i64> {
    // What an allocator has of its own stays with it.
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

/// What there is at a moment.
#[derive(Debug)]
struct Counts {
    references: i64,
    /// In KiB, where it can be told.
    available: Option<i64>,
    /// By the size of the object, or by their cache's name.
    objects: BTreeMap<String, i64>,
}

impl Counts {
    #[track_caller]
    fn take(allocators: &Allocators) -> Self {
        Self {
            references: modules::references(modules::name(driver())).expect("the module"),
            // Freed objects are kept where their use is to be seen, and each one is remembered: many
            // MiB, more or less.
            available: (!has_kmemleak()).then(available),
            objects: allocators.objects(),
        }
    }

    /// Takes over what is less in another, and says whether objects are.
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

    /// What there is that was not there before, but for so many objects of each size.
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

/// What a driver of this kind may hold that is in a cache of its own.
const OTHER_CACHES: &[&str] = &["filp", "mm_struct", "iommu_iova", "iommu_iova_magazine"];

/// Those caches that the driver's objects are in, and how many objects each has.
fn counted(table: &str) -> impl Iterator<Item = (&str, i64)> {
    table.lines().filter_map(|line| {
        let mut fields = line.split_whitespace();
        let cache = fields.next()?;
        let active = fields.next()?.parse().ok()?;
        (cache.starts_with("kmalloc") || OTHER_CACHES.contains(&cache)).then_some((cache, active))
    })
}
