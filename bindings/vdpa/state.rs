// SPDX-License-Identifier: GPL-2.0

//! The state of a virtqueue: where its parts are, and the device's position in them.
//!
//! C header: [`include/linux/vdpa.h`](srctree/include/linux/vdpa.h)

use super::super::raw as bindings;

/// The addresses of the parts of a virtqueue: I/O virtual addresses (virtio 1.3, sections 2.6 to
/// 2.8).
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct VqAddress {
    /// The descriptor area.
    pub(crate) desc: u64,
    /// The driver area.
    pub(crate) driver: u64,
    /// The device area.
    pub(crate) device: u64,
}

/// A position in a packed ring (virtio 1.3, section 2.8.1).
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct PackedPosition {
    /// The wrap counter, 0 or 1.
    pub(crate) wrap_counter: u16,
    /// The index of a descriptor, 15 bits.
    pub(crate) index: u16,
}

impl PackedPosition {
    /// Returns the position as one word. Bits that do not fit are dropped.
    fn to_word(self) -> u16 {
        (self.wrap_counter & 1) | (self.index << 1)
    }

    fn from_word(word: u16) -> Self {
        Self {
            wrap_counter: word & 1,
            index: word >> 1,
        }
    }
}

/// The position of a device in a virtqueue. The layout, split or packed, depends on the features.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
#[repr(transparent)]
pub(crate) struct VqState {
    /// Split: the available index, then 0. Packed: the available position, then the used one; each
    /// is an index of 15 bits, above a wrap counter of one bit.
    words: [u16; 2],
}

impl VqState {
    /// Creates the state of a split virtqueue.
    pub(crate) fn from_split(avail_index: u16) -> Self {
        Self {
            words: [avail_index, 0],
        }
    }

    /// Creates the state of a packed virtqueue: the position in the driver's ring, and that of the
    /// next used descriptor. Bits that do not fit are dropped.
    pub(crate) fn from_packed(avail: PackedPosition, used: PackedPosition) -> Self {
        Self {
            words: [avail.to_word(), used.to_word()],
        }
    }

    /// Returns the state of a split virtqueue: the available index.
    pub(crate) fn split(self) -> u16 {
        self.words[0]
    }

    /// Returns the state of a packed virtqueue: the position in the driver's ring, and that of the
    /// next used descriptor.
    pub(crate) fn packed(self) -> (PackedPosition, PackedPosition) {
        let [avail, used] = self.words;

        (
            PackedPosition::from_word(avail),
            PackedPosition::from_word(used),
        )
    }

    /// Reads a state from the C structure.
    ///
    /// # Safety
    ///
    /// `ptr` must be valid for reads of the member of the union that `packed` selects, and that
    /// member must be initialised. Callers leave the rest uninitialised.
    pub(super) unsafe fn from_raw(ptr: *const bindings::vdpa_vq_state, packed: bool) -> Self {
        const { assert!(size_of::<Self>() <= size_of::<bindings::vdpa_vq_state>()) };
        // C lays its bit fields out from the lowest bit of each word on.
        const { assert!(cfg!(target_endian = "little")) };

        if packed {
            // SAFETY: By the safety requirements; the bit fields are these words.
            unsafe { ptr.cast::<Self>().read() }
        } else {
            // SAFETY: By the safety requirements; the available index is the first word.
            Self::from_split(unsafe { ptr.cast::<u16>().read() })
        }
    }

    /// Writes the state to the C structure.
    ///
    /// # Safety
    ///
    /// `ptr` must be valid for writes.
    pub(super) unsafe fn write_to(self, ptr: *mut bindings::vdpa_vq_state) {
        // SAFETY: By the safety requirements; the layout is as in `from_raw`.
        unsafe { ptr.cast::<Self>().write(self) }
    }
}
