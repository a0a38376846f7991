// SPDX-License-Identifier: GPL-2.0

//! Fault injection. It makes single memory allocations fail, or single copies from and to user
//! memory.
//!
//! For each thread, the kernel counts the points at which it can inject a fault, and injects a
//! fault at the nth point (`/proc/thread-self/fail-nth`, Documentation/fault-injection). A test
//! performs an operation with a fault at the first point, then at the second point, and so on. The
//! test is complete when the operation ends before it reaches the point of the fault.

use std::cell::Cell;
use std::fmt::Debug;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::marker::PhantomData;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::lab::kernel::{modules, sysfs};
use crate::lab::run::report::{note, skip};
use crate::lab::run::settings::driver;

/// Names of the debugfs directories, one for each kind of fault.
const SLAB: &str = "failslab";
const PAGES: &str = "fail_page_alloc";
const COPIES: &str = "fail_usercopy";

/// Maximum number of points of an operation at which faults are tried. If the operation has more
/// points, the test fails.
const MOST: u32 = 2000;

/// An address range without code. Faults limited to such a range never occur.
const NOWHERE: Range<u64> = 0..1;
/// All addresses. With this range, the kernel does not check the stack.
const EVERYWHERE: Range<u64> = 0..u64::MAX;

/// A kernel function that the driver calls, and in which no fault may be injected. The reason is a
/// kernel bug (7.2, `drivers/iommu/iova.c`): suppose that `iova_cache_put` has destroyed the
/// caches, and that the next call of this function fails to create them again. Then its error path
/// destroys a cache that `iova_cache_put` has already destroyed.
const FREED_TWICE: &str = "iova_cache_get";

/// The code that must be on the stack for a fault to occur.
#[derive(Clone, Copy, Debug)]
pub enum Below {
    /// Any code.
    Anything,
    /// The driver's code.
    Driver,
    /// The kernel function that calls a module's init function (`do_one_initcall`). No fault occurs
    /// if [`FREED_TWICE`] is on the stack as well.
    Initcall,
}

impl Below {
    #[track_caller]
    fn addresses(self) -> Range<u64> {
        match self {
            Self::Anything => EVERYWHERE,
            Self::Driver => text_of(modules::name(driver())),
            Self::Initcall => function("do_one_initcall"),
        }
    }
}

/// A time during which every allocation of the driver fails, in all tasks and interrupt handlers.
/// The outage ends when this value is dropped.
#[derive(Debug)]
pub struct Outage {
    /// The previous values of the changed settings, by path.
    before: Vec<(PathBuf, String)>,
}

impl Outage {
    /// The number of failures after which the kernel injects no more.
    const TIMES: u32 = 1_000_000_000;

    /// Begins an outage: every allocation with `below` on the stack fails, including those that may
    /// sleep. Skips the test if the kernel has no fault injection.
    #[track_caller]
    pub fn new(below: Below) -> Self {
        let kinds = [SLAB, PAGES];
        let has_filter = |kind: &&str| directory(kind).join("require-start").exists();
        if !kinds.iter().all(has_filter) {
            skip("no fault injection here");
        }
        let mut outage = Self { before: Vec::new() };
        let addresses = below.addresses();
        for kind in kinds {
            let settings = [
                ("verbose", "0".into()),
                ("task-filter", "N".into()),
                ("require-start", format!("{:#x}", addresses.start)),
                ("require-end", format!("{:#x}", addresses.end)),
                ("ignore-gfp-wait", "N".into()),
                ("interval", "1".into()),
                ("space", "0".into()),
                ("times", Self::TIMES.to_string()),
                // Set last, as this begins the outage.
                ("probability", "100".into()),
            ];
            if kind == PAGES {
                outage.set(kind, "min-order", "0");
                outage.set(kind, "ignore-gfp-highmem", "N");
            }
            for (name, value) in settings {
                outage.set(kind, name, &value);
            }
        }
        outage
    }

    /// Ends the outage. Returns the number of allocations that failed.
    #[track_caller]
    pub fn end(self) -> u32 {
        let left = |kind| {
            let times = sysfs::read(&directory(kind).join("times")).expect("reading a setting");
            times.trim().parse::<u32>().expect("a number")
        };
        [SLAB, PAGES]
            .map(|kind| Self::TIMES - left(kind))
            .iter()
            .sum()
    }

    #[track_caller]
    fn set(&mut self, kind: &str, name: &str, value: &str) {
        change(&mut self.before, kind, name, value);
    }
}

impl Drop for Outage {
    fn drop(&mut self) {
        restore(&mut self.before);
    }
}

/// Changes a setting and saves the previous value in `before`.
#[track_caller]
fn change(before: &mut Vec<(PathBuf, String)>, kind: &str, name: &str, value: &str) {
    let path = directory(kind).join(name);
    let previous = sysfs::read(&path).expect("reading a setting");
    sysfs::write(&path, value).expect("changing a setting");
    before.push((path, previous));
}

