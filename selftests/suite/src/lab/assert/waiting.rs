// SPDX-License-Identifier: GPL-2.0

//! Calls that may block.

use std::io;
use std::sync::mpsc::{self, Receiver};

use crate::lab::assert::timing::{received, soon, stays};

/// A call in progress in another thread.
#[derive(Debug)]
pub struct Waiting<T> {
    returned: Receiver<io::Result<T>>,
    /// ID of the thread that makes the call.
    tid: i32,
}

impl<T: Send + 'static> Waiting<T> {
    /// Calls `call` in a new thread. Returns once the thread is running.
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

    /// Waits until the call blocks in a sleep.
    #[track_caller]
    pub fn falls_asleep(&self) {
        let path = format!("/proc/self/task/{}/status", self.tid);
        soon("it sleeps", || {
            // The kernel reports a killable sleep as "disk sleep".
            std::fs::read_to_string(&path).is_ok_and(|status| {
                ["(sleeping)", "(disk sleep)"]
                    .iter()
                    .any(|s| status.contains(s))
            })
        });
    }

    /// Asserts that the call sleeps and does not return within 150 milliseconds.
    #[track_caller]
    pub fn assert_waits(&self) {
        self.falls_asleep();
        stays("it waits", || self.returned.try_recv().is_err());
    }

    /// Waits for the call to return. Returns the call's result.
    #[track_caller]
    pub fn result(&self) -> io::Result<T> {
        received("it returns", &self.returned)
    }
}
