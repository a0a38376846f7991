// SPDX-License-Identifier: GPL-2.0

//! Code paths that a test runs with one allocation failing at a time.
//!
//! On a failed allocation, the path must return the right error, undo what it has done so far, and
//! leak nothing. A failed operation is then repeated without a fault and must succeed. Each path is
//! run several times. If a path goes through much of the kernel, the faults are limited to
//! allocations that have the driver's own code on the stack.

use rustix::io::Errno;

use crate::lab::assert::counts::times_leave_nothing;
use crate::lab::kernel::fault_injection::Tally;

/// The `times` of [`several`] for paths that are fast. Each measurement of leaks runs a path this
/// many times.
pub const TIMES: i64 = 4;

/// The `times` of [`several`] for paths that are slow.
pub const FEW: i64 = 1;

/// The errors that a call may return if an allocation fails.
pub const NO_MEMORY: &[Errno] = &[Errno::NOMEM];

/// The errors that a call may return if it sends a request to the daemon and an allocation fails.
/// If the kernel cannot allocate the request itself, the call returns `EIO`, as if the daemon had
/// not answered.
pub const UNTOLD: &[Errno] = &[Errno::NOMEM, Errno::IO];

/// The empty list of errors, for a call that must succeed in spite of a failed allocation.
pub const NEVER: &[Errno] = &[];

/// Repeatedly calls `go`, which runs each path once. Asserts that the paths leak nothing, and that
/// at least one fault occurred. Reports the faults of each path and the failures that they caused.
#[track_caller]
pub fn several<const N: usize>(times: i64, paths: [&str; N], mut go: impl FnMut() -> [Tally; N]) {
    let mut tallies = [Tally::default(); N];
    times_leave_nothing(times, || tallies = go());
    for (tally, path) in tallies.iter().zip(paths) {
        tally.note(path);
    }
    assert!(tallies.iter().any(|tally| tally.faults > 0));
}
