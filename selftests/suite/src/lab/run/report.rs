// SPDX-License-Identifier: GPL-2.0

//! Messages from a test to the runner, apart from success and failure.

use crate::outcome::{Skipped, NOTE};

/// Ends the test and reports that this machine cannot run it. `reason` says why.
pub fn skip(reason: impl Into<String>) -> ! {
    std::panic::panic_any(Skipped(reason.into()))
}

/// Skips the test if `program` cannot be started. The argument `version` must make the program
/// print its version and exit.
pub fn need(program: &str, version: &str) {
    if std::process::Command::new(program)
        .arg(version)
        .output()
        .is_err()
    {
        skip(format!("no {program} here"));
    }
}

/// Prints a line that the runner shows even if the test passes.
pub fn note(text: impl std::fmt::Display) {
    println!("{}{text}", NOTE);
}
