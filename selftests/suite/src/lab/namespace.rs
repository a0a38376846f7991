// SPDX-License-Identifier: GPL-2.0

//! Network namespaces: other machines, as far as the network is concerned.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;
use std::thread::JoinHandle;

use rustix::thread::{move_into_link_name_space, LinkNameSpaceType};

use crate::lab::device::unique_name;
use crate::modules::tool;

/// A network namespace, which goes when this is dropped. An interface that was not made there
/// goes back to where it came from.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes one.
    #[track_caller]
    pub fn new() -> Self {
        let name = unique_name();
        ip(&format!("netns add {name}"));
        Self { name }
    }

    /// Its name, for `ip`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `ip` in there.
    #[track_caller]
    pub fn ip(&self, arguments: &str) {
        ip(&format!("-n {} {arguments}", self.name));
    }

    /// A command to be run in there.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]);
        command
    }

    /// Does something in a thread in there.
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

/// Runs `ip` with these words.
#[track_caller]
pub fn ip(arguments: &str) {
    let words: Vec<_> = arguments.split_whitespace().collect();
    tool("ip", &words).expect("ip");
}
