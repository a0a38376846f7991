// SPDX-License-Identifier: GPL-2.0

//! The building blocks of tests.

pub mod block;
pub mod bus;
pub mod card_driver;
pub mod cgroup;
pub mod client;
pub mod compat;
pub mod counts;
pub mod cpu;
pub mod daemon;
pub mod device;
pub mod disk;
pub mod expect;
pub mod faults;
pub mod fs;
pub mod fuse;
pub mod gate;
pub mod groups;
pub mod guest;
pub mod guest_card;
pub mod helper;
pub mod injection;
pub mod limit;
pub mod loading;
pub mod memory;
pub mod namespace;
pub mod net;
pub mod outsider;
pub mod pattern;
pub mod qmp;
pub mod qsd;
pub mod raw;
pub mod rcu;
pub mod rescue;
pub mod responder;
pub mod ring;
pub mod scratch;
pub mod serving;
pub mod spaces;
pub mod suspend;
pub mod sysfs;
pub mod trace;
pub mod vhost;
pub mod waiting;
pub mod window;

use crate::differences::Driver;
use crate::outcome::Skipped;
use crate::runner::environment;

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
    println!("{}{text}", crate::runner::NOTE);
}

/// Returns a setting that the runner passes to tests.
pub fn setting(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Returns the seed of a random test. The seed is shown, for another run with `--seed`.
pub fn seed() -> u64 {
    let given = setting(environment::SEED);
    let seed = given.and_then(|text| text.parse().ok()).unwrap_or_else(|| {
        let now = std::time::SystemTime::now();
        let since = now.duration_since(std::time::UNIX_EPOCH);
        since.map_or(0, |since| u64::from(since.subsec_nanos()))
    });
    note(format_args!("seed {seed}"));
    seed
}

/// Returns the driver that is loaded.
pub fn driver() -> Driver {
    match setting(environment::DRIVER).as_deref() {
        Some("c") => Driver::C,
        _ => Driver::Rust,
    }
}
