// SPDX-License-Identifier: GPL-2.0

//! RCU: readers that cost next to nothing where a driver maps memory, and the updaters' side.
//!
//! C header: [`include/linux/rcupdate.h`](srctree/include/linux/rcupdate.h)

use super::{
    raw as bindings,
    smp::is_preemptible, //
};
use core::marker::PhantomData;
use kernel::sync::rcu::{
    read_lock,
    Guard, //
};

/// Shows that the caller is in an RCU read-side critical section.
///
/// # Invariants
///
/// The section does not end before `'a` does.
#[derive(Clone, Copy)]
pub(crate) struct Section<'a>(PhantomData<&'a Guard>);

impl Section<'_> {
    /// The section that the caller is in anyway, if this can be told at hardly any cost: where softirqs
    /// or preemption are disabled, as those who wait for readers wait for such contexts too
    /// (`synchronize_rcu`). Any context.
    ///
    /// # Safety
    ///
    /// The answer's lifetime must end before anything is enabled that was disabled before.
    #[inline(always)]
    pub(super) unsafe fn around() -> Option<Self> {
        // INVARIANT: By the safety requirements, a context that is a section stays one.
        (!is_preemptible()).then_some(Self(PhantomData))
    }
}

/// Does something in a read-side critical section. Any context; `f` must not sleep.
///
/// Out of line, for callers that hardly ever need it.
#[inline(never)]
pub(crate) fn read<T>(f: impl FnOnce(Section<'_>) -> T) -> T {
    let _lock = read_lock();

    // INVARIANT: The lock is held until `f` has returned, which must do with any lifetime.
    f(Section(PhantomData))
}

/// Waits until every RCU read-side critical section that is under way has ended.
///
/// May sleep.
pub(crate) fn synchronize() {
    // SAFETY: It has no requirements but that it may sleep; a caller that may not is reported, no
    // memory is touched.
    unsafe { bindings::synchronize_rcu() }
}
