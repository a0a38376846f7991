// SPDX-License-Identifier: GPL-2.0

//! Assertions that a condition holds within a time, or for a time.

use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};

use crate::lab::assert::limit::Limit;

/// Time limit of conditions that should hold immediately. If one takes longer, something hangs.
const AT_ONCE: Duration = Duration::from_secs(10);

/// Waits until `condition` holds, which should be the case immediately. Panics if the condition
/// does not hold within `AT_ONCE`, which is extended on a slow machine.
#[track_caller]
pub fn soon(what: &str, condition: impl FnMut() -> bool) {
    within(AT_ONCE, what, condition);
}

/// Waits until `condition` holds. Panics if `condition` does not hold within `limit`, which
/// [`Limit`] extends on a slow machine.
///
/// Meant for conditions that by nature take long to become true, for example that a guest has
/// booted.
#[track_caller]
pub fn within(limit: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    let mut running = Limit::new(limit);
    while !condition() {
        assert!(!running.is_over(), "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Waits for a value from another thread. Returns the value.
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

/// Asserts that a condition holds throughout 150 milliseconds, which is long for a computer.
#[track_caller]
pub fn stays(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_millis(150);
    while Instant::now() < deadline {
        assert!(condition(), "not for long: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
