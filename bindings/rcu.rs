// SPDX-License-Identifier: GPL-2.0

//! RCU: readers that cost next to nothing where a driver maps memory, and the updaters' side.
//!
//! C header: [`include/linux/rcupdate.h`](srctree/include/linux/rcupdate.h)

use super::{
    raw as bindings,
    smp::is_preemptible, //
};
use kernel::sync::rcu::{
    read_lock,
    Guard, //
};

/// An RCU read-side critical section, which ends when this is dropped.
///
/// # Invariants
///
/// Either the read lock is held, or the caller's context is a read-side critical section anyway and
/// stays so until this is dropped.
pub(crate) struct Reader {
    _lock: Option<Guard>,
}

impl Reader {
    /// Begins a read-side critical section. Any context.
    pub(crate) fn new() -> Self {
        // INVARIANT: The lock is held.
        Self {
            _lock: Some(read_lock()),
        }
    }

    /// Begins a read-side critical section, at hardly any cost where softirqs or preemption are
    /// disabled, as those who wait for readers wait for such contexts too (`synchronize_rcu`). Any
    /// context.
    ///
    /// # Safety
    ///
    /// Until the answer is dropped, nothing that the caller's caller has disabled must be enabled.
    #[inline(always)]
    pub(super) unsafe fn new_nested() -> Self {
        // INVARIANT: By the safety requirements, a context that is one stays one.
        Self {
            _lock: is_preemptible().then(read_lock),
        }
    }
}

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
