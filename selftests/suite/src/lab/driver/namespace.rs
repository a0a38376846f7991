// SPDX-License-Identifier: GPL-2.0

//! Network namespaces, which act as separate machines on the network.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;
use std::thread::JoinHandle;

use rustix::thread::{move_into_link_name_space, LinkNameSpaceType};

use crate::lab::device::test_device::unique_name;
use crate::lab::kernel::modules::tool;

/// A network namespace, removed on drop. The kernel then returns a moved interface to its original
/// namespace.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Creates a network namespace.
    #[track_caller]
    pub fn new() -> Self {
        let name = unique_name();
        ip(&format!("netns add {name}"));
        Self { name }
    }

    /// Returns the namespace's name, as `ip` uses it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `ip` in the namespace. Panics if it fails.
    #[track_caller]
    pub fn ip(&self, arguments: &str) {
        ip(&format!("-n {} {arguments}", self.name));
    }

    /// Returns a command that runs in the namespace.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]);
        command
    }

    /// Calls `work` in a new thread, which is in the namespace.
    pub fn spawn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        let path = Path::new("/run/netns").join(&self.name);
        std::thread::spawn(move || {
            let file = File::open(path).expect("opening a network namespace");
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
                .expect("entering a network namespace");
            work()
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = tool("ip", &["netns", "delete", &self.name]);
    }
}

/// Runs `ip` with the arguments in `arguments`. Panics if it fails.
#[track_caller]
pub fn ip(arguments: &str) {
    let words: Vec<_> = arguments.split_whitespace().collect();
    tool("ip", &words).expect("ip");
}
