// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A virtqueue of a server, with its state.

use std::sync::atomic::Ordering;

use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Queue, QueueT};
use vm_memory::Bytes;

use crate::eventfd::EventFd;
use crate::server::backend::Memory;
use crate::uapi::VqInfo;

/// A virtqueue and its kick eventfd.
#[derive(Debug)]
pub(super) struct VirtQueue {
    pub(super) queue: Queue,
    pub(super) group: u32,
    pub(super) kick: EventFd,
    pub(super) state: State,
    pub(super) waits: Waits,
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

/// The event for which an active virtqueue waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Waits {
    /// A kick by the driver, because the virtqueue has no more requests or its source has failed.
    Kick,
    /// The moment at which the backend's source becomes readable. No kick is needed.
    Source,
    /// The virtqueue's next turn, after the server has served the other virtqueues. No kick is
    /// needed.
    Turn,
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

/// Returns whether the driver wants to be interrupted for the entries added to the used ring.
pub(super) fn wants_interrupt(
    queue: &mut Queue,
    memory: &Memory,
) -> Result<bool, virtio_queue::Error> {
    if !queue.needs_notification(&**memory)? {
        return Ok(false);
    }
    if queue.event_idx_enabled() {
        return Ok(true);
    }
    // Without `VIRTIO_RING_F_EVENT_IDX`, a driver that wants no interrupts sets a flag in the
    // available ring. `needs_notification` does not check this flag.
    let address = vm_memory::GuestAddress(queue.avail_ring());
    let flags: u16 = memory
        .load(address, Ordering::Relaxed)
        .map_err(virtio_queue::Error::GuestMemory)?;
    Ok(u32::from(u16::from_le(flags)) & VRING_AVAIL_F_NO_INTERRUPT == 0)
}
