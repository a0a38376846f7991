// SPDX-License-Identifier: GPL-2.0

//! Marks that tell the machine which instructions to count, by function, if the machine counts any
//! (`qemu-test/run --profile`).

use std::arch::asm;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::OnceLock;

use vduse_selftests::differences::Driver;

use crate::drivers;
use crate::options::Patterns;

/// The state of a profile.
#[derive(Debug)]
struct Profile {
    /// The directory where the machine looks for what it needs.
    directory: PathBuf,
    /// The rows that are profiled.
    patterns: Patterns,
    /// The *window* of the driver that is loaded, from 1 on; each driver is loaded once.
    window: AtomicUsize,
    /// How often the rows' operations were done in this window.
    times: AtomicUsize,
}

static PROFILE: OnceLock<Profile> = OnceLock::new();

/// Makes the machine count what these rows do. The machine looks for what it needs in `directory`.
pub fn start(directory: PathBuf, patterns: Patterns) {
    let profile = Profile {
        directory,
        patterns,
        window: AtomicUsize::new(0),
        times: AtomicUsize::new(0),
    };
    PROFILE.set(profile).expect("one profile");
}

/// Selects the window of a driver that was just loaded: instructions count for this driver.
pub fn next_driver() {
    if let Some(profile) = PROFILE.get() {
        profile.window.fetch_add(1, SeqCst);
        profile.times.store(0, SeqCst);
    }
}

/// Tells the machine about what it has counted for a driver, which must still be loaded.
pub fn tell(driver: Driver) {
    let Some(profile) = PROFILE.get() else {
        return;
    };
    let symbols = std::fs::read_to_string("/proc/kallsyms").expect("the kernel's functions");
    let title = drivers::title(driver);
    let times = profile.times.load(SeqCst);
    let file = format!("symbols.{}", profile.window.load(SeqCst));
    std::fs::write(
        profile.directory.join(file),
        format!("{title}\n{times}\n{symbols}"),
    )
    .expect("telling the machine");
}

/// Returns the profile, if a row is profiled.
fn of_row(row: &str) -> Option<&'static Profile> {
    PROFILE.get().filter(|profile| profile.patterns.fit(row))
}

/// Counts instructions for a row from now on, those of all processes.
pub fn begin(row: &str) {
    if let Some(profile) = of_row(row) {
        match profile.window.load(SeqCst) {
            1 => mark::<1>(),
            2 => mark::<2>(),
            window => panic!("window {window}"),
        }
    }
}

/// Ends the counting for a row, whose operation was done `times` times.
pub fn end(row: &str, times: usize) {
    mark::<0>();
    if let Some(profile) = of_row(row) {
        profile.times.fetch_add(times, SeqCst);
    }
}

/// Runs a row's `work`, which does an operation `times` times, and counts the instructions.
pub fn watch<T>(row: &str, times: usize, work: impl FnOnce() -> T) -> T {
    begin(row);
    let result = work();
    end(row, times);
    result
}

/// Opens a window, or closes the open one, for [`qemu-test/profiler.rs`].
fn mark<const WINDOW: u8>() {
    // SAFETY: The instruction does nothing: `nop dword [rax + rax + WINDOW + 0x56445500]`.
    unsafe {
        asm!(
            ".byte 0x0f, 0x1f, 0x84, 0x00, {window}, 0x55, 0x44, 0x56",
            window = const WINDOW,
            options(nostack, preserves_flags),
        );
    }
}
