// SPDX-License-Identifier: GPL-2.0

//! What tests are made of.

pub mod block;
pub mod bus;
pub mod compat;
pub mod cpu;
pub mod daemon;
pub mod device;
pub mod disk;
pub mod expect;
pub mod helper;
pub mod memory;
pub mod pattern;
pub mod qsd;
pub mod raw;
pub mod rescue;
pub mod responder;
pub mod ring;
pub mod scratch;
pub mod sysfs;
pub mod vhost;

use crate::differences::Driver;
use crate::outcome::Skipped;
use crate::runner::environment;

/// Ends the test, which cannot be run here.
pub fn skip(reason: impl Into<String>) -> ! {
    std::panic::panic_any(Skipped(reason.into()))
}

/// The driver that is loaded.
pub fn driver() -> Driver {
    match std::env::var(environment::DRIVER).as_deref() {
        Ok("c") => Driver::C,
        _ => Driver::Rust,
    }
}
