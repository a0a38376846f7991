// SPDX-License-Identifier: GPL-2.0

//! Speed of the kernel's RCU grace periods.

use std::path::Path;

use crate::lab::kernel::sysfs;

const SWITCH: &str = "/sys/kernel/rcu_expedited";

/// Makes the kernel expedite RCU grace periods until dropped. That disturbs other CPUs, but
/// operations with many grace periods take a tenth of the time.
#[derive(Debug)]
pub struct Expedited(());

impl Expedited {
    /// Starts to expedite grace periods.
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
