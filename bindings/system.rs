// SPDX-License-Identifier: GPL-2.0

//! The state of the system as a whole.
//!
//! C header: [`include/linux/kernel.h`](srctree/include/linux/kernel.h)

use super::raw as bindings;

/// Whether the machine is halting, powering off, or restarting, into a kernel loaded by kexec as well:
/// devices are being shut down, and userspace may run on until the end. Any context.
pub(crate) fn is_shutting_down() -> bool {
    // SAFETY: Reads a word.
    unsafe { bindings::is_shutting_down() }
}
