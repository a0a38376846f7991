// SPDX-License-Identifier: GPL-2.0

//! The freezer, which stops tasks before the machine suspends.
//!
//! C header: [`include/linux/freezer.h`](srctree/include/linux/freezer.h)

use super::raw as bindings;

/// Whether the current task is asked to freeze, because the machine suspends or by its version 1
/// cgroup. Tasks of userspace are all asked at about the same time. Process context.
pub(crate) fn is_freezing() -> bool {
    // SAFETY: Reads a state of the current task.
    unsafe { bindings::is_freezing() }
}
