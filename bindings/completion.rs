// SPDX-License-Identifier: GPL-2.0

//! Completions whose waits are killable, have a timeout, and can be freezable.
//!
//! [`kernel::sync::Completion`] has no wait with a timeout.
//!
//! C header: [`include/linux/completion.h`](srctree/include/linux/completion.h)

use super::raw as bindings;
use kernel::{
    prelude::*,
    time::{
        msecs_to_jiffies,
        Delta, //
    },
    types::Opaque, //
};

/// The reason why a wait ended.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum WaitResult {
    /// The completion was completed.
    Completed,
    /// The timeout expired.
    TimedOut,
    /// The waiting task was killed.
    Killed,
}

impl WaitResult {
    /// Converts the return value of a C wait function: the number of jiffies that are left, 0 if
    /// the timeout expired, or a negative error number.
    fn from_time_left(left: c_long) -> Self {
        match left {
            0 => Self::TimedOut,
            1.. => Self::Completed,
            _ => Self::Killed,
        }
    }
}

/// An event that tasks can wait for.
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
    /// Returns an initialiser for a completion that is not completed yet.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            inner <- Opaque::ffi_init(|slot: *mut bindings::completion| {
                // SAFETY: `slot` is valid for writes and pinned.
                unsafe { bindings::init_completion(slot) };
            }),
        })
    }

    /// Completes the event: all current and later waits end at once. Any context.
    pub(crate) fn complete_all(&self) {
        // SAFETY: The completion is initialised by the type's constructor.
        unsafe { bindings::complete_all(self.inner.get()) }
    }

    /// Completes the event for one wait: a current wait or, if there is none, the next one. Any
    /// context.
    pub(crate) fn complete(&self) {
        // SAFETY: The completion is initialised by the type's constructor.
        unsafe { bindings::complete(self.inner.get()) }
    }

    /// Waits until the event is completed, until `timeout` has passed, or until the task is killed.
    ///
    /// The timeout is rounded up to jiffies. May sleep.
    pub(crate) fn wait_killable_timeout(&self, timeout: Delta) -> WaitResult {
        // SAFETY: The completion is initialised by the type's constructor.
        let left = unsafe {
            bindings::wait_for_completion_killable_timeout(self.inner.get(), jiffies(timeout))
        };

        WaitResult::from_time_left(left)
    }

    /// Waits as [`wait_killable_timeout`](Self::wait_killable_timeout) does, but a suspend of the
    /// machine or the task's version 1 cgroup can freeze the task during the wait
    /// (`TASK_FREEZABLE_UNSAFE`). Time during which the machine sleeps does not count towards the
    /// timeout.
    ///
    /// # Context
    ///
    /// May sleep. The locks that the caller holds stay held while the task is frozen, for any
    /// length of time. No code that suspends the machine may take any of these locks, because the
    /// suspend would never end.
    pub(crate) fn wait_killable_freezable_timeout(&self, timeout: Delta) -> WaitResult {
        // SAFETY: The completion is initialised by the type's constructor.
        let left = unsafe {
            bindings::wait_for_completion_killable_freezable_timeout(
                self.inner.get(),
                jiffies(timeout),
            )
        };

        WaitResult::from_time_left(left)
    }
}

/// Converts `time` to a timeout in jiffies. The result is rounded up, but is at most the longest
/// timeout that the scheduler supports. Returns 0 if `time` is not positive.
fn jiffies(time: Delta) -> c_ulong {
    if time <= Delta::ZERO {
        return 0;
    }
    let milliseconds = u32::try_from(time.as_millis()).unwrap_or(u32::MAX);

    // Add one jiffy for the fraction of a millisecond that was cut off, and for the part of the
    // current jiffy that has passed.
    msecs_to_jiffies(milliseconds).saturating_add(1)
}
