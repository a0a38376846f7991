// SPDX-License-Identifier: GPL-2.0

//! The updaters' side of RCU.
//!
//! C header: [`include/linux/rcupdate.h`](srctree/include/linux/rcupdate.h)

use super::raw as bindings;

pub(crate) use kernel::sync::rcu::Guard;

/// Waits until every RCU read-side critical section that is under way has ended.
///
/// May sleep.
pub(crate) fn synchronize() {
    // SAFETY: It has no requirements but that it may sleep; a caller that may not is reported, no
    // memory is touched.
    unsafe { bindings::synchronize_rcu() }
}

/// Does the same sooner, at the expense of interrupting every other CPU.
///
/// For what a user waits for and what is rare. May sleep.
pub(crate) fn synchronize_expedited() {
    // SAFETY: As for `synchronize`.
    unsafe { bindings::synchronize_rcu_expedited() }
}
