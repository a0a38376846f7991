// SPDX-License-Identifier: GPL-2.0

//! The measurements.

pub mod disk;
mod growth;
mod latency;
mod life;
mod memory;
mod net;
pub mod parallel;
mod segments;

use crate::measurement::Bench;

/// Returns all measurements that are useful on `cpus` CPUs.
pub fn all(cpus: usize) -> Vec<Bench> {
    let mut benches = Vec::new();
    benches.extend(disk::benches());
    benches.extend(net::benches());
    benches.extend(latency::benches());
    if cpus > 1 {
        benches.extend(parallel::benches());
    } else {
        benches.extend(segments::benches());
        benches.extend(memory::benches());
        benches.extend(life::benches());
        benches.extend(growth::benches());
    }
    benches
}
