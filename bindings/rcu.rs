// SPDX-License-Identifier: GPL-2.0

//! RCU: read-side sections that cost next to nothing where a driver maps memory, and the updater's
//! wait for them.
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
/// The section does not end before `'a` does.
#[derive(Clone, Copy)]
pub(crate) struct Section<'a>(PhantomData<&'a Guard>);

impl Section<'_> {
    /// Returns the section that the caller is already in, if that can be told at hardly any cost:
    /// where softirqs or preemption are disabled, because `synchronize_rcu` waits for such contexts
    /// too. Any context.
    ///
    /// # Safety
    ///
    /// The lifetime of the returned section must end before anything that was disabled at the time
    /// of the call is enabled.
    #[inline(always)]
    pub(super) unsafe fn around() -> Option<Self> {
        // INVARIANT: By the safety requirements, the context stays a section during the lifetime.
        (!is_preemptible()).then_some(Self(PhantomData))
    }
}

/// Calls `f` in a read-side critical section. Any context; `f` must not sleep.
///
/// The function is not inlined, as its callers hardly ever need it.
#[inline(never)]
pub(crate) fn read<T>(f: impl FnOnce(Section<'_>) -> T) -> T {
    let _lock = read_lock();

    // INVARIANT: The lock is held until `f` has returned, and `f` must accept any lifetime.
    f(Section(PhantomData))
}

/// Waits until every RCU read-side critical section that is in progress has ended.
///
/// May sleep.
pub(crate) fn synchronize() {
    // SAFETY: The only requirement is that the caller may sleep. A caller that may not is reported,
    // and no memory is touched.
    unsafe { bindings::synchronize_rcu() }
}
