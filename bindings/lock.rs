// SPDX-License-Identifier: GPL-2.0

//! Spinlocks for data that softirqs or interrupt handlers share with process context.
//!
//! [`kernel::sync::SpinLock`] leaves interrupts and softirqs enabled. If a softirq or an interrupt
//! handler took such a lock on a CPU that already holds the lock, the CPU would deadlock.
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
/// Guards must be released in the reverse order of their acquisition, because each guard restores
/// the interrupt state from before its lock was taken.
///
/// # Context
///
/// Without PREEMPT_RT, any. With PREEMPT_RT, this lock may sleep and leaves interrupts enabled, so
/// it may be taken only where sleeping locks may be taken.
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

/// Defines the backend of a spinlock from three expressions: `lock`, `try_lock` and `unlock`. Each
/// expression is the body of the [`Backend`] method with the same name, so the expression may rely
/// on the safety requirements of that method.
macro_rules! spinlock_backend {
    (
        $(#[$doc:meta])*
        $name:ident: $guard_state:ty,
        lock: |$lock_ptr:ident| $lock:expr,
        try_lock: |$try_ptr:ident| $try_lock:expr,
        unlock: |$unlock_ptr:ident, $state:pat_param| $unlock:expr $(,)?
    ) => {
        $(#[$doc])*
        pub(crate) struct $name;

        // SAFETY: The underlying `spinlock_t` ensures mutual exclusion. The default `relock`, which
        // calls `lock`, is used.
        unsafe impl Backend for $name {
            type State = bindings::spinlock_t;
            type GuardState = $guard_state;

            #[inline]
            unsafe fn init(
                ptr: *mut Self::State,
                name: *const c_char,
                key: *mut bindings::lock_class_key,
            ) {
                // SAFETY: By the safety requirements, `ptr` is valid for writes, and `name` and
                // `key` are valid for reads indefinitely.
                unsafe { bindings::__spin_lock_init(ptr, name, key) }
            }

            #[inline]
            unsafe fn lock($lock_ptr: *mut Self::State) -> Self::GuardState {
                // SAFETY: By the safety requirements, `$lock_ptr` points to an initialised lock.
                unsafe { $lock }
            }

            #[inline]
            unsafe fn try_lock($try_ptr: *mut Self::State) -> Option<Self::GuardState> {
                // SAFETY: By the safety requirements, `$try_ptr` points to an initialised lock.
                unsafe { $try_lock }
            }

            #[inline]
            unsafe fn unlock($unlock_ptr: *mut Self::State, $state: &Self::GuardState) {
                // SAFETY: By the safety requirements, the caller owns the lock; the guard state is
                // what `lock` or `try_lock` returned.
                unsafe { $unlock }
            }

            #[inline]
            unsafe fn assert_is_held(ptr: *mut Self::State) {
                // SAFETY: By the safety requirements, `ptr` points to an initialised lock.
                unsafe { bindings::spin_assert_is_held(ptr) }
            }
        }
    };
}

spinlock_backend! {
    /// The backend of [`SpinLockIrqSave`]. The guard state is the interrupt state from before
    /// locking.
    SpinLockIrqSaveBackend: usize,
    lock: |lock| bindings::spin_lock_irqsave(lock),
    try_lock: |lock| {
        let mut flags = 0;

        bindings::spin_trylock_irqsave(lock, &mut flags).then_some(flags)
    },
    unlock: |lock, flags| bindings::spin_unlock_irqrestore(lock, *flags),
}

spinlock_backend! {
    /// The backend of [`SpinLockBh`].
    SpinLockBhBackend: (),
    lock: |lock| bindings::spin_lock_bh(lock),
    try_lock: |lock| bindings::spin_trylock_bh(lock).then_some(()),
    unlock: |lock, ()| bindings::spin_unlock_bh(lock),
}
