// SPDX-License-Identifier: GPL-2.0

//! System suspend up to the level selected in `/sys/power/pm_test`.
//!
//! During the suspend, the kernel freezes all tasks except the calling thread. So it also freezes
//! the test's other threads.

use std::io;
use std::path::Path;

use crate::lab::kernel::sysfs;
use crate::lab::run::report::skip;

const POWER: &str = "/sys/power";

/// The sleep states of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sleep {
    /// Suspend-to-idle.
    Idle,
    /// Suspend-to-RAM.
    Ram,
    /// Hibernation.
    Disk,
}

/// The depth of a suspend, which is a value of `/sys/power/pm_test`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// The kernel freezes the processes.
    Freezer,
    /// The kernel freezes the processes and suspends the devices.
    Devices,
    /// The kernel does the same as for `Devices`, and prepares the platform firmware.
    Platform,
    /// The kernel does the same as for `Platform`, takes all CPUs but one offline, and disables
    /// interrupts.
    Core,
}

/// A test machine that survives a suspend.
#[derive(Debug)]
pub struct Machine(());

impl Machine {
    /// Skips the test if the machine cannot be suspended or would not survive a suspend. Otherwise,
    /// returns the machine.
    pub fn new() -> Self {
        // A test machine whose shared directories survive a suspend has the word `suspendable` on
        // its kernel command line.
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

    /// Returns whether the machine supports these arguments of [`suspend`](Self::suspend).
    pub fn can(&self, sleep: Sleep, depth: Depth) -> bool {
        let has = |file: &str, word: &str| {
            let text = std::fs::read_to_string(Path::new(POWER).join(file)).unwrap_or_default();
            let mut words = text.split_whitespace();
            words.any(|found| found.trim_matches(['[', ']']) == word)
        };
        match (sleep, depth) {
            (Sleep::Idle, _) => has("state", "freeze"),
            // Without firmware support for suspend-to-RAM, writing `mem` to `/sys/power/state`
            // begins a suspend-to-idle, which does not take CPUs offline.
            (Sleep::Ram, Depth::Core) => has("mem_sleep", "deep"),
            (Sleep::Ram, _) => has("state", "mem"),
            (Sleep::Disk, _) => has("state", "disk"),
        }
    }

    /// Begins to put the machine into the sleep state `sleep`, but goes only as far as `depth`. The
    /// machine resumes after one second. If the machine would not survive `depth`, the kernel only
    /// freezes tasks.
    ///
    /// # Errors
    ///
    /// `EBUSY` if a task cannot be frozen within 20 seconds.
    pub fn suspend(&self, sleep: Sleep, depth: Depth) -> io::Result<()> {
        // The devices of the shared directories are attached to PCIe ports. Without the pcieport
        // driver, nothing restores the ports after a suspend.
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
