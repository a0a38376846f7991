// SPDX-License-Identifier: GPL-2.0

//! RCU: read-side critical sections, which cost almost nothing on the I/O path, and
//! `synchronize_rcu`.
//!
//! C header: [`include/linux/rcupdate.h`](srctree/include/linux/rcupdate.h)

use super::{
    fast::is_preemptible,
    raw as bindings, //
};
use core::marker::PhantomData;
use kernel::sync::rcu::{
    read_lock,
    Guard, //
};

/// A proof that the caller is in an RCU read-side critical section.
///
/// # Invariants
///
/// The section lasts at least as long as `'a`.
#[derive(Clone, Copy)]
pub(crate) struct Section<'a>(PhantomData<&'a Guard>);

impl Section<'_> {
    /// Returns a proof if softirqs or preemption are disabled, because `synchronize_rcu` waits for
    /// such contexts, too. Otherwise returns [`None`], even if the caller is in a read-side
    /// critical section. The check costs almost nothing. Any context.
    ///
    /// # Safety
    ///
    /// If softirqs or preemption are disabled at the time of the call, the lifetime of the returned
    /// section must end before they are enabled again.
    #[inline(always)]
    pub(super) unsafe fn around() -> Option<Self> {
        // INVARIANT: By the safety requirements, the caller stays in a section during the lifetime.
        (!is_preemptible()).then_some(Self(PhantomData))
    }
}

/// Calls `f` in a read-side critical section. Any context; `f` must not sleep.
///
/// This function is not inlined, because its callers rarely need it: most of them try
/// [`Section::around`] first.
#[inline(never)]
pub(crate) fn read<T>(f: impl FnOnce(Section<'_>) -> T) -> T {
    let _lock = read_lock();

    // INVARIANT: The lock is held until `f` has returned. `f` must accept any lifetime, so it
    // cannot keep the section for longer.
    f(Section(PhantomData))
}

/// Waits until every RCU read-side critical section that is in progress has ended.
///
/// May sleep.
pub(crate) fn synchronize() {
    // SAFETY: The only requirement is that the caller may sleep. If the caller must not sleep, the
    // kernel reports the mistake, and memory safety is preserved.
    unsafe { bindings::synchronize_rcu() }
}
