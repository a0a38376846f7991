// SPDX-License-Identifier: GPL-2.0

//! Marks of what the machine is to count the instructions of, by function, if it does
//! (`qemu-test/run --profile`).

use std::arch::asm;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::OnceLock;

use vduse_selftests::differences::Driver;

use crate::drivers;
use crate::options::Patterns;

/// What is watched.
#[derive(Debug)]
struct Profile {
    /// Where the machine looks for what it has to know.
    folder: PathBuf,
    /// Which rows.
    patterns: Patterns,
    /// The *window* of the driver that is loaded, from 1 on; each driver is loaded once.
    window: AtomicUsize,
    /// How often something was done in this window.
    times: AtomicUsize,
}

static PROFILE: OnceLock<Profile> = OnceLock::new();

/// Has the machine count what these rows do. It looks for what it has to know in `folder`.
pub fn start(folder: PathBuf, patterns: Patterns) {
    let profile = Profile {
        folder,
        patterns,
        window: AtomicUsize::new(0),
        times: AtomicUsize::new(0),
    };
    PROFILE.set(profile).expect("one profile");
}

/// A driver was loaded: what is counted counts for it.
pub fn next_driver() {
    if let Some(profile) = PROFILE.get() {
        profile.window.fetch_add(1, SeqCst);
        profile.times.store(0, SeqCst);
    }
}

/// Tells the machine what it has counted for a driver, which is still loaded.
pub fn tell(driver: Driver) {
    let Some(profile) = PROFILE.get() else {
        return;
    };
    let symbols = std::fs::read_to_string("/proc/kallsyms").expect("the kernel's functions");
    let title = drivers::title(driver);
    let times = profile.times.load(SeqCst);
    let file = format!("symbols.{}", profile.window.load(SeqCst));
    std::fs::write(
        profile.folder.join(file),
        format!("{title}\n{times}\n{symbols}"),
    )
    .expect("telling the machine");
}

/// The profile, if a row is watched.
fn of_row(row: &str) -> Option<&'static Profile> {
    PROFILE.get().filter(|profile| profile.patterns.fit(row))
}

/// Has instructions count for a row from now on, those of all processes.
pub fn begin(row: &str) {
    if let Some(profile) = of_row(row) {
        match profile.window.load(SeqCst) {
            1 => mark::<1>(),
            2 => mark::<2>(),
            window => panic!("window {window}"),
        }
    }
}

/// Ends that; something was done so many times.
pub fn end(row: &str, times: usize) {
    mark::<0>();
    if let Some(profile) = of_row(row) {
        profile.times.fetch_add(times, SeqCst);
    }
}

/// Does a row's `work`, which does something so many times, and has its instructions counted.
pub fn watch<T>(row: &str, times: usize, work: impl FnOnce() -> T) -> T {
    begin(row);
    let result = work();
    end(row, times);
    result
}

/// Opens a window, or closes the one that is open, for [`qemu-test/profiler.rs`].
fn mark<const WINDOW: u8>() {
    // SAFETY: It does nothing: `nop dword [rax + rax + WINDOW + 0x56445500]`.
    unsafe {
        asm!(
            ".byte 0x0f, 0x1f, 0x84, 0x00, {window}, 0x55, 0x44, 0x56",
            window = const WINDOW,
            options(nostack, preserves_flags),
        );
    }
}
