// SPDX-License-Identifier: GPL-2.0

//! Event file descriptors.
//!
//! C header: [`include/linux/eventfd.h`](srctree/include/linux/eventfd.h)

use super::raw as bindings;
use core::ptr::NonNull;
use kernel::{
    error::from_err_ptr,
    prelude::*, //
};

/// A reference to an eventfd.
///
/// # Invariants
///
/// The pointer is valid and owns a reference to the context.
pub(crate) struct EventFd(NonNull<bindings::eventfd_ctx>);

// SAFETY: A reference to an eventfd context may be released by any task.
unsafe impl Send for EventFd {}
// SAFETY: `eventfd_signal_mask` may be called concurrently.
unsafe impl Sync for EventFd {}

impl EventFd {
    /// Takes a reference to the eventfd that the current task knows as `fd`.
    ///
    /// Process context. Errors: [`EBADF`] if there is no such descriptor, [`EINVAL`] if it is not
    /// an eventfd.
    pub(crate) fn from_fd(fd: i32) -> Result<Self> {
        // SAFETY: Any number may be passed.
        let ctx = from_err_ptr(unsafe { bindings::eventfd_ctx_fdget(fd) })?;

        // INVARIANT: `eventfd_ctx_fdget` returned a reference, which is ours now.
        Ok(Self(NonNull::new(ctx).ok_or(EBADF)?))
    }

    /// Adds one to the eventfd's counter and wakes those who wait for it.
    ///
    /// May be called in any context in which [`signal_allowed`] is true.
    pub(crate) fn signal(&self) {
        // SAFETY: The pointer is valid by the type invariants.
        unsafe { bindings::eventfd_signal_mask(self.0.as_ptr(), 0) }
    }
}

impl Drop for EventFd {
    fn drop(&mut self) {
        // SAFETY: By the type invariants, the reference is ours to give back.
        unsafe { bindings::eventfd_ctx_put(self.0.as_ptr()) }
    }
}

/// Whether an eventfd may be signalled here.
///
/// It may not while the current task is being called back by another eventfd that is being
/// signalled: that could go on for ever.
pub(crate) fn signal_allowed() -> bool {
    // SAFETY: Reads a flag of the current task.
    unsafe { bindings::eventfd_signal_allowed() }
}
