// SPDX-License-Identifier: GPL-2.0

//! The machine's CPUs.

use std::path::Path;

use crate::lab::kernel::sysfs;
use crate::lab::run::report::skip;

/// Restricts the calling thread to the CPU `number`, if that CPU exists.
#[track_caller]
pub fn run_on(number: usize) {
    let mut cpus = rustix::thread::CpuSet::new();
    cpus.set(number);
    // This fails if the CPU does not exist, which is harmless.
    let _ = rustix::thread::sched_setaffinity(None, &cpus);
}

/// Returns the numbers of the CPUs that are online.
#[track_caller]
pub fn online() -> Vec<usize> {
    let text = sysfs::read(Path::new("/sys/devices/system/cpu/online")).expect("the CPUs");
    let number = |text: &str| text.parse::<usize>().expect("a number");
    text.split(',')
        .flat_map(|range| match range.split_once('-') {
            Some((first, last)) => number(first)..=number(last),
            None => number(range)..=number(range),
        })
        .collect()
}

/// CPU 1, which is offline until this value is dropped.
#[derive(Debug)]
pub struct OfflineCpu(());

impl OfflineCpu {
    const ONLINE: &str = "/sys/devices/system/cpu/cpu1/online";

    /// Takes CPU 1 offline. Skips the test if that CPU does not exist or cannot be taken offline.
    #[track_caller]
    pub fn new() -> Self {
        let path = Path::new(Self::ONLINE);
        if !path.exists() {
            skip("there is no CPU that can be taken offline");
        }
        sysfs::write(path, "0").expect("taking CPU 1 offline");
        Self(())
    }
}

impl Drop for OfflineCpu {
    fn drop(&mut self) {
        let _ = sysfs::write(Path::new(Self::ONLINE), "1");
    }
}
