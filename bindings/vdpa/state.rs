// SPDX-License-Identifier: GPL-2.0

//! The state of a virtqueue: the addresses of its parts, and the device's position in the
//! virtqueue.
//!
//! C header: [`include/linux/vdpa.h`](srctree/include/linux/vdpa.h)

use super::super::raw as bindings;

/// The I/O virtual addresses of the parts of a virtqueue (virtio 1.3, sections 2.6 to 2.8).
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
    /// Returns the position as one word, with the wrap counter in the lowest bit. Bits that do not
    /// fit are dropped.
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

/// The position of a device in a virtqueue. The layout, split or packed, depends on the negotiated
/// features.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
#[repr(transparent)]
pub(crate) struct VqState {
    /// For a split virtqueue, the words are the available index and 0. For a packed virtqueue, the
    /// words are the positions of the next available and the next used descriptor. The lowest bit
    /// of a position is the wrap counter, and the other 15 bits are the index.
    words: [u16; 2],
}

impl VqState {
    /// Creates the state of a split virtqueue.
    pub(crate) fn from_split(avail_index: u16) -> Self {
        Self {
            words: [avail_index, 0],
        }
    }

    /// Creates the state of a packed virtqueue from the positions of the next available and the
    /// next used descriptor. Bits that do not fit are dropped.
    pub(crate) fn from_packed(avail: PackedPosition, used: PackedPosition) -> Self {
        Self {
            words: [avail.to_word(), used.to_word()],
        }
    }

    /// Returns the available index of a split virtqueue.
    pub(crate) fn split(self) -> u16 {
        self.words[0]
    }

    /// Returns the positions of the next available and the next used descriptor of a packed
    /// virtqueue.
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
    /// member must be initialised. The rest of the union may be uninitialised.
    pub(super) unsafe fn from_raw(ptr: *const bindings::vdpa_vq_state, packed: bool) -> Self {
        const { assert!(size_of::<Self>() <= size_of::<bindings::vdpa_vq_state>()) };
        // On a little-endian machine, C bit fields begin at the lowest bit of each word.
        const { assert!(cfg!(target_endian = "little")) };

        if packed {
            // SAFETY: By the safety requirements, the packed member is initialised. Its bit fields
            // have the layout of `words`.
            unsafe { ptr.cast::<Self>().read() }
        } else {
            // SAFETY: By the safety requirements, the split member is initialised. Its available
            // index is the first word.
            Self::from_split(unsafe { ptr.cast::<u16>().read() })
        }
    }

    /// Writes the state to the C structure.
    ///
    /// # Safety
    ///
    /// `ptr` must be valid for writes.
    pub(super) unsafe fn write_to(self, ptr: *mut bindings::vdpa_vq_state) {
        // SAFETY: By the safety requirements, `ptr` is valid for writes. The layout is as in
        // `from_raw`.
        unsafe { ptr.cast::<Self>().write(self) }
    }
}
