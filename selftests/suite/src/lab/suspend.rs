// SPDX-License-Identifier: GPL-2.0

//! Suspending the machine, as far as `/sys/power/pm_test` says, and waking it up again.
//!
//! All processes are frozen meanwhile, threads of the test included, but for the thread that asks.

use std::io;
use std::path::Path;

use crate::lab::skip;
use crate::lab::sysfs;

const POWER: &str = "/sys/power";

/// What the machine goes into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sleep {
    /// Suspend-to-idle.
    Idle,
    /// Suspend-to-RAM.
    Ram,
    /// Hibernation.
    Disk,
}

/// How far it goes before it turns back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// Processes are frozen.
    Freezer,
    /// Devices are suspended as well.
    Devices,
    /// Platform firmware is prepared as well.
    Platform,
    /// All but one CPU are off, and interrupts are.
    Core,
}

/// A machine that can be suspended.
#[derive(Debug)]
pub struct Machine(());

impl Machine {
    /// Ends the test if the machine cannot be suspended, or would not survive it.
    pub fn new() -> Self {
        // The test machine says so: its folders come through devices that survive it.
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

    /// Whether the machine can do that.
    pub fn can(&self, sleep: Sleep, depth: Depth) -> bool {
        let has = |file: &str, word: &str| {
            let text = std::fs::read_to_string(Path::new(POWER).join(file)).unwrap_or_default();
            let mut words = text.split_whitespace();
            words.any(|found| found.trim_matches(['[', ']']) == word)
        };
        match (sleep, depth) {
            (Sleep::Idle, _) => has("state", "freeze"),
            // Where the firmware cannot, it is suspend-to-idle, which does not switch CPUs off.
            (Sleep::Ram, Depth::Core) => has("mem_sleep", "deep"),
            (Sleep::Ram, _) => has("state", "mem"),
            (Sleep::Disk, _) => has("state", "disk"),
        }
    }

    /// Suspends the machine, which wakes up a second later, or no deeper than to frozen tasks where it
    /// would not survive that. Errors: `EBUSY` if a task cannot be frozen, after 20 seconds.
    pub fn suspend(&self, sleep: Sleep, depth: Depth) -> io::Result<()> {
        // Without this driver, nobody sets the ports up again that its folders are behind.
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
