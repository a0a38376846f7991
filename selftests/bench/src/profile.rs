// SPDX-License-Identifier: GPL-2.0

//! Marks in the instruction stream, between which QEMU counts the guest's instructions by function
//! (`qemu-test/run --profile`). Without that option, the marks have no effect.

use std::arch::asm;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::OnceLock;

use crate::options::Patterns;

/// The state of a profile.
#[derive(Debug)]
struct Profile {
    /// Directory in which the profiler finds one file of symbols for each window.
    directory: PathBuf,
    /// The patterns for the names of the rows to profile.
    patterns: Patterns,
    /// Number of the open *window*. The profiler counts separately for each window. Each driver or
    /// daemon is measured once and has its own window. The windows are numbered from 1.
    window: AtomicUsize,
    /// Number of operations that the profiled rows have done in the window number `window`.
    times: AtomicUsize,
}

static PROFILE: OnceLock<Profile> = OnceLock::new();

/// Starts a profile of the rows that match `patterns`. The profiler finds one file of symbols for
/// each window in `directory`.
pub fn start(directory: PathBuf, patterns: Patterns) {
    let profile = Profile {
        directory,
        patterns,
        window: AtomicUsize::new(0),
        times: AtomicUsize::new(0),
    };
    PROFILE.set(profile).expect("one profile");
}

/// Selects the profiler's next window, for a driver or a daemon.
pub fn next() {
    if let Some(profile) = PROFILE.get() {
        profile.window.fetch_add(1, SeqCst);
        profile.times.store(0, SeqCst);
    }
}

/// Writes a file about the window for the profiler. The file has the window's title, the number of
/// operations in the window, and the kernel's symbols. The driver must still be loaded.
pub fn tell(title: &str) {
    let Some(profile) = PROFILE.get() else {
        return;
    };
    let symbols = std::fs::read_to_string("/proc/kallsyms").expect("the kernel's functions");
    let times = profile.times.load(SeqCst);
    let file = format!("symbols.{}", profile.window.load(SeqCst));
    std::fs::write(
        profile.directory.join(file),
        format!("{title}\n{times}\n{symbols}"),
    )
    .expect("telling the machine");
}

/// Returns the profile if it includes the row called `row`.
fn of_row(row: &str) -> Option<&'static Profile> {
    PROFILE.get().filter(|profile| profile.patterns.fit(row))
}

/// Starts counting instructions for a row. The instructions of all processes count.
pub fn begin(row: &str) {
    if let Some(profile) = of_row(row) {
        match profile.window.load(SeqCst) {
            1 => mark::<1>(),
            2 => mark::<2>(),
            3 => mark::<3>(),
            4 => mark::<4>(),
            5 => mark::<5>(),
            6 => mark::<6>(),
            window => panic!("window {window}"),
        }
    }
}

/// Stops counting instructions for a row whose operation was done `times` times.
pub fn end(row: &str, times: usize) {
    mark::<0>();
    if let Some(profile) = of_row(row) {
        profile.times.fetch_add(times, SeqCst);
    }
}

/// Counts the instructions of `work`, which does a row's operation `times` times.
pub fn watch<T>(row: &str, times: usize, work: impl FnOnce() -> T) -> T {
    begin(row);
    let result = work();
    end(row, times);
    result
}

/// Makes the profiler (`qemu-test/profiler.rs`) count for the window number `WINDOW`, or count no
/// more if `WINDOW` is 0.
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
