// SPDX-License-Identifier: GPL-2.0

//! Calls that may wait.

use std::io;
use std::sync::mpsc::{self, Receiver};

use crate::lab::expect::{received, soon, stays};

/// A call in a thread.
#[derive(Debug)]
pub struct Waiting<T> {
    returned: Receiver<io::Result<T>>,
    /// The thread's id.
    tid: i32,
}

impl<T: Send + 'static> Waiting<T> {
    /// Calls a function in a thread, which has begun when this returns.
    #[track_caller]
    pub fn new(call: impl FnOnce() -> io::Result<T> + Send + 'static) -> Self {
        let (sender, returned) = mpsc::channel();
        let (begin, begun) = mpsc::channel();
        std::thread::spawn(move || {
            let _ = begin.send(rustix::thread::gettid().as_raw_nonzero().get());
            let _ = sender.send(call());
        });
        let tid = begun.recv().expect("a thread");
        Self { returned, tid }
    }

    /// Waits until it sleeps.
    #[track_caller]
    pub fn falls_asleep(&self) {
        let path = format!("/proc/self/task/{}/status", self.tid);
        soon("it sleeps", || {
            // One that only a signal that kills it wakes is at the disk, by name.
            std::fs::read_to_string(&path).is_ok_and(|status| {
                ["(sleeping)", "(disk sleep)"]
                    .iter()
                    .any(|s| status.contains(s))
            })
        });
    }

    /// Asserts that it sleeps, and has not returned after a while.
    #[track_caller]
    pub fn assert_waits(&self) {
        self.falls_asleep();
        stays("it waits", || self.returned.try_recv().is_err());
    }

    /// Waits until it returns, and returns what it returned.
    #[track_caller]
    pub fn result(&self) -> io::Result<T> {
        received("it returns", &self.returned)
    }
}
