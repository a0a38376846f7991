// SPDX-License-Identifier: GPL-2.0

//! Tests of a VDUSE kernel driver: ours, or the in-tree one that it takes the place of.
//!
//! The program runs as root in a machine that has the driver loaded and nothing to lose. Each test
//! is a process of its own with a time limit; the runner watches the kernel's log, what is left
//! over of devices, and the module's reference count, and reports in KTAP on standard output.
//!
//! - `lab` is what tests are made of: devices, the vDPA bus, daemons, a vhost-vdpa client.
//! - `fuzz` are processes that do things at random, all at once.
//! - `tests` are the tests, a module for each group.
//! - The rest is the runner.
//!
//! It is a library so that the measurements in `selftests/bench` are made of the same things.

// Lints for what strangers call. Both of this library's users are here.
#![allow(
    clippy::len_without_is_empty,
    clippy::new_without_default,
    clippy::not_unsafe_ptr_arg_deref,
    clippy::should_implement_trait
)]

mod cleanup;
pub mod differences;
mod fuzz;
mod kmsg;
mod ktap;
pub mod lab;
pub mod modules;
mod options;
mod outcome;
mod pattern;
mod process;
mod runner;
mod tests;

use std::process::ExitCode;

use crate::options::Mode;

/// The program.
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
        Mode::Test(name) => outcome::run_in_this_process(&name),
        Mode::Cleanup => cleanup::run(),
        Mode::Helper(arguments) => lab::helper::run(&arguments),
    }
}
