// SPDX-License-Identifier: GPL-2.0

//! Assertions about when something happens.

use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};

use crate::lab::assert::limit::Limit;

/// Time limit for conditions that should hold immediately. A longer delay counts as a hang.
const AT_ONCE: Duration = Duration::from_secs(10);

/// Waits for a condition that should hold immediately, but may take longer on a slow machine.
#[track_caller]
pub fn soon(what: &str, condition: impl FnMut() -> bool) {
    within(AT_ONCE, what, condition);
}

/// Waits for a condition that takes long by nature, such as the boot of a guest. On a slow machine
/// the limit is extended ([`Limit`]).
#[track_caller]
pub fn within(limit: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    let mut running = Limit::new(limit);
    while !condition() {
        assert!(!running.is_over(), "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Waits for a value from another thread, and returns it.
#[track_caller]
pub fn received<T>(what: &str, receiver: &Receiver<T>) -> T {
    let mut found = None;
    soon(what, || {
        found = match receiver.try_recv() {
            Ok(value) => Some(value),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => panic!("never: {what}"),
        };
        found.is_some()
    });
    found.expect("received just now")
}

/// Asserts that a condition keeps holding for a while that is long for a computer.
#[track_caller]
pub fn stays(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_millis(150);
    while Instant::now() < deadline {
        assert!(condition(), "not for long: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
