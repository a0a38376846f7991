// SPDX-License-Identifier: GPL-2.0

//! Capabilities.
//!
//! C header: [`include/linux/capability.h`](srctree/include/linux/capability.h)

use super::raw;
use kernel::prelude::*;

/// A capability: those that are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Capability {
    /// `CAP_NET_ADMIN`: configure the network.
    NetAdmin,
}

/// Whether the current task has a capability in the initial user namespace.
///
/// If so, the task is marked as having used it, so ask only if something depends on it. May sleep.
pub(crate) fn capable(capability: Capability) -> bool {
    let number = match capability {
        Capability::NetAdmin => raw::CAP_NET_ADMIN,
    };

    // SAFETY: It is a valid capability, all that is asked for.
    // CAST: All are below 64.
    unsafe { raw::capable(number as c_int) }
}
