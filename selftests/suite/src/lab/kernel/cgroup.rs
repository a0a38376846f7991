// SPDX-License-Identifier: GPL-2.0

//! Control groups, to which the kernel charges the memory of processes.

use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use crate::lab::kernel::sysfs;
use crate::lab::run::report::skip;

const ROOT: &str = "/sys/fs/cgroup";

/// A control group with a memory controller, removed on drop.
#[derive(Debug)]
pub struct Cgroup(PathBuf);

impl Cgroup {
    /// Creates a control group. Skips the test if there is no memory controller.
    #[track_caller]
    pub fn new() -> Self {
        let control = Path::new(ROOT).join("cgroup.subtree_control");
        if sysfs::write(&control, "+memory").is_err() {
            skip("no memory controller here");
        }
        let path = Path::new(ROOT).join(crate::lab::device::test_device::unique_name());
        std::fs::create_dir(&path).expect("making a control group");
        Self(path)
    }

    /// Starts a process in the group.
    #[track_caller]
    pub fn spawn(&self, command: &mut Command) -> Child {
        self.enter();
        let child = command.spawn();
        self.leave();
        child.expect("starting a process")
    }

    /// Moves this process into the group.
    #[track_caller]
    pub fn enter(&self) {
        sysfs::write(&self.0.join("cgroup.procs"), "0").expect("entering a control group");
    }

    /// Moves this process back to the root group.
    #[track_caller]
    pub fn leave(&self) {
        sysfs::write(&Path::new(ROOT).join("cgroup.procs"), "0").expect("leaving a control group");
    }

    /// Returns the kernel memory charged to the group, in bytes.
    #[track_caller]
    pub fn charged(&self) -> u64 {
        let stat = std::fs::read_to_string(self.0.join("memory.stat")).expect("memory.stat");
        let field = |name: &str| {
            stat.lines()
                .find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
                .unwrap_or(0)
        };
        // The field `kernel` counts all kernel memory, including memory from vmalloc.
        field("kernel ")
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}
