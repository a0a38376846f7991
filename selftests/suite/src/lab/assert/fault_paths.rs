// SPDX-License-Identifier: GPL-2.0

//! Paths on which allocations fail, one after the other: the error is right, nothing is left half
//! made, nothing leaks.
//!
//! A failed operation is repeated, and then succeeds. Each path is run several times, and leaves
//! nothing. Where a path goes through much of the kernel, only allocations below the driver's own
//! code on the stack fail.

use rustix::io::Errno;

use crate::lab::assert::counts::times_leave_nothing;
use crate::lab::kernel::fault_injection::Tally;

/// How often each path is run.
pub const TIMES: i64 = 4;

/// How often a slow path is run.
pub const FEW: i64 = 1;

/// The errors of a call that lacks memory.
pub const NO_MEMORY: &[Errno] = &[Errno::NOMEM];

/// The errors of a call that lacks memory, possibly for its request to the daemon, which then looks
/// as if the daemon had not answered.
pub const UNTOLD: &[Errno] = &[Errno::NOMEM, Errno::IO];

/// No errors, for a call that must not fail.
pub const NEVER: &[Errno] = &[];

/// Runs paths several times, which must leave nothing, and reports what the faults caused.
///
/// There must be at least one fault.
#[track_caller]
pub fn several<const N: usize>(times: i64, paths: [&str; N], mut go: impl FnMut() -> [Tally; N]) {
    let mut tallies = [Tally::default(); N];
    times_leave_nothing(times, || tallies = go());
    for (tally, path) in tallies.iter().zip(paths) {
        tally.note(path);
    }
    assert!(tallies.iter().any(|tally| tally.faults > 0));
}
