// SPDX-License-Identifier: GPL-2.0

//! Giving up the CPU, or sleeping.
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

/// Lets another task run if the scheduler wants to switch tasks. For use in long loops. May sleep.
pub(crate) fn cond_resched() {
    // SAFETY: The only requirement is that the caller may sleep.
    unsafe { bindings::cond_resched() }
}

/// Sleeps for `time`, rounded up to jiffies, or until the task is killed. The sleep may be shorter,
/// because spurious wakeups are possible.
///
/// # Errors
///
/// [`EINTR`] if the task is killed.
///
/// # Context
///
/// Process context.
pub(crate) fn sleep_killable(time: Delta) -> Result {
    let milliseconds = u32::try_from(time.as_millis()).unwrap_or(u32::MAX);
    // Add one jiffy, because the current jiffy has already begun.
    let jiffies = msecs_to_jiffies(milliseconds).saturating_add(1);
    let jiffies = c_long::try_from(jiffies).unwrap_or(c_long::MAX);

    // SAFETY: The caller may sleep, and the time is not negative.
    unsafe { bindings::schedule_timeout_killable(jiffies) };

    // SAFETY: The function has no requirements.
    if unsafe { bindings::is_killed() } {
        Err(EINTR)
    } else {
        Ok(())
    }
}
