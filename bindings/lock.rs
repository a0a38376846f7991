// SPDX-License-Identifier: GPL-2.0

//! Spinlocks for data that softirqs or interrupt handlers share with process context.
//!
//! [`kernel::sync::SpinLock`] leaves interrupts and softirqs enabled, so that taking such a lock in
//! a softirq or an interrupt handler, too, would deadlock on a CPU that already holds the lock.
//!
//! C header: [`include/linux/spinlock.h`](srctree/include/linux/spinlock.h)

use super::raw as bindings;
use kernel::{
    prelude::*,
    sync::lock::{
        Backend,
        Lock, //
    },
};

/// A spinlock that is taken with interrupts disabled.
///
/// Guards must be released in the reverse order of their acquisition: each guard restores the
/// interrupt state that it found.
///
/// # Context
///
/// Any; on PREEMPT_RT, where the lock sleeps and disables nothing, any in which sleeping locks may
/// be taken.
pub(crate) type SpinLockIrqSave<T> = Lock<T, SpinLockIrqSaveBackend>;

/// A spinlock that is taken with softirqs disabled.
///
/// Softirqs that are raised while the lock is held run when the lock is released.
///
/// # Context
///
/// Process context and softirqs, with interrupts enabled.
pub(crate) type SpinLockBh<T> = Lock<T, SpinLockBhBackend>;

/// Creates a [`SpinLockIrqSave`] initialiser with a newly created lock class.
macro_rules! new_spinlock_irqsave {
    ($inner:expr $(, $name:literal)? $(,)?) => {
        $crate::bindings::lock::SpinLockIrqSave::new(
            $inner, ::kernel::optional_name!($($name)?), ::kernel::static_lock_class!())
    };
}
pub(crate) use new_spinlock_irqsave;

/// Creates a [`SpinLockBh`] initialiser with a newly created lock class.
macro_rules! new_spinlock_bh {
    ($inner:expr $(, $name:literal)? $(,)?) => {
        $crate::bindings::lock::SpinLockBh::new(
            $inner, ::kernel::optional_name!($($name)?), ::kernel::static_lock_class!())
    };
}
pub(crate) use new_spinlock_bh;

/// The backend of [`SpinLockIrqSave`].
pub(crate) struct SpinLockIrqSaveBackend;

// SAFETY: The underlying `spinlock_t` ensures mutual exclusion. `relock` is the default, which
// locks by the same method.
unsafe impl Backend for SpinLockIrqSaveBackend {
    type State = bindings::spinlock_t;
    type GuardState = usize;

    #[inline]
    unsafe fn init(ptr: *mut Self::State, name: *const c_char, key: *mut bindings::lock_class_key) {
        // SAFETY: By the safety requirements, `ptr` is valid for writes, and `name` and `key` are
        // valid for reads indefinitely.
        unsafe { bindings::__spin_lock_init(ptr, name, key) }
    }

    #[inline]
    unsafe fn lock(ptr: *mut Self::State) -> Self::GuardState {
        // SAFETY: By the safety requirements, `ptr` is an initialised lock.
        unsafe { bindings::spin_lock_irqsave(ptr) }
    }

    #[inline]
    unsafe fn try_lock(ptr: *mut Self::State) -> Option<Self::GuardState> {
        let mut flags = 0;

        // SAFETY: By the safety requirements, `ptr` is an initialised lock.
        unsafe { bindings::spin_trylock_irqsave(ptr, &mut flags) }.then_some(flags)
    }

    #[inline]
    unsafe fn unlock(ptr: *mut Self::State, guard_state: &Self::GuardState) {
        // SAFETY: By the safety requirements, the caller owns the lock; `guard_state` is what
        // `lock` returned.
        unsafe { bindings::spin_unlock_irqrestore(ptr, *guard_state) }
    }

    #[inline]
    unsafe fn assert_is_held(ptr: *mut Self::State) {
        // SAFETY: By the safety requirements, `ptr` is an initialised lock.
        unsafe { bindings::spin_assert_is_held(ptr) }
    }
}

/// The backend of [`SpinLockBh`].
pub(crate) struct SpinLockBhBackend;

// SAFETY: The underlying `spinlock_t` ensures mutual exclusion. `relock` is the default, which
// locks by the same method.
unsafe impl Backend for SpinLockBhBackend {
    type State = bindings::spinlock_t;
    type GuardState = ();

    #[inline]
    unsafe fn init(ptr: *mut Self::State, name: *const c_char, key: *mut bindings::lock_class_key) {
        // SAFETY: By the safety requirements, `ptr` is valid for writes, and `name` and `key` are
        // valid for reads indefinitely.
        unsafe { bindings::__spin_lock_init(ptr, name, key) }
    }

    #[inline]
    unsafe fn lock(ptr: *mut Self::State) -> Self::GuardState {
        // SAFETY: By the safety requirements, `ptr` is an initialised lock.
        unsafe { bindings::spin_lock_bh(ptr) }
    }

    #[inline]
    unsafe fn try_lock(ptr: *mut Self::State) -> Option<Self::GuardState> {
        // SAFETY: By the safety requirements, `ptr` is an initialised lock.
        unsafe { bindings::spin_trylock_bh(ptr) }.then_some(())
    }

    #[inline]
    unsafe fn unlock(ptr: *mut Self::State, _guard_state: &Self::GuardState) {
        // SAFETY: By the safety requirements, the caller owns the lock.
        unsafe { bindings::spin_unlock_bh(ptr) }
    }

    #[inline]
    unsafe fn assert_is_held(ptr: *mut Self::State) {
        // SAFETY: By the safety requirements, `ptr` is an initialised lock.
        unsafe { bindings::spin_assert_is_held(ptr) }
    }
}
