// SPDX-License-Identifier: GPL-2.0

//! Time. In a machine that counts instructions, a nanosecond is one of them.

use rustix::time::{clock_gettime, ClockId};

/// The time since some moment, in ns.
pub fn now() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// How long something takes, in ns.
pub fn time(work: impl FnOnce()) -> u64 {
    let begin = now();
    work();
    now() - begin
}
