// SPDX-License-Identifier: GPL-2.0

//! What is expected of calls, and when.

use std::fmt::Debug;
use std::io;
use std::time::{Duration, Instant};

use rustix::io::Errno;

/// Asserts that a call failed with this error and no other.
#[track_caller]
pub fn fails<T: Debug>(result: io::Result<T>, errno: Errno) {
    match result {
        Ok(value) => panic!("succeeded with {value:?} rather than fail with {errno:?}"),
        Err(error) => {
            let found = Errno::from_io_error(&error);
            assert_eq!(found, Some(errno), "failed with {error}");
        }
    }
}

/// Asserts that a call failed with this error and no other; `what` says which call.
#[track_caller]
pub fn fails_at<T: Debug>(result: io::Result<T>, errno: Errno, what: impl Debug) {
    match result {
        Ok(value) => panic!("{what:?} succeeded with {value:?} rather than fail with {errno:?}"),
        Err(error) => {
            let found = Errno::from_io_error(&error);
            assert_eq!(found, Some(errno), "{what:?} failed with {error}");
        }
    }
}

/// Waits until something is so that should be so at once, on a machine that may be slow.
#[track_caller]
pub fn soon(what: &str, condition: impl FnMut() -> bool) {
    within(Duration::from_secs(10), what, condition);
}

/// Waits until something is so.
#[track_caller]
pub fn within(limit: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Asserts that something stays so, for a while that is long for a computer.
#[track_caller]
pub fn stays(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_millis(150);
    while Instant::now() < deadline {
        assert!(condition(), "not for long: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
