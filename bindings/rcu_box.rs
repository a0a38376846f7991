// SPDX-License-Identifier: GPL-2.0

//! Boxes that are read under RCU, and that can be emptied and filled again.

use super::{
    fast::Inlined,
    rcu, //
};
use core::{
    marker::PhantomData,
    ops::Deref,
    ptr::{
        self,
        NonNull, //
    },
};
use kernel::{
    alloc::Flags,
    prelude::*,
    sync::atomic::{
        Atomic,
        Full, //
    },
};

/// A value on the heap that several contexts may try to create at the same time. One context at
/// a time may take it away.
///
/// # Invariants
///
/// The pointer is null, or came from a [`KBox`] that belongs to this value. If the pointer changes,
/// the previous box is not dropped before an RCU grace period has passed.
pub(super) struct RcuBox<T>(Atomic<*mut T>, PhantomData<T>);

// SAFETY: An `RcuBox<T>` owns a `T`, so sending the box sends the `T`.
unsafe impl<T: Send> Send for RcuBox<T> {}
// SAFETY: A shared `RcuBox<T>` gives out shared references to a `T`, and the `T` may be created by
// one task and dropped by another.
unsafe impl<T: Send + Sync> Sync for RcuBox<T> {}

impl<T> RcuBox<T> {
    /// Creates an empty box.
    pub(super) const fn new() -> Self {
        Self(Atomic::new(ptr::null_mut()), PhantomData)
    }

    /// Returns whether there is a value. Any context.
    pub(super) fn is_filled(&self) -> bool {
        !self.0.read().is_null()
    }

    /// Returns the value, if there is one. Any context.
    #[inline(always)]
    pub(super) fn get<'a>(&'a self, _rcu: rcu::Section<'a>) -> Option<&'a T> {
        // SAFETY: By the type invariants, the pointer is null or valid until the read-side critical
        // section ends, which lasts at least as long as `'a`. The load has acquire ordering, so the
        // value's contents are visible.
        unsafe { self.0.read_acquire().as_ref() }
    }

    /// Creates a value with `init`, unless there is one.
    ///
    /// If two callers create a value at the same time, one of the two values is dropped.
    ///
    /// # Errors
    ///
    /// `ENOMEM`, or the error of `init`.
    ///
    /// # Context
    ///
    /// Any context that `flags` allows.
    pub(super) fn fill<E>(&self, init: impl Init<T, E>, flags: Flags) -> Result
    where
        Error: From<E>,
    {
        if !self.is_filled() {
            self.put(KBox::init(init, flags)?);
        }

        Ok(())
    }

    /// Puts a value into the box. If there is one already, `value` is dropped. Any context.
    fn put(&self, value: KBox<T>) {
        let new = KBox::into_raw(value);

        // INVARIANT: `new` came from a box that no other code owns.
        if self.0.cmpxchg(ptr::null_mut(), new, Full).is_err() {
            // SAFETY: `new` came from a box above and was not installed.
            drop(unsafe { KBox::from_raw(new) });
        }
    }

    /// Takes the value away, so that the box is empty. Readers may still use the value until an RCU
    /// grace period has passed. Any context.
    pub(super) fn take(&self) -> Option<Taken<'_, T>> {
        let value = NonNull::new(self.0.xchg(ptr::null_mut(), Full))?;

        // INVARIANT: By the type invariants, the pointer came from a box, which now belongs to the
        // `Taken`.
        Some(Taken { from: self, value })
    }
}

impl<T> Drop for RcuBox<T> {
    fn drop(&mut self) {
        let value = *self.0.get_mut();

        if !value.is_null() {
            // SAFETY: By the type invariants, the pointer came from a box that belongs to this
            // value. No reader is left.
            drop(unsafe { KBox::from_raw(value) });
        }
    }
}

/// A value that was taken from an [`RcuBox`]. Dropping this value puts it back. Whoever takes a value
/// prevents that the box is filled in between: otherwise, the value that was taken leaks, as readers
/// may still use it.
///
/// # Invariants
///
/// `value` came from a [`KBox`] that belongs to this value.
pub(super) struct Taken<'a, T> {
    from: &'a RcuBox<T>,
    value: NonNull<T>,
}

impl<T> Taken<'_, T> {
    /// Drops the value for good.
    ///
    /// # Safety
    ///
    /// An RCU grace period must have passed since the value was taken.
    pub(super) unsafe fn free(self) {
        let value = core::mem::ManuallyDrop::new(self).value;

        // SAFETY: By the type invariants, the pointer came from a box. By the safety requirements,
        // no reader is left.
        drop(unsafe { KBox::from_raw(value.as_ptr()) });
    }
}

impl<T> Deref for Taken<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: By the type invariants, the value exists as long as `self`.
        unsafe { self.value.as_ref() }
    }
}

impl<T> Drop for Taken<'_, T> {
    fn drop(&mut self) {
        // INVARIANT: The value belongs to the `RcuBox` again.
        let _ = self
            .from
            .0
            .cmpxchg(ptr::null_mut(), self.value.as_ptr(), Full);
    }
}
