// SPDX-License-Identifier: GPL-2.0

//! The execution of one test in this process.

use std::panic::{self, PanicHookInfo};
use std::process::ExitCode;

use crate::outcome::{Skipped, FAILED, SKIPPED};

/// Runs the test called `name` in this process. Returns the exit status for the runner.
pub fn run(name: &str) -> ExitCode {
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
