// SPDX-License-Identifier: GPL-2.0

//! CPUs that come and go.

use std::path::Path;

use crate::lab::{skip, sysfs};

/// Has the calling thread run on this CPU only.
#[track_caller]
pub fn run_on(number: usize) {
    let mut cpus = rustix::thread::CpuSet::new();
    cpus.set(number);
    // A machine of one CPU has no other.
    let _ = rustix::thread::sched_setaffinity(None, &cpus);
}

/// CPU 1, which is offline until this is dropped.
#[derive(Debug)]
pub struct OfflineCpu(());

impl OfflineCpu {
    const ONLINE: &str = "/sys/devices/system/cpu/cpu1/online";

    /// Takes it offline, or ends the test where there is none.
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
