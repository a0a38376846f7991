// SPDX-License-Identifier: GPL-2.0

//! Quirks: the differences between a device as the daemon configured it and as the kernel's own
//! drivers see it.
//!
//! This module uses no kernel facilities, so that `selftests/driver-logic` can compile and test it
//! on the host as well.

use super::config::{
    device_id,
    feature, //
};

/// Returns the features of a device that are hidden from the kernel's own drivers.
///
/// virtio_net waits indefinitely for the answer to a command, in a loop that only the device can
/// end, with the lock of all network configuration held. So a daemon that does not answer would
/// hang more than itself. A virtual machine waits at its own expense. And a standby card takes over
/// the host's own card of the same address, which the daemon can choose.
///
/// When a large packet arrives in one buffer, virtio_net takes the daemon's word for how much of
/// the buffer is full, and writes beyond the packet's fragments if all of the buffer is.
pub(crate) fn hidden_from_kernel(device_id: u32, features: u64) -> u64 {
    match device_id {
        device_id::NET if features & feature::NET_MERGEABLE_BUFFERS == 0 => {
            feature::NET_CONTROL | feature::NET_STANDBY | feature::NET_LARGE_PACKETS
        }
        device_id::NET => feature::NET_CONTROL | feature::NET_STANDBY,
        _ => 0,
    }
}

/// The limits of one request of the kernel's own drivers.
///
/// These drivers do not check whether a request can be made at all. A request whose descriptors do
/// not fit into the virtqueue is retried forever, and so is a request of virtio_blk whose buffers
/// do not fit into the bounce area.
#[derive(Clone, Copy)]
pub(crate) struct RequestLimits {
    /// The size of the bounce area, in pages.
    pub(crate) pages: usize,
    /// The number of times that the largest mapping fits into the bounce area. One mapping less is
    /// available, as page 0 is never used.
    pub(crate) mappings: usize,
    /// The size of the shortest virtqueue, in descriptors.
    pub(crate) shortest_vq: u16,
    /// Whether a request can have a descriptor table of its own.
    pub(crate) indirect: bool,
}

impl RequestLimits {
    /// Returns the maximum number of data segments of a block device's request, beside the
    /// request's header and status (section 5.2.6) and its descriptor table, which must be no
    /// longer than a page. The segments take half of the area, if there is room for more than one
    /// at all.
    ///
    /// A request that can have a table goes without one when the kernel is short of memory, so the
    /// virtqueue must have room for the whole request. The shortest virtqueues are exempt, as they
    /// would be of no use otherwise.
    fn segments(&self) -> usize {
        let least = if self.indirect { 3 } else { 0 };
        let descriptors = usize::from(self.shortest_vq.max(least));

        (self.mappings / 2)
            .min(self.mappings.saturating_sub(4))
            .min(descriptors.saturating_sub(2))
            .min(254)
    }

    /// Returns the size that virtqueues must have for virtiofs, or 0 if virtiofs cannot use them.
    ///
    /// virtiofs puts no more pages of data into a request than the first request queue has
    /// descriptors, less 4, so all virtqueues are made as long as the shortest. Each page of data
    /// can take two pages of the area, and half of that stays for other requests. If a daemon does
    /// not specify a number of pages, a request has up to 32 pages and some more descriptors, which
    /// must fit if there is no table.
    fn fs_vq_size(&self) -> u16 {
        let Some(order) = (self.pages / 8).checked_ilog2() else {
            return 0;
        };
        let size = u16::try_from(1u64 << order)
            .unwrap_or(self.shortest_vq)
            .min(self.shortest_vq);
        let least = if self.indirect { 8 } else { 64 };

        if size < least {
            0
        } else {
            size
        }
    }

    /// Returns the size that a virtqueue of `size` descriptors must have for the kernel's own
    /// drivers, or 0 if they cannot use the virtqueue.
    pub(crate) fn vq_size(&self, device_id: u32, size: u16) -> u16 {
        match device_id {
            device_id::BLOCK if self.segments() == 0 => 0,
            device_id::FS => self.fs_vq_size().min(size),
            _ => size,
        }
    }
}

/// Returns the field at `at` of a configuration space, if `buf`, the part of the space from
/// `offset` on, contains the field.
fn field<const N: usize>(at: usize, offset: usize, buf: &mut [u8]) -> Option<&mut [u8; N]> {
    buf.get_mut(at.checked_sub(offset)?..)?.first_chunk_mut()
}

