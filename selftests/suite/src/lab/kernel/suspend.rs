// SPDX-License-Identifier: GPL-2.0

//! System suspend up to the level selected in `/sys/power/pm_test`.
//!
//! Meanwhile all tasks are frozen, including the test's other threads; only the calling thread is
//! not.

use std::io;
use std::path::Path;

use crate::lab::kernel::sysfs;
use crate::lab::run::report::skip;

const POWER: &str = "/sys/power";

/// The sleep states.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sleep {
    /// Suspend-to-idle.
    Idle,
    /// Suspend-to-RAM.
    Ram,
    /// Hibernation.
    Disk,
}

/// The depth of a test suspend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// Processes are frozen.
    Freezer,
    /// In addition, devices are suspended.
    Devices,
    /// In addition, the platform firmware is prepared.
    Platform,
    /// In addition, all CPUs but one are offline, and interrupts are disabled.
    Core,
}

/// A machine that can be suspended.
#[derive(Debug)]
pub struct Machine(());

impl Machine {
    /// Skips the test if the machine cannot be suspended or would not survive a suspend.
    pub fn new() -> Self {
        // The command line says so on a test machine whose shared directories survive a suspend.
        let parameters = std::fs::read_to_string("/proc/cmdline").unwrap_or_default();
        if !parameters
            .split_whitespace()
            .any(|word| word == "suspendable")
        {
            skip("not a machine for suspending (qemu-test/run --suspend)");
        }
        if !Path::new(POWER).join("pm_test").exists() {
            skip("this kernel has no /sys/power/pm_test");
        }
        Self(())
    }

    /// Returns whether the machine supports a sleep state and depth.
    pub fn can(&self, sleep: Sleep, depth: Depth) -> bool {
        let has = |file: &str, word: &str| {
            let text = std::fs::read_to_string(Path::new(POWER).join(file)).unwrap_or_default();
            let mut words = text.split_whitespace();
            words.any(|found| found.trim_matches(['[', ']']) == word)
        };
        match (sleep, depth) {
            (Sleep::Idle, _) => has("state", "freeze"),
            // Without firmware support, this is suspend-to-idle, which does not take CPUs offline.
            (Sleep::Ram, Depth::Core) => has("mem_sleep", "deep"),
            (Sleep::Ram, _) => has("state", "mem"),
            (Sleep::Disk, _) => has("state", "disk"),
        }
    }

    /// Suspends the machine, which resumes after a second. If the machine would not survive the
    /// given depth, only tasks are frozen.
    ///
    /// # Errors
    ///
    /// `EBUSY` if a task cannot be frozen within 20 seconds.
    pub fn suspend(&self, sleep: Sleep, depth: Depth) -> io::Result<()> {
        // Without the pcieport driver, nothing restores the ports to which the devices of the
        // shared directories are attached.
        let depth = match Path::new("/sys/bus/pci_express/drivers/pcieport").exists() {
            true => depth,
            false => Depth::Freezer,
        };
        let (state, timer) = match sleep {
            Sleep::Idle => ("freeze", "suspend"),
            Sleep::Ram => ("mem", "suspend"),
            Sleep::Disk => ("disk", "hibernate"),
        };
        let depth = match depth {
            Depth::Freezer => "freezer",
            Depth::Devices => "devices",
            Depth::Platform => "platform",
            Depth::Core => "core",
        };
        let delay = format!("/sys/module/{timer}/parameters/pm_test_delay");
        sysfs::write(Path::new(&delay), "1")?;
        let test = Path::new(POWER).join("pm_test");
        sysfs::write(&test, depth)?;
        let result = sysfs::write(&Path::new(POWER).join("state"), state);
        sysfs::write(&test, "none")?;
        result
    }
}
