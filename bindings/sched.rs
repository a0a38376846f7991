// SPDX-License-Identifier: GPL-2.0

//! Sharing the CPU.
//!
//! C header: [`include/linux/sched.h`](srctree/include/linux/sched.h)

use super::raw as bindings;

/// Lets other tasks run if it is their turn. For long loops; may sleep.
pub(crate) fn cond_resched() {
    // SAFETY: It has no requirements but that it may sleep.
    unsafe { bindings::cond_resched() }
}
