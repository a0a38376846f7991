// SPDX-License-Identifier: GPL-2.0

//! Boxes that are filled at most once, by whoever comes first.

use super::atomic::Inlined;
use core::ptr;
use kernel::{
    alloc::Flags,
    prelude::*,
    sync::atomic::{
        Atomic,
        Full, //
    },
};

/// A place for a value on the heap that several contexts may want to make at the same time.
///
/// # Invariants
///
/// The pointer is null, or came from a [`KBox`] that is ours. Once it is not null, it does not
/// change until the place is dropped.
pub(crate) struct OnceBox<T>(Atomic<*mut T>, core::marker::PhantomData<T>);

// SAFETY: It owns a `T`, which goes along.
unsafe impl<T: Send> Send for OnceBox<T> {}
// SAFETY: It gives out shared references to a `T`, and the `T` may be made by one task and dropped
// by another.
unsafe impl<T: Send + Sync> Sync for OnceBox<T> {}

impl<T> OnceBox<T> {
    /// An empty place.
    pub(crate) const fn new() -> Self {
        Self(Atomic::new(ptr::null_mut()), core::marker::PhantomData)
    }

    /// Returns the value, if there is one. May be called in any context.
    #[inline]
    pub(crate) fn get(&self) -> Option<&T> {
        // SAFETY: By the type invariants, the pointer is null or valid as long as `self` is. The
        // acquire load sees what was written before the pointer was installed.
        unsafe { self.0.read_acquire().as_ref() }
    }

    /// Returns the value, after making it in place if there was none.
    ///
    /// May be called in any context that `flags` allows. If two callers make it at the same time,
    /// one value is dropped and both get the other.
    pub(crate) fn get_or_init<E>(&self, init: impl Init<T, E>, flags: Flags) -> Result<&T>
    where
        Error: From<E>,
    {
        if let Some(value) = self.get() {
            return Ok(value);
        }

        let new = KBox::into_raw(KBox::init(init, flags)?);

        match self.0.cmpxchg(ptr::null_mut(), new, Full) {
            // INVARIANT: `new` came from a box, and nobody else has it.
            // SAFETY: As in `get`.
            Ok(_) => Ok(unsafe { &*new }),
            Err(_) => {
                // SAFETY: It came from a box above and was not installed.
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
            // SAFETY: By the type invariants, it came from a box that is ours.
            drop(unsafe { KBox::from_raw(ptr) });
        }
    }
}