/// Restores the settings that were saved in `before`, the last one first.
fn restore(before: &mut Vec<(PathBuf, String)>) {
    for (path, value) in before.drain(..).rev() {
        let _ = sysfs::write(&path, &value);
    }
}

/// Fault injection for the current thread. The injection ends when this value is dropped.
#[derive(Debug)]
pub struct Injection {
    nth: File,
    /// The previous values of the changed settings, by path.
    before: Vec<(PathBuf, String)>,
    /// Keeps this value in the thread that created it, because the file `fail-nth` belongs to the
    /// thread that opened the file.
    _thread: PhantomData<*const ()>,
}

impl Injection {
    /// Injects faults in memory allocations, including those that may sleep. Skips the test if the
    /// kernel has no fault injection.
    #[track_caller]
    pub fn of_allocations(below: Below) -> Self {
        let mut injection = Self::new();
        let addresses = below.addresses();
        for kind in [SLAB, PAGES] {
            injection.set(kind, "ignore-gfp-wait", "N");
            injection.limit(kind, &addresses);
            if matches!(below, Below::Initcall) {
                injection.range(kind, "reject", &function(FREED_TWICE));
            }
        }
        injection.set(PAGES, "ignore-gfp-highmem", "N");
        injection.set(PAGES, "min-order", "0");
        injection.limit(COPIES, &NOWHERE);
        injection
    }

    /// Injects faults in copies from and to user memory. Skips the test if the kernel has no fault
    /// injection.
    #[track_caller]
    pub fn of_copies() -> Self {
        let mut injection = Self::new();
        injection.limit(COPIES, &EVERYWHERE);
        for kind in [SLAB, PAGES] {
            injection.limit(kind, &NOWHERE);
        }
        injection
    }

    #[track_caller]
    fn new() -> Self {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/proc/thread-self/fail-nth");
        let Ok(nth) = file else {
            skip("no fault injection here");
        };
        // To limit faults to one kind, the stack filters of the other kinds are set to `NOWHERE`.
        // Some kernels have no stack filters.
        if ![SLAB, PAGES, COPIES]
            .iter()
            .all(|kind| directory(kind).join("require-start").exists())
        {
            skip("no faults of one kind here");
        }
        Self {
            nth,
            before: Vec::new(),
            _thread: PhantomData,
        }
    }

    /// Changes a setting and saves the previous value.
    #[track_caller]
    fn set(&mut self, kind: &str, name: &str, value: &str) {
        change(&mut self.before, kind, name, value);
    }

    /// Limits faults of `kind` to call stacks with an address in the range `addresses`.
    #[track_caller]
    fn limit(&mut self, kind: &str, addresses: &Range<u64>) {
        // By default, the kernel logs each fault.
        self.set(kind, "verbose", "0");
        self.range(kind, "require", addresses);
    }

    /// Limits faults of `kind` by the addresses on the call stack. If `what` is `require`, a fault
    /// occurs only if the stack contains an address in the range `addresses`. If `what` is
    /// `reject`, a fault occurs only if the stack contains no address in that range.
    #[track_caller]
    fn range(&mut self, kind: &str, what: &str, addresses: &Range<u64>) {
        let text = |address: u64| format!("{address:#x}");
        self.set(kind, &format!("{what}-start"), &text(addresses.start));
        self.set(kind, &format!("{what}-end"), &text(addresses.end));
    }

    /// Calls `trial` with the first fault, then with the second, and so on, until a call of `trial`
    /// ends before its fault has occurred. `path` names the operation in messages.
    #[track_caller]
    pub fn each(&self, path: &str, mut trial: impl FnMut(&Fault<'_>)) -> Tally {
        let mut tally = Tally::default();
        for n in 1..=MOST {
            let fault = Fault {
                injection: self,
                path,
                n,
                came: Cell::new(None),
                failed: Cell::new(false),
            };
            trial(&fault);
            match fault.came.get() {
                Some(true) => {
                    tally.faults += 1;
                    tally.failures += u32::from(fault.failed.get());
                }
                Some(false) => return tally,
                None => panic!("{path}: nothing was tried"),
            }
        }
        panic!("{path}: more than {MOST} faults");
    }

    /// Performs an operation with each fault in turn. If the operation fails, its error must be one
    /// of `errors`, and a second attempt must succeed. `undo` reverts the successful operation.
    #[track_caller]
    pub fn survived<T>(
        &self,
        path: &str,
        errors: &[Errno],
        mut operation: impl FnMut() -> io::Result<T>,
        mut undo: impl FnMut(T),
    ) -> Tally {
        self.each(path, |fault| {
            let done = match fault.hit(errors, &mut operation) {
                Some(done) => done,
                None => fault.again(&mut operation),
            };
            undo(done);
        })
    }

    /// Requests a fault at the `n`th point from now on. If `n` is 0, requests no fault.
    fn arm(&self, n: u32) {
        self.nth
            .write_all_at(n.to_string().as_bytes(), 0)
            .expect("asking for a fault");
    }

    /// Cancels the requested fault. Returns whether the fault had already occurred.
    fn disarm(&self) -> bool {
        let mut text = [0; 16];
        let came = match self.nth.read_at(&mut text, 0) {
            Ok(n) => text[..n].trim_ascii() == b"0",
            // The fault occurred in this read and thus not in the operation.
            Err(_) => return false,
        };
        if !came && self.nth.write_all_at(b"0", 0).is_err() {
            self.arm(0);
        }
        came
    }
}

impl Drop for Injection {
    fn drop(&mut self) {
        restore(&mut self.before);
    }
}

/// A fault that is injected into one operation.
#[derive(Debug)]
pub struct Fault<'a> {
    injection: &'a Injection,
    path: &'a str,
    n: u32,
    came: Cell<Option<bool>>,
    failed: Cell<bool>,
}

