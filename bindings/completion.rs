// SPDX-License-Identifier: GPL-2.0

//! Completions that can be waited for with a timeout and killed out of.
//!
//! [`kernel::sync::Completion`] can only be waited for without end.
//!
//! C header: [`include/linux/completion.h`](srctree/include/linux/completion.h)

use super::raw as bindings;
use kernel::{
    prelude::*,
    time::Jiffies,
    types::Opaque, //
};

/// The longest time in jiffies that the scheduler sleeps for; more than that means without end.
const MAX_TIMEOUT: Jiffies = c_long::MAX as Jiffies;

/// Why a wait has ended.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Waited {
    /// The completion was completed.
    Completed,
    /// The time ran out.
    TimedOut,
    /// The waiting task was killed.
    Killed,
}

/// Something that happens once, and that tasks wait for.
#[pin_data]
pub(crate) struct Completion {
    #[pin]
    inner: Opaque<bindings::completion>,
}

// SAFETY: A completion may be completed and waited for by any task.
unsafe impl Send for Completion {}
// SAFETY: A completion synchronises its users itself.
unsafe impl Sync for Completion {}

impl Completion {
    /// Returns an initialiser for a completion that has not happened yet.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            inner <- Opaque::ffi_init(|slot: *mut bindings::completion| {
                // SAFETY: `slot` is valid for writes and pinned.
                unsafe { bindings::init_completion(slot) };
            }),
        })
    }

    /// Completes it: every task that waits, or will wait, goes on. May be called in any context.
    pub(crate) fn complete_all(&self) {
        // SAFETY: The completion is initialised by the type's constructor.
        unsafe { bindings::complete_all(self.inner.get()) }
    }

    /// Waits until it happens, until `timeout` jiffies have gone by, or until the task is killed.
    ///
    /// May sleep.
    pub(crate) fn wait_killable_timeout(&self, timeout: Jiffies) -> Waited {
        // SAFETY: The completion is initialised by the type's constructor.
        let left = unsafe {
            bindings::wait_for_completion_killable_timeout(
                self.inner.get(),
                timeout.min(MAX_TIMEOUT),
            )
        };

        match left {
            0 => Waited::TimedOut,
            1.. => Waited::Completed,
            _ => Waited::Killed,
        }
    }

    /// Waits until it happens or until the task is killed.
    ///
    /// May sleep.
    pub(crate) fn wait_killable(&self) -> Waited {
        self.wait_killable_timeout(MAX_TIMEOUT)
    }
}
