// SPDX-License-Identifier: GPL-2.0

//! Sharing the CPU, and doing without it.
//!
//! C header: [`include/linux/sched.h`](srctree/include/linux/sched.h)

use super::raw as bindings;
use kernel::{
    ffi::c_long,
    prelude::*,
    time::{
        msecs_to_jiffies,
        Delta, //
    },
};

/// Lets other tasks run if it is their turn. For long loops; may sleep.
pub(crate) fn cond_resched() {
    // SAFETY: It has no requirements but that it may sleep.
    unsafe { bindings::cond_resched() }
}

/// Sleeps for `time`, rounded up to jiffies, or until the task is killed; or less, as a task may be
/// woken up without a reason. Process context.
///
/// Errors: [`EINTR`] if the task is killed.
pub(crate) fn sleep_killable(time: Delta) -> Result {
    let milliseconds = u32::try_from(time.as_millis()).unwrap_or(u32::MAX);
    // The jiffy that has begun is not counted.
    let jiffies = msecs_to_jiffies(milliseconds).saturating_add(1);
    let jiffies = c_long::try_from(jiffies).unwrap_or(c_long::MAX);

    // SAFETY: It may sleep, and the time is not negative.
    unsafe { bindings::schedule_timeout_killable(jiffies) };

    // SAFETY: It has no requirements.
    if unsafe { bindings::is_killed() } {
        Err(EINTR)
    } else {
        Ok(())
    }
}
