// SPDX-License-Identifier: GPL-2.0

//! The settings that the runner passes to a test in environment variables.

use crate::differences::Driver;
use crate::environment;
use crate::lab::run::report::note;

/// Returns the value of a setting, or `None` if the runner did not pass that setting.
pub fn setting(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Returns the seed of a test with random numbers. Prints the seed, so that `--seed` can repeat the
/// run.
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
