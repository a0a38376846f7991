// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A driver's settings of a virtqueue.

use vduse_uapi as uapi;
use virtio_bindings::virtio_config::VIRTIO_F_RING_PACKED;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

/// Maximum size of a virtqueue, in descriptors (virtio 1.3, sections 2.7 and 2.8.10.1).
pub const MAX_SIZE: u16 = 0x8000;

/// The driver's settings of a virtqueue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Size in descriptors, 1 to [`MAX_SIZE`]. A power of 2, if the virtqueue is split.
    pub size: u16,
    /// IOVA of the descriptor area: the descriptor table, or a packed virtqueue's ring.
    pub descriptors: u64,
    /// IOVA of the driver area: the available ring, or a packed virtqueue's driver event
    /// suppression.
    pub driver: u64,
    /// IOVA of the device area: the used ring, or a packed virtqueue's device event suppression.
    pub device: u64,
    /// The feature bits that the driver has accepted.
    pub features: u64,
}

impl Settings {
    /// Returns the settings that `VQ_GET_INFO` reports, or `None` if the size is not a size.
    pub fn new(info: &uapi::VqInfo, features: u64) -> Option<Self> {
        Some(Self {
            size: u16::try_from(info.num).ok()?,
            descriptors: info.desc_addr,
            driver: info.driver_addr,
            device: info.device_addr,
            features,
        })
    }

    fn has(&self, bit: u32) -> bool {
        self.features & 1 << bit != 0
    }

    /// Returns whether the virtqueue is packed.
    pub fn is_packed(&self) -> bool {
        self.has(VIRTIO_F_RING_PACKED)
    }

    pub(super) fn event_idx(&self) -> bool {
        self.has(VIRTIO_RING_F_EVENT_IDX)
    }

    pub(super) fn indirect(&self) -> bool {
        self.has(VIRTIO_RING_F_INDIRECT_DESC)
    }
}

/// A device's position in a virtqueue: the requests that it has taken, and those that it has
/// completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Position {
    /// The position in a split virtqueue.
    Split {
        /// The index of the available-ring entry that the device takes next.
        next_avail: u16,
        /// The index of the used-ring entry that the device writes next.
        next_used: u16,
    },
    /// The position in a packed virtqueue.
    Packed(uapi::PackedState),
}
