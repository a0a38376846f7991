// SPDX-License-Identifier: GPL-2.0

//! The speed of the kernel's RCU grace periods.

use std::path::Path;

use crate::lab::kernel::sysfs;

const SWITCH: &str = "/sys/kernel/rcu_expedited";

/// A guard that makes the kernel expedite RCU grace periods until this value is dropped. Expedited
/// grace periods disturb other CPUs, but operations with many grace periods take a tenth of the
/// time.
#[derive(Debug)]
pub struct Expedited(());

impl Expedited {
    /// Makes the kernel expedite grace periods.
    pub fn new() -> Self {
        let _ = sysfs::write(Path::new(SWITCH), "1");
        Self(())
    }
}

impl Drop for Expedited {
    fn drop(&mut self) {
        let _ = sysfs::write(Path::new(SWITCH), "0");
    }
}
