// SPDX-License-Identifier: GPL-2.0

//! How long the kernel takes to wait for its readers.

use std::path::Path;

use crate::lab::sysfs;

const SWITCH: &str = "/sys/kernel/rcu_expedited";

/// While this is there, the kernel waits for RCU grace periods the fast way, which disturbs other
/// CPUs: what waits for many does so in a tenth of the time.
#[derive(Debug)]
pub struct Expedited(());

impl Expedited {
    /// Begins.
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
