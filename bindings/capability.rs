// SPDX-License-Identifier: GPL-2.0

//! Capabilities.
//!
//! C header: [`include/linux/capability.h`](srctree/include/linux/capability.h)

use super::raw as bindings;
use kernel::prelude::*;

/// A capability that [`capable`] can check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Capability {
    /// `CAP_NET_ADMIN`: configure the network.
    NetAdmin,
}

/// Returns whether the current task has a capability in the initial user namespace.
///
/// If the task has the capability, the kernel marks the task as having used it. So call this
/// function only if something depends on the result. May sleep.
pub(crate) fn capable(capability: Capability) -> bool {
    let number = match capability {
        Capability::NetAdmin => bindings::CAP_NET_ADMIN,
    };

    // SAFETY: The only requirement is that `number` is a valid capability.
    // CAST: All capabilities are below 64.
    unsafe { bindings::capable(number as c_int) }
}
