// SPDX-License-Identifier: GPL-2.0

//! Marks of what the machine is to count the instructions of, by function, if it does
//! (`qemu-test/run --profile`).

use std::arch::asm;
use std::path::PathBuf;
use std::sync::Mutex;

use vduse_selftests::differences::Driver;

use crate::drivers;

/// A window: what is counted for one driver.
#[derive(Debug)]
struct Window {
    driver: Driver,
    /// How often something was done in it.
    times: usize,
}

/// What the machine is told.
#[derive(Debug)]
struct Profile {
    /// Where it looks for that.
    folder: PathBuf,
    windows: Vec<Window>,
}

static PROFILE: Mutex<Option<Profile>> = Mutex::new(None);

/// Has the machine count from now on. It looks for what it has to know in `folder`.
pub fn start(folder: PathBuf) {
    let windows = Vec::new();
    *PROFILE.lock().expect("the profile") = Some(Profile { folder, windows });
}

/// Has what is counted count for a driver from now on, which is loaded once.
pub fn set_driver(driver: Driver) {
    if let Some(profile) = &mut *PROFILE.lock().expect("the profile") {
        profile.windows.push(Window { driver, times: 0 });
    }
}

/// Does `work`, which does something so many times, and has its instructions counted.
pub fn watch<T>(times: usize, work: impl FnOnce() -> T) -> T {
    let mut profile = PROFILE.lock().expect("the profile");
    let Some(Profile { folder, windows }) = &mut *profile else {
        drop(profile);
        return work();
    };
    match windows.len() {
        1 => mark::<1>(),
        2 => mark::<2>(),
        count => panic!("{count} windows"),
    }
    let result = work();
    mark::<0>();
    let number = windows.len();
    let window = windows.last_mut().expect("a window");
    window.times += times;
    let symbols = std::fs::read_to_string("/proc/kallsyms").expect("the kernel's functions");
    let text = format!(
        "{}\n{}\n{symbols}",
        drivers::title(window.driver),
        window.times
    );
    std::fs::write(folder.join(format!("symbols.{number}")), text).expect("telling the machine");
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
