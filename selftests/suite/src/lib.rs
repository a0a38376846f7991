// SPDX-License-Identifier: GPL-2.0

//! Tests of a VDUSE kernel driver. The driver is either `vduse_rs` or the in-tree driver, which
//! `vduse_rs` replaces.
//!
//! The program runs as root in a disposable machine on which the driver is loaded. Each test runs
//! in its own process with a time limit. After each test, the runner checks the kernel's log,
//! left-over devices and the module's reference count. It reports in KTAP format on standard
//! output.
//!
//! - `lab` has the building blocks of tests, in directories: devices, the daemon side, the driver
//!   side, the kernel around the driver, QEMU guests, assertions, and the process of a running
//!   test.
//! - `fuzz` has processes that perform random operations concurrently.
//! - `tests` has the tests, one module for each group.
//! - The other modules make up the runner.
//!
//! The program is a library so that the measurements in `selftests/bench` can use the same building
//! blocks.

// These lints are meant for APIs with external callers. All callers of this library are in this
// repository.
#![allow(
    clippy::len_without_is_empty,
    clippy::new_without_default,
    clippy::not_unsafe_ptr_arg_deref,
    clippy::should_implement_trait
)]

mod cleanup;
pub mod differences;
mod environment;
mod fuzz;
mod kmsg;
mod ktap;
pub mod lab;
mod options;
mod outcome;
mod pattern;
mod process;
mod runner;
mod single_test;
mod tests;

use std::process::ExitCode;

use crate::options::Mode;

/// Runs the program in the mode that the command line selects.
pub fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let mode = match options::parse(&arguments) {
        Ok(mode) => mode,
        Err(message) => {
            eprintln!("{message}\n\n{}", options::USAGE);
            return ExitCode::from(2);
        }
    };
    match mode {
        Mode::Help => {
            println!("{}", options::USAGE);
            ExitCode::SUCCESS
        }
        Mode::List(options) => {
            for test in tests::selected(&options) {
                println!("{}", test.name);
            }
            ExitCode::SUCCESS
        }
        Mode::Run(options) => runner::run(&options),
        Mode::Test(name) => single_test::run(&name),
        Mode::Cleanup => cleanup::run(),
        Mode::Helper(arguments) => lab::run::helper::run(&arguments),
    }
}