/// Changes the values that the kernel's own drivers cannot deal with in `buf`, the part of a
/// device's configuration space from `offset` on. Drivers read a field at a time, or more.
pub(crate) fn hide_from_kernel(
    device_id: u32,
    limits: impl FnOnce() -> RequestLimits,
    offset: usize,
    buf: &mut [u8],
) {
    match device_id {
        device_id::NET => {
            // The bit of the link status that asks for an announcement (section 5.1.4), in little
            // endian. virtio_net obeys the bit whether or not there is a control virtqueue to
            // acknowledge it with, and hits its own `BUG_ON`.
            if let Some([status, _]) = field(6, offset, buf) {
                *status &= !2;
            }
        }
        device_id::BLOCK => {
            // The largest segment (section 5.2.4): the block layer warns of a value below 4096.
            if let Some(size_max) = field(8, offset, buf) {
                *size_max = u32::from_le_bytes(*size_max).max(4096).to_le_bytes();
            }
            // The maximum number of segments of a request. A driver that is not offered this field
            // uses 1.
            if let Some(seg_max) = field(12, offset, buf) {
                let most = u32::try_from(limits().segments()).unwrap_or(u32::MAX);

                *seg_max = u32::from_le_bytes(*seg_max).min(most).to_le_bytes();
            }
            // The exponent of the physical block size, which virtio_blk shifts by.
            if let Some([exponent]) = field(24, offset, buf) {
                *exponent = (*exponent).min(15);
            }
        }
        _ => (),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_changed_wherever_reading_begins() {
        let seen = |device_id, offset, byte| {
            let mut buf = [byte; 6];
            hide_from_kernel(device_id, || LIMITS, offset, &mut buf);
            buf
        };
        let ones = [0xff; 6];

        assert_eq!(seen(device_id::NET, 0, 0xff), ones);
        assert_eq!(
            seen(device_id::NET, 3, 0xff),
            [0xff, 0xff, 0xff, 0xfd, 0xff, 0xff]
        );
        assert_eq!(
            seen(device_id::NET, 6, 0xff),
            [0xfd, 0xff, 0xff, 0xff, 0xff, 0xff]
        );
        assert_eq!(seen(device_id::NET, 7, 0xff), ones);
        assert_eq!(seen(device_id::NET, usize::MAX, 0xff), ones);
        assert_eq!(seen(device_id::FS, 6, 0xff), ones);

        assert_eq!(seen(device_id::BLOCK, 6, 0xff), ones);
        assert_eq!(seen(device_id::BLOCK, 6, 0), [0, 0, 0, 0x10, 0, 0]);
        assert_eq!(seen(device_id::BLOCK, 8, 0x1), [1; 6]);
        assert_eq!(seen(device_id::BLOCK, 9, 0), [0; 6]);
        assert_eq!(
            seen(device_id::BLOCK, 22, 0xff),
            [0xff, 0xff, 15, 0xff, 0xff, 0xff]
        );
        assert_eq!(seen(device_id::BLOCK, 10, 0xff), [0xff, 0xff, 254, 0, 0, 0]);
        assert_eq!(seen(device_id::BLOCK, 12, 0x00), [0; 6]);
        hide_from_kernel(device_id::NET, || LIMITS, 6, &mut []);
    }

    /// The limits with the default bounce area and a virtqueue of 256 descriptors.
    const LIMITS: RequestLimits = RequestLimits {
        pages: 16384,
        mappings: 512,
        shortest_vq: 256,
        indirect: true,
    };

    #[test]
    fn requests_have_as_many_segments_as_there_is_room_for() {
        let segments = |mappings, shortest_vq, indirect| {
            let limits = RequestLimits {
                pages: mappings,
                mappings,
                shortest_vq,
                indirect,
            };
            (limits.segments(), limits.vq_size(device_id::BLOCK, 64))
        };

        assert_eq!(segments(512, 1024, true), (254, 64));
        assert_eq!(segments(1023, 1024, false), (254, 64));
        assert_eq!(segments(128, 1024, true), (64, 64));
        assert_eq!(segments(512, 128, true), (126, 64));
        assert_eq!(segments(512, 3, false), (1, 64));
        assert_eq!(segments(512, 2, false), (0, 0));
        assert_eq!(segments(512, 2, true), (1, 64));
        assert_eq!(segments(512, 0, false), (0, 0));
        // One mapping each for table, header, segment and status; the first one of the area is
        // unusable.
        assert_eq!(segments(5, 256, true), (1, 64));
        assert_eq!(segments(4, 256, true), (0, 0));
        assert_eq!(segments(0, 256, true), (0, 0));
    }

    #[test]
    fn virtqueues_of_file_systems_are_as_long_as_there_is_room_for() {
        let size = |pages, shortest_vq, indirect| {
            let limits = RequestLimits {
                pages,
                shortest_vq,
                indirect,
                ..LIMITS
            };
            limits.vq_size(device_id::FS, 4096)
        };

        assert_eq!(size(16384, 1024, true), 1024);
        assert_eq!(size(16384, 4096, true), 2048);
        assert_eq!(size(256, 1024, true), 32);
        assert_eq!(size(300, 1024, true), 32);
        assert_eq!(size(64, 1024, true), 8);
        assert_eq!(size(63, 1024, true), 0);
        assert_eq!(size(0, 1024, true), 0);
        assert_eq!(size(16384, 4, true), 0);
        assert_eq!(size(16384, 64, false), 64);
        assert_eq!(size(16384, 32, false), 0);
        assert_eq!(size(256, 1024, false), 0);
        assert_eq!(size(usize::MAX, 0x8000, true), 4096);
        // Other device types get the size that there is.
        assert_eq!(
            RequestLimits { pages: 0, ..LIMITS }.vq_size(device_id::NET, 256),
            256
        );
    }

    #[test]
    fn the_control_virtqueue_is_hidden_with_all_that_needs_it() {
        let hidden = |features| {
            let hidden = hidden_from_kernel(device_id::NET, features);
            (0..64)
                .filter(|bit| hidden >> bit & 1 != 0)
                .collect::<Vec<u32>>()
        };

        assert_eq!(
            hidden(feature::NET_MERGEABLE_BUFFERS),
            [2, 17, 18, 19, 20, 21, 22, 23, 50, 52, 53, 57, 60, 62]
        );
        assert_eq!(
            hidden(0),
            [2, 7, 8, 9, 10, 17, 18, 19, 20, 21, 22, 23, 50, 52, 53, 54, 55, 57, 60, 62]
        );
        // The same bits mean something else for these device types.
        assert_eq!(hidden_from_kernel(device_id::BLOCK, !0), 0);
        assert_eq!(hidden_from_kernel(device_id::FS, 0), 0);
    }
}
