// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Event indices, with which one side says when it wants to be notified.

/// Returns whether an event index lies in the entries from `old` to `new` (virtio 1.3, section
/// 2.7.10): whether the other side wants to be notified of them.
pub(super) fn crosses(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}
