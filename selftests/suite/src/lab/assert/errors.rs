// SPDX-License-Identifier: GPL-2.0

//! Assertions that a call fails with a certain error.

use std::fmt::Debug;
use std::io;

use rustix::io::Errno;

/// Asserts that a call failed with `errno`.
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

/// Asserts that a call failed with `errno`. `what` names the call in the panic message.
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
