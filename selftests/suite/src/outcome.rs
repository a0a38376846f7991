// SPDX-License-Identifier: GPL-2.0

//! How a test's process reports its outcome to the runner.
//!
//! A test is a function that returns or panics. A test that cannot be run here panics with
//! [`Skipped`] (see [`skip`](crate::lab::run::report::skip)).

/// Exit status of a test that failed.
pub const FAILED: u8 = 1;

/// Exit status of a test that cannot be run here; the last line of output gives the reason.
pub const SKIPPED: u8 = 77;

/// Panic payload of a test that cannot be run here, with the reason.
#[derive(Debug)]
pub struct Skipped(pub String);

/// Prefix of output lines that are shown even if the test passes.
pub const NOTE: &str = "# ";
