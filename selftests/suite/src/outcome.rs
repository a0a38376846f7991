// SPDX-License-Identifier: GPL-2.0

//! How a test's process reports its outcome to the runner.
//!
//! A test is a function that returns or panics. A test that cannot be run here panics with
//! [`Skipped`] (see `lab::skip`).

use std::panic::{self, PanicHookInfo};
use std::process::ExitCode;

/// Exit status of a test that failed.
pub const FAILED: u8 = 1;

/// Exit status of a test that cannot be run here; the last line of output gives the reason.
pub const SKIPPED: u8 = 77;

/// Panic payload of a test that cannot be run here, with the reason.
#[derive(Debug)]
pub struct Skipped(pub String);

/// Runs a test in this process. Returns the exit status.
pub fn run_in_this_process(name: &str) -> ExitCode {
    let Some(test) = crate::tests::all().find(|test| test.name == name) else {
        eprintln!("{name}: no such test");
        return ExitCode::from(FAILED);
    };
    let report = panic::take_hook();
    panic::set_hook(Box::new(move |info: &PanicHookInfo<'_>| {
        if !info.payload().is::<Skipped>() {
            report(info);
        }
    }));
    match panic::catch_unwind(test.run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(payload) => match payload.downcast::<Skipped>() {
            Ok(skipped) => {
                println!("{}", skipped.0);
                ExitCode::from(SKIPPED)
            }
            Err(_) => ExitCode::from(FAILED),
        },
    }
}
