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
    /// Takes a reference to the eventfd that the current task's descriptor `fd` refers to.
    ///
    /// # Errors
    ///
    /// [`EBADF`] if there is no such descriptor; [`EINVAL`] if the descriptor does not refer to an
    /// eventfd.
    ///
    /// # Context
    ///
    /// Process context.
    pub(crate) fn from_fd(fd: i32) -> Result<Self> {
        // SAFETY: `eventfd_ctx_fdget` accepts any number.
        let ctx = from_err_ptr(unsafe { bindings::eventfd_ctx_fdget(fd) })?;

        // INVARIANT: `eventfd_ctx_fdget` returned a reference, which the new value owns.
        Ok(Self(NonNull::new(ctx).ok_or(EBADF)?))
    }

    /// Adds one to the eventfd's counter and wakes its waiters.
    ///
    /// # Context
    ///
    /// Any in which [`signal_allowed`] returns `true`.
    pub(crate) fn signal(&self) {
        // SAFETY: By the type invariants, the pointer is valid.
        unsafe { bindings::eventfd_signal_mask(self.0.as_ptr(), 0) }
    }
}

impl Drop for EventFd {
    fn drop(&mut self) {
        // SAFETY: By the type invariants, this value owns the reference that is released here.
        unsafe { bindings::eventfd_ctx_put(self.0.as_ptr()) }
    }
}

/// Returns whether an eventfd may be signalled in the current context.
///
/// Returns `false` while the current task runs a callback of another eventfd that is being
/// signalled, because a chain of eventfds that signal each other could be endless.
pub(crate) fn signal_allowed() -> bool {
    // SAFETY: The function only reads a flag of the current task.
    unsafe { bindings::eventfd_signal_allowed() }
}
