// SPDX-License-Identifier: GPL-2.0

//! Fault injection: allocations fail one at a time.
//!
//! The kernel counts the points in a thread at which a fault can be injected, and injects the nth
//! fault (`/proc/thread-self/fail-nth`, Documentation/fault-injection). An operation is performed
//! with the first fault, then with the second, and so on, until no fault is injected.

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

/// Kinds of fault, by the names of their debugfs directories.
const SLAB: &str = "failslab";
const PAGES: &str = "fail_page_alloc";
const COPIES: &str = "fail_usercopy";

/// Maximum number of faults on a path; no path has that many.
const MOST: u32 = 2000;

/// An address range without code. Faults limited to such a range never occur.
const NOWHERE: Range<u64> = 0..1;
/// All addresses. With this range, the kernel does not check the stack.
const EVERYWHERE: Range<u64> = 0..u64::MAX;

/// A kernel function that the driver needs and whose first allocation must not fail. When the
/// function creates its caches for the second time and that fails, it frees a cache that is gone
/// already (7.2, `drivers/iommu/iova.c`).
const FREED_TWICE: &str = "iova_cache_get";

/// The code that must be on the stack for a fault to occur.
#[derive(Clone, Copy, Debug)]
pub enum Below {
    /// Any code.
    Anything,
    /// The driver's code.
    Driver,
    /// The function that calls a module's init function, except below [`FREED_TWICE`].
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

/// Fault injection for this thread, enabled until dropped.
#[derive(Debug)]
pub struct Injection {
    nth: File,
    /// The previous settings.
    before: Vec<(PathBuf, String)>,
    /// Prevents a move to another thread, as the file belongs to the thread that opened it.
    _thread: PhantomData<*const ()>,
}

impl Injection {
    /// Injects faults in memory allocations, including those that may sleep. Skips the test if the
    /// kernel does not support that.
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

    /// Injects faults in copies from and to user memory. Skips the test if the kernel does not
    /// support that.
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
        // Without stack filters, faults cannot be limited to one kind.
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

    /// Changes a setting, and saves the previous one.
    #[track_caller]
    fn set(&mut self, kind: &str, name: &str, value: &str) {
        let path = directory(kind).join(name);
        let before = sysfs::read(&path).expect("reading a setting");
        sysfs::write(&path, value).expect("changing a setting");
        self.before.push((path, before));
    }

    /// Limits faults of a kind to these code addresses.
    #[track_caller]
    fn limit(&mut self, kind: &str, addresses: &Range<u64>) {
        // Otherwise each fault is logged.
        self.set(kind, "verbose", "0");
        self.range(kind, "require", addresses);
    }

    /// Sets the address range in which a kind of fault is required or rejected.
    #[track_caller]
    fn range(&mut self, kind: &str, what: &str, addresses: &Range<u64>) {
        let text = |address: u64| format!("{address:#x}");
        self.set(kind, &format!("{what}-start"), &text(addresses.start));
        self.set(kind, &format!("{what}-end"), &text(addresses.end));
    }

    /// Calls `trial` with the first fault, then with the second, and so on, until a fault does not
    /// occur. `path` names the operation.
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
    /// of `errors`, and a second attempt must succeed. `undo` reverts the operation.
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

    /// Requests that the nth fault from now on be injected.
    fn arm(&self, n: u32) {
        self.nth
            .write_all_at(n.to_string().as_bytes(), 0)
            .expect("asking for a fault");
    }

    /// Cancels the requested fault. Returns whether the fault had occurred.
    fn disarm(&self) -> bool {
        let mut text = [0; 16];
        let came = match self.nth.read_at(&mut text, 0) {
            Ok(n) => text[..n].trim_ascii() == b"0",
            // The fault occurred in this read.
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
        for (path, value) in self.before.drain(..).rev() {
            let _ = sysfs::write(&path, &value);
        }
    }
}

/// A requested fault.
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

    /// Performs an operation in which the fault may occur. Returns `None` if the operation fails,
    /// which it may only do because of the fault and with one of `errors`.
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

    /// Performs an operation that must succeed, as the fault is over.
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

/// Result of the faults on a path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Number of faults that occurred.
    pub faults: u32,
    /// Number of calls that failed because of a fault; the others succeeded in spite of it.
    pub failures: u32,
}

impl Tally {
    /// Makes the runner show the result.
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

/// Parses an address with or without `0x`.
fn address(text: &str) -> Option<u64> {
    u64::from_str_radix(text.trim_start_matches("0x"), 16).ok()
}

/// Returns the address range of a module's code: from its start to the start of the next module,
/// but at most the module's total size.
#[track_caller]
fn text_of(module: &str) -> Range<u64> {
    let table = fs::read_to_string("/proc/modules").expect("reading /proc/modules");
    // The name, the size, three other fields, the address of the code.
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

/// Returns the address range of a function of the kernel or of a module, up to the next symbol.
#[track_caller]
fn function(name: &str) -> Range<u64> {
    let table = fs::read_to_string("/proc/kallsyms").expect("reading /proc/kallsyms");
    // The address, the type, the name.
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
