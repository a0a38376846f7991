// SPDX-License-Identifier: GPL-2.0

//! Fuzzing: daemons, drivers and administrators perform random operations concurrently. See the
//! module [`crate::fuzz`].
//!
//! `--seed` repeats a run, `--fuzz-seconds` sets its duration, `--fuzz-actors` selects the actors,
//! and `--fuzz-trace` writes each call to the kernel's log.

use std::time::Duration;

use crate::environment;
use crate::fuzz::supervisor::{self, Plan};
use crate::lab::kernel::modules;
use crate::lab::run::settings::{seed, setting};

// This time limit does not include the time for which the fuzzer runs.
tests![hostile_userspace_does_no_harm => 90];

fn hostile_userspace_does_no_harm() {
    modules::tool("modprobe", &["virtio_net"]).expect("the kernel's network driver");
    let actors = setting(environment::FUZZ_ACTORS).unwrap_or_default();
    let number = |name| setting(name).and_then(|text| text.parse().ok());
    supervisor::run(&Plan {
        seed: seed(),
        time: Duration::from_secs(number(environment::FUZZ_SECONDS).unwrap_or(30)),
        actors: actors
            .split(',')
            .filter(|name| !name.is_empty())
            .map(str::to_owned)
            .collect(),
        trace: setting(environment::FUZZ_TRACE).is_some(),
        patience: number(environment::PATIENCE).unwrap_or(1) as u32,
    });
}
