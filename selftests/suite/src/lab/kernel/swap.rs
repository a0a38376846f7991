// SPDX-License-Identifier: GPL-2.0

//! Swap space on a block device.

use std::ffi::CString;
use std::io;

use crate::lab::guest::qsd::tool;

/// A block device to which the kernel swaps, until this is dropped.
#[derive(Debug)]
pub struct Swap(CString);

impl Swap {
    /// Makes the kernel swap to the block device called `disk`.
    #[track_caller]
    pub fn on(disk: &str) -> Self {
        let node = format!("/dev/{disk}");
        tool("mkswap", &[&node]);
        let path = CString::new(node).expect("a path");
        // SAFETY: The path is a string that ends in NUL.
        let result = unsafe { libc::swapon(path.as_ptr(), 0) };
        assert_eq!(result, 0, "swapon: {}", io::Error::last_os_error());
        Self(path)
    }

    /// Reads all that was swapped, and ends swapping. There must be memory for it.
    #[track_caller]
    pub fn off(self) {
        let result = off(&self.0);
        std::mem::forget(self);
        result.expect("swapoff");
    }
}

fn off(path: &CString) -> io::Result<()> {
    // SAFETY: The path is a string that ends in NUL.
    match unsafe { libc::swapoff(path.as_ptr()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

impl Drop for Swap {
    fn drop(&mut self) {
        let _ = off(&self.0);
    }
}

/// Returns how many pages the kernel has swapped in and out since the machine was started.
pub fn counters() -> (u64, u64) {
    let text = std::fs::read_to_string("/proc/vmstat").unwrap_or_default();
    let field = |name: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
            .unwrap_or(0)
    };
    (field("pswpin "), field("pswpout "))
}
