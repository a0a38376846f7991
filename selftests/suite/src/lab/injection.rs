// SPDX-License-Identifier: GPL-2.0

//! Allocations that fail, one at a time: the kernel's fault injection.
//!
//! The kernel counts what a thread asks it for, and has the nth fail (`/proc/thread-self/fail-nth`,
//! Documentation/fault-injection). Something is done with the first failing, then with the second,
//! and so on until there is none left to fail.

use std::cell::Cell;
use std::fmt::Debug;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::marker::PhantomData;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::lab::{driver, note, skip, sysfs};
use crate::modules;

/// The kinds of fault, by their folders in debugfs.
const SLAB: &str = "failslab";
const PAGES: &str = "fail_page_alloc";
const COPIES: &str = "fail_usercopy";

/// What no path has as many of.
const MOST: u32 = 2000;

/// A range of addresses in which there is no code: what must be below it never fails.
const NOWHERE: Range<u64> = 0..1;
/// All addresses: the kernel looks at no stack then.
const EVERYWHERE: Range<u64> = 0..u64::MAX;

/// A function of the kernel that a driver cannot do without, and whose first allocation must not
/// fail: the second time that all caches for addresses are made, it frees one of those that are
/// gone (7.2, `drivers/iommu/iova.c`).
const FREED_TWICE: &str = "iova_cache_get";

/// What code a fault must be below, on the stack.
#[derive(Clone, Copy, Debug)]
pub enum Below {
    /// Any.
    Anything,
    /// The driver's.
    Driver,
    /// What calls a module's own function when it is loaded, but for [`FREED_TWICE`].
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

/// Faults for this thread, as long as this is there.
#[derive(Debug)]
pub struct Injection {
    nth: File,
    /// The settings as they were.
    before: Vec<(PathBuf, String)>,
    /// The file is of the thread that opened it.
    _thread: PhantomData<*const ()>,
}

impl Injection {
    /// Has allocations of memory fail, those that may wait included. Ends the test where the kernel
    /// cannot.
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

    /// Has copies from and to the memory of processes fail. Ends the test where the kernel cannot.
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
        // Without it one kind of fault cannot be told from another.
        if ![SLAB, PAGES, COPIES]
            .iter()
            .all(|kind| folder(kind).join("require-start").exists())
        {
            skip("no faults of one kind here");
        }
        Self {
            nth,
            before: Vec::new(),
            _thread: PhantomData,
        }
    }

    /// Changes a setting.
    #[track_caller]
    fn set(&mut self, kind: &str, name: &str, value: &str) {
        let path = folder(kind).join(name);
        let before = sysfs::read(&path).expect("reading a setting");
        sysfs::write(&path, value).expect("changing a setting");
        self.before.push((path, before));
    }

    /// Has faults of a kind only below these addresses.
    #[track_caller]
    fn limit(&mut self, kind: &str, addresses: &Range<u64>) {
        // What fails is told in the log otherwise.
        self.set(kind, "verbose", "0");
        self.range(kind, "require", addresses);
    }

    /// Says where a kind of fault comes, or does not come.
    #[track_caller]
    fn range(&mut self, kind: &str, what: &str, addresses: &Range<u64>) {
        let text = |address: u64| format!("{address:#x}");
        self.set(kind, &format!("{what}-start"), &text(addresses.start));
        self.set(kind, &format!("{what}-end"), &text(addresses.end));
    }

    /// Has `trial` do something with the first fault, then with the second, and so on, until there
    /// was none. `path` is what is done.
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

    /// Does something with each fault in turn. What fails must do so with one of `errors`, and
    /// succeed when it is done again. `undo` takes away what was done.
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

    /// Has the nth fault come, from now on.
    fn arm(&self, n: u32) {
        self.nth
            .write_all_at(n.to_string().as_bytes(), 0)
            .expect("asking for a fault");
    }

    /// Has none come any more, and says whether it has.
    fn disarm(&self) -> bool {
        let mut text = [0; 16];
        let came = match self.nth.read_at(&mut text, 0) {
            Ok(n) => text[..n].trim_ascii() == b"0",
            // This is where it came.
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

/// One fault.
#[derive(Debug)]
pub struct Fault<'a> {
    injection: &'a Injection,
    path: &'a str,
    n: u32,
    came: Cell<Option<bool>>,
    failed: Cell<bool>,
}

impl Fault<'_> {
    /// Which one it is: they are counted from 1.
    pub fn number(&self) -> u32 {
        self.n
    }

    /// Does something that the fault may hit. What fails must do so because of it, and with one of
    /// `errors`: that is `None`.
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

    /// Does something that can only succeed: the fault is over.
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

/// What came of the faults of a path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// How many there were.
    pub faults: u32,
    /// How many calls failed of them: the others did without.
    pub failures: u32,
}

impl Tally {
    /// Has the runner show it.
    pub fn note(self, path: &str) {
        let Self { faults, failures } = self;
        note(format_args!(
            "{path}: {faults} faults, {failures} of which it failed of"
        ));
    }
}

fn folder(kind: &str) -> PathBuf {
    Path::new("/sys/kernel/debug").join(kind)
}

/// Parses an address with or without `0x`.
fn address(text: &str) -> Option<u64> {
    u64::from_str_radix(text.trim_start_matches("0x"), 16).ok()
}

/// Where a module's code is: from its beginning to that of the next one, or to where it ends even
/// if all of the module is code.
#[track_caller]
fn text_of(module: &str) -> Range<u64> {
    let table = fs::read_to_string("/proc/modules").expect("reading /proc/modules");
    // Its name, its size, three more fields, the address of its code.
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

/// Where a function of the kernel or of a module is: up to the next one.
#[track_caller]
fn function(name: &str) -> Range<u64> {
    let table = fs::read_to_string("/proc/kallsyms").expect("reading /proc/kallsyms");
    // An address, a letter, a name.
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
