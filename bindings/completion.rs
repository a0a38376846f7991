// SPDX-License-Identifier: GPL-2.0

//! Completions that can be waited for with a timeout, and killed out of or frozen meanwhile.
//!
//! [`kernel::sync::Completion`] can only be waited for without end.
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

/// Why a wait has ended.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum WaitResult {
    /// The completion was completed.
    Completed,
    /// The time ran out.
    TimedOut,
    /// The waiting task was killed.
    Killed,
}

impl WaitResult {
    /// Reads what the C functions return: jiffies, 0 if the time ran out, or an error.
    fn from_time_left(left: c_long) -> Self {
        match left {
            0 => Self::TimedOut,
            1.. => Self::Completed,
            _ => Self::Killed,
        }
    }
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

    /// Waits until it happens, until `timeout` has gone by, or until the task is killed.
    ///
    /// May sleep. A timeout is rounded up to jiffies.
    pub(crate) fn wait_killable_timeout(&self, timeout: Delta) -> WaitResult {
        // SAFETY: The completion is initialised by the type's constructor.
        let left = unsafe {
            bindings::wait_for_completion_killable_timeout(self.inner.get(), jiffies(timeout))
        };

        WaitResult::from_time_left(left)
    }

    /// The same, but the task can be frozen while it waits (`TASK_FREEZABLE_UNSAFE`): when the machine
    /// suspends, or by its version 1 cgroup. Time in which the machine sleeps does not count.
    ///
    /// May sleep. Locks that the caller holds are held while it is frozen, however long that is: they
    /// must not be such that suspending takes them, or it never ends.
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

/// A time in jiffies, as the scheduler sleeps for: no shorter than `time`, which is nothing if it is
/// negative, and no more than the scheduler can.
fn jiffies(time: Delta) -> c_ulong {
    if time <= Delta::ZERO {
        return 0;
    }
    let milliseconds = u32::try_from(time.as_millis()).unwrap_or(u32::MAX);

    // What was cut off, and the part of a jiffy that has gone by.
    msecs_to_jiffies(milliseconds).saturating_add(1)
}