impl Fault<'_> {
    /// Returns the fault's number, starting from 1.
    pub fn number(&self) -> u32 {
        self.n
    }

    /// Performs the operation in which the fault may occur. Returns `None` if the operation fails.
    /// The operation may fail only if the fault has occurred, and only with one of `errors`.
    #[track_caller]
    pub fn hit<T>(&self, errors: &[Errno], operation: impl FnOnce() -> io::Result<T>) -> Option<T> {
        self.injection.arm(self.n);
        let result = operation();
        let came = self.injection.disarm();
        assert_eq!(self.came.replace(Some(came)), None, "one fault, one call");
        match result {
            Ok(done) => Some(done),
            Err(error) => {
                assert!(came, "{self} did not come, and yet: {error}");
                let errno = Errno::from_io_error(&error);
                let is_right = errno.is_some_and(|errno| errors.contains(&errno));
                assert!(is_right, "{self}: {error}, and not one of {errors:?}");
                self.failed.set(true);
                None
            }
        }
    }

    /// Performs an operation that must succeed, because the fault is over.
    #[track_caller]
    pub fn again<T>(&self, operation: impl FnOnce() -> io::Result<T>) -> T {
        match operation() {
            Ok(done) => done,
            Err(error) => panic!("after {self}: {error}"),
        }
    }
}

impl std::fmt::Display for Fault<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: fault {}", self.path, self.n)
    }
}

/// The outcome of an operation that was performed with a fault at each of its points.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Number of faults that occurred.
    pub faults: u32,
    /// Number of faults that made the operation fail. With the rest of the faults, the operation
    /// succeeded.
    pub failures: u32,
}

impl Tally {
    /// Prints the numbers in a line that the runner shows even if the test passes.
    pub fn note(self, path: &str) {
        let Self { faults, failures } = self;
        note(format_args!(
            "{path}: {faults} faults, {failures} of which it failed of"
        ));
    }
}

fn directory(kind: &str) -> PathBuf {
    Path::new("/sys/kernel/debug").join(kind)
}

/// Parses a hexadecimal address with or without `0x`.
fn address(text: &str) -> Option<u64> {
    u64::from_str_radix(text.trim_start_matches("0x"), 16).ok()
}

/// Returns the address range of a module's code. The range ends at the next module, or after the
/// module's total size if that comes first.
#[track_caller]
fn text_of(module: &str) -> Range<u64> {
    let table = fs::read_to_string("/proc/modules").expect("reading /proc/modules");
    // The fields of a line are the module's name, its size, three that are not needed here, and the
    // address of its code.
    let modules = table.lines().filter_map(|line| {
        let mut fields = line.split_whitespace();
        let (name, size) = (fields.next()?, fields.next()?.parse::<u64>().ok()?);
        Some((name, size, address(fields.nth(3)?)?))
    });
    let all: Vec<_> = modules.collect();
    let &(_, size, start) = all
        .iter()
        .find(|(name, ..)| *name == module)
        .expect("the module");
    assert!(start != 0, "no addresses here");
    let next = all.iter().map(|&(_, _, at)| at).filter(|&at| at > start);
    start..next.min().unwrap_or(u64::MAX).min(start + size)
}

/// Returns the address range of the function `name` of the kernel or of a module. The range ends at
/// the next symbol.
#[track_caller]
fn function(name: &str) -> Range<u64> {
    let table = fs::read_to_string("/proc/kallsyms").expect("reading /proc/kallsyms");
    // The fields of a line are the symbol's address, its type and its name.
    let symbols = || {
        table.lines().filter_map(|line| {
            let mut fields = line.split_whitespace();
            Some((address(fields.next()?)?, fields.nth(1)?))
        })
    };
    let (start, _) = symbols().find(|&(_, it)| it == name).expect("a function");
    let behind = symbols().map(|(at, _)| at).filter(|&at| at > start);
    start..behind.min().expect("another function")
}
