// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A virtqueue of a server, with its state.

use std::sync::Arc;

use crate::eventfd::EventFd;
use crate::uapi::VqInfo;
use crate::virtqueue::Virtqueue;

/// A virtqueue and its kick eventfd.
#[derive(Debug)]
pub(super) struct VirtQueue {
    /// The rings. `None` before the driver has enabled the virtqueue, and while a thread has them.
    pub(super) rings: Option<Virtqueue>,
    /// Maximum size in descriptors.
    pub(super) max_size: u16,
    pub(super) group: u32,
    /// Whether the rings were not mapped when they were last looked for.
    pub(super) unmapped: bool,
    /// The eventfd with which the driver kicks. `None` before the driver has enabled the virtqueue
    /// for the first time, as a device may have many virtqueues and its driver use few.
    pub(super) kick: Option<Arc<EventFd>>,
    pub(super) state: State,
    /// Whether the driver has enabled the virtqueue, according to the last `SET_VQ_READY` request.
    /// `None` before the first such request. In that case, the `ready` flag of `VQ_GET_INFO`
    /// decides.
    pub(super) enabled: Option<bool>,
    /// The driver's settings at the time when the virtqueue was last set up.
    pub(super) settings: Option<VqInfo>,
}

/// Returns whether two sets of settings differ in a field other than `ready`.
pub(super) fn differ(one: &VqInfo, other: &VqInfo) -> bool {
    let ready = other.ready;
    VqInfo { ready, ..*one } != *other
}

/// The state of a virtqueue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// The driver has not enabled the virtqueue.
    Idle,
    /// The server serves the virtqueue.
    Active,
    /// The driver's configuration or rings are invalid. The server ignores the virtqueue until the
    /// next reset.
    Broken,
}
