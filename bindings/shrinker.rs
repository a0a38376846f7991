// SPDX-License-Identifier: GPL-2.0

//! Shrinkers: what the kernel calls when it needs memory.
//!
//! C header: [`include/linux/shrinker.h`](srctree/include/linux/shrinker.h)

use super::raw as bindings;
use core::ptr::NonNull;
use kernel::{
    prelude::*,
    sync::{
        Arc,
        ArcBorrow, //
    },
    types::ForeignOwnable, //
};

/// The operations of a shrinker that frees memory later, and not while the kernel waits for it.
///
/// # Context
///
/// The methods are called by tasks that allocate memory and may sleep, with any lock held that may
/// be held during such an allocation. So the methods must take no lock under which such an
/// allocation is made, and must not wait.
pub(crate) trait Shrink: Send + Sync + 'static {
    /// Returns the number of pages that could be freed.
    fn count(&self) -> usize;

    /// Causes pages to be freed.
    fn shrink(&self);
}

/// A registered shrinker. Dropping this value unregisters the shrinker.
///
/// # Invariants
///
/// `shrinker` is registered. Its private data comes from [`ForeignOwnable::into_foreign`] of an
/// [`Arc<T>`], and belongs to this value.
pub(crate) struct Registration<T: Shrink> {
    shrinker: NonNull<bindings::shrinker>,
    _data: core::marker::PhantomData<Arc<T>>,
}

// SAFETY: A shrinker may be unregistered by any task, and an `Arc<T>` may be dropped by any task.
unsafe impl<T: Shrink> Send for Registration<T> {}
// SAFETY: A shared `Registration` has no methods.
unsafe impl<T: Shrink> Sync for Registration<T> {}

impl<T: Shrink> Registration<T> {
    /// Registers a shrinker, which debugfs shows as `name`.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`] if memory is short.
    ///
    /// # Context
    ///
    /// May sleep.
    pub(crate) fn new(name: &'static CStr, data: Arc<T>) -> Result<Self> {
        // SAFETY: The format string takes one argument, a NUL-terminated string.
        let shrinker =
            unsafe { bindings::shrinker_alloc(0, c"%s".as_char_ptr(), name.as_char_ptr()) };
        let shrinker = NonNull::new(shrinker).ok_or(ENOMEM)?;

        // SAFETY: The shrinker was allocated just now, and no other code uses it before it is
        // registered.
        unsafe {
            let shrinker = shrinker.as_ptr();

            (*shrinker).count_objects = Some(Self::count);
            (*shrinker).scan_objects = Some(Self::scan);
            (*shrinker).private_data = data.into_foreign().cast();
            bindings::shrinker_register(shrinker);
        }

        // INVARIANT: The shrinker was registered just now, with `data` as its private data.
        Ok(Self {
            shrinker,
            _data: core::marker::PhantomData,
        })
    }

    /// Returns the data of a shrinker.
    ///
    /// # Safety
    ///
    /// `shrinker` must be the shrinker of a [`Registration<T>`] that exists during `'a`.
    unsafe fn data<'a>(shrinker: *mut bindings::shrinker) -> ArcBorrow<'a, T> {
        // SAFETY: By the type invariants, the private data is that of an `Arc<T>`, which is not
        // dropped before the registration.
        unsafe { Arc::<T>::borrow((*shrinker).private_data.cast()) }
    }

    /// Returns the number of pages that could be freed, for the kernel.
    ///
    /// # Safety
    ///
    /// `shrinker` must be the shrinker of a registration that exists during the call.
    unsafe extern "C" fn count(
        shrinker: *mut bindings::shrinker,
        _control: *mut bindings::shrink_control,
    ) -> c_ulong {
        // SAFETY: The requirements are those of this function.
        unsafe { Self::data(shrinker) }.count() as c_ulong
    }

    /// Causes pages to be freed, for the kernel.
    ///
    /// # Safety
    ///
    /// `shrinker` must be the shrinker of a registration that exists during the call.
    unsafe extern "C" fn scan(
        shrinker: *mut bindings::shrinker,
        _control: *mut bindings::shrink_control,
    ) -> c_ulong {
        /// Tells the kernel that no more can be freed now: `SHRINK_STOP`.
        const STOP: c_ulong = c_ulong::MAX;

        // SAFETY: The requirements are those of this function.
        unsafe { Self::data(shrinker) }.shrink();

        STOP
    }
}

impl<T: Shrink> Drop for Registration<T> {
    fn drop(&mut self) {
        // SAFETY: By the type invariants, the shrinker is registered. `shrinker_free` waits for
        // calls in progress. After that, the private data belongs to this function alone.
        unsafe {
            let data = (*self.shrinker.as_ptr()).private_data;

            bindings::shrinker_free(self.shrinker.as_ptr());
            drop(Arc::<T>::from_foreign(data.cast()));
        }
    }
}
