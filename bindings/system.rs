// SPDX-License-Identifier: GPL-2.0

//! The state of the system as a whole.
//!
//! C header: [`include/linux/kernel.h`](srctree/include/linux/kernel.h)

use super::raw as bindings;

/// Returns whether the machine is halting, powering off or restarting, including a restart by
/// kexec. The kernel then shuts down devices, while userspace may still run. Any context.
pub(crate) fn is_shutting_down() -> bool {
    // SAFETY: The function only reads a word.
    unsafe { bindings::is_shutting_down() }
}
