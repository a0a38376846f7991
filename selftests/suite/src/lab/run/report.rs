// SPDX-License-Identifier: GPL-2.0

//! What a test reports to the runner besides success or failure.

use crate::outcome::{Skipped, NOTE};

/// Skips the test, which cannot be run here.
pub fn skip(reason: impl Into<String>) -> ! {
    std::panic::panic_any(Skipped(reason.into()))
}

/// Skips the test if a program that it needs is missing. With `version` as its argument, the
/// program must do nothing else.
pub fn need(program: &str, version: &str) {
    if std::process::Command::new(program)
        .arg(version)
        .output()
        .is_err()
    {
        skip(format!("no {program} here"));
    }
}

/// Makes the runner show a line even if the test passes.
pub fn note(text: impl std::fmt::Display) {
    println!("{}{text}", NOTE);
}
