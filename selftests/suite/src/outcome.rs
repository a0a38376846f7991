// SPDX-License-Identifier: GPL-2.0

//! The ways in which a test's process reports its outcome to the runner.
//!
//! A test is a function that returns or panics. A test that this machine cannot run panics with
//! [`Skipped`] (see [`skip`](crate::lab::run::report::skip)).

/// Exit status of a test that failed.
pub const FAILED: u8 = 1;

/// Exit status of a test that this machine cannot run. The last line of output gives the reason.
pub const SKIPPED: u8 = 77;

/// Panic payload of a test that this machine cannot run. The text gives the reason.
#[derive(Debug)]
pub struct Skipped(pub String);

/// Prefix of the output lines that the runner shows even if the test passes.
pub const NOTE: &str = "# ";
