// SPDX-License-Identifier: GPL-2.0

//! Boxes that are filled at most once, by the first of several concurrent callers.

use super::fast::Inlined;
use core::ptr;
use kernel::{
    alloc::Flags,
    prelude::*,
    sync::atomic::{
        Atomic,
        Full, //
    },
};

/// A value on the heap that several contexts may try to create at the same time.
///
/// # Invariants
///
/// The pointer is null, or came from a [`KBox`] that belongs to this value. Once the pointer is not
/// null, it does not change until this value is dropped.
pub(crate) struct OnceBox<T>(Atomic<*mut T>, core::marker::PhantomData<T>);

// SAFETY: A `OnceBox<T>` owns a `T`, so sending the box sends the `T`.
unsafe impl<T: Send> Send for OnceBox<T> {}
// SAFETY: A shared `OnceBox<T>` gives out shared references to a `T`, and the `T` may be created by
// one task and dropped by another.
unsafe impl<T: Send + Sync> Sync for OnceBox<T> {}

impl<T> OnceBox<T> {
    /// Creates an empty box.
    pub(crate) const fn new() -> Self {
        Self(Atomic::new(ptr::null_mut()), core::marker::PhantomData)
    }

    /// Returns the value, if there is one. Any context.
    #[inline]
    pub(crate) fn get(&self) -> Option<&T> {
        // SAFETY: By the type invariants, the pointer is null or valid as long as `self` is. The
        // load has acquire ordering, so the value's contents are visible.
        unsafe { self.0.read_acquire().as_ref() }
    }

    /// Returns the value, after creating it with `init` if there was none.
    ///
    /// If two callers create a value at the same time, one of the two values is dropped, and both
    /// callers get the remaining value.
    ///
    /// # Errors
    ///
    /// `ENOMEM`, or the error of `init`.
    ///
    /// # Context
    ///
    /// Any context that `flags` allows.
    pub(crate) fn get_or_init<E>(&self, init: impl Init<T, E>, flags: Flags) -> Result<&T>
    where
        Error: From<E>,
    {
        if let Some(value) = self.get() {
            return Ok(value);
        }

        let new = KBox::into_raw(KBox::init(init, flags)?);

        match self.0.cmpxchg(ptr::null_mut(), new, Full) {
            // INVARIANT: `new` came from a box that no other code owns.
            // SAFETY: By the type invariants, the pointer is valid as long as `self` is.
            Ok(_) => Ok(unsafe { &*new }),
            Err(_) => {
                // SAFETY: `new` came from a box above and was not installed.
                drop(unsafe { KBox::from_raw(new) });
                self.get().ok_or(ENOMEM)
            }
        }
    }
}

impl<T> Drop for OnceBox<T> {
    fn drop(&mut self) {
        let ptr = *self.0.get_mut();

        if !ptr.is_null() {
            // SAFETY: By the type invariants, `ptr` came from a box that belongs to this value.
            drop(unsafe { KBox::from_raw(ptr) });
        }
    }
}
