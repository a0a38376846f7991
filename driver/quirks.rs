// SPDX-License-Identifier: GPL-2.0

//! Quirks: the differences between a device as the daemon configured it and as the kernel's own
//! drivers see it.
//!
//! This module uses no kernel facilities, so that `selftests/driver-logic` can compile and test it
//! on the host as well.

use super::{
    net_ctrl,
    virtio::{
        device_id,
        feature, //
    },
};

/// The offset of the link status in a network card's configuration space, in bytes.
const NET_STATUS: usize = 6;
/// The bit in the first byte of the link status by which the device asks the driver for an
/// announcement.
const NET_STATUS_ANNOUNCE: u8 = 2;
/// The offset of `max_virtqueue_pairs` in a network card's configuration space, in bytes.
const NET_MAX_PAIRS: usize = 8;

/// Maximum number of virtqueue pairs of a network card for which kernel drivers are offered
/// `VIRTIO_NET_F_MQ`.
const MAX_PAIRS: u16 = 256;

/// A network card's control virtqueue, as kernel drivers see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ControlVq {
    /// The number of virtqueue pairs, if kernel drivers are offered `VIRTIO_NET_F_MQ`. With that
    /// feature, the control virtqueue comes after all pairs; without it, after the first pair.
    pub(crate) max_pairs: Option<u16>,
}

impl ControlVq {
    /// Returns all indexes that the control virtqueue can have. The features that the driver
    /// accepts decide which index is in use.
    pub(crate) fn indexes(&self) -> impl Iterator<Item = u32> {
        Iterator::chain(
            [2].into_iter(),
            self.max_pairs.map(|pairs| 2 * u32::from(pairs)),
        )
    }

    /// Returns the control virtqueue of a device, or [`None`] if the device has none. The device
    /// has `vq_num` virtqueues, and `space` is the initial content of its configuration space.
    ///
    /// The number of pairs does not change later, whatever the daemon writes to the configuration
    /// space. So the driver and this module agree on which virtqueue is the control virtqueue.
    pub(crate) fn of(device_id: u32, features: u64, vq_num: u32, space: &[u8]) -> Option<Self> {
        let has = |feature| features & feature != 0;
        if device_id != device_id::NET || !has(feature::NET_CTRL_VQ) || vq_num < 3 {
            return None;
        }

        // virtio_net allocates arrays for as many pairs as the device has, so the number is
        // limited.
        let max_pairs = space
            .get(NET_MAX_PAIRS..)
            .and_then(|field| field.first_chunk())
            .map(|&field| u16::from_le_bytes(field))
            .filter(|&pairs| has(feature::NET_MQ) && (1..=MAX_PAIRS).contains(&pairs))
            .filter(|&pairs| 2 * u32::from(pairs) < vq_num);

        Some(Self { max_pairs })
    }
}

/// The features that change the layout or the use of virtqueues in a way that a
/// [shadow](super::shadow) does not support.
const RINGS: u64 = feature::RING_PACKED | feature::IN_ORDER;

/// Returns the features of a device that are hidden from the kernel's own drivers. `control` is the
/// device's control virtqueue, if the device has one that can be [shadowed](super::shadow).
///
/// The packed layout is hidden from the driver of a disk: if a buffer of a request cannot be mapped
/// at the moment, virtio's core reports `EIO` for a packed virtqueue and `ENOMEM` for a split one.
/// Only then does virtio_blk try the request again; otherwise the request fails.
///
/// The hidden features of a network card, and why they are hidden:
///
/// - The control virtqueue, if it cannot be shadowed: virtio_net waits for the answer to a command
///   in a loop that only the device can end, with RTNL (the lock of all network configuration)
///   held. Without a shadow, a daemon that does not answer would block all network configuration.
/// - If the control virtqueue is shadowed, the features that the shadow does not support. These are
///   the features of [`feature::NET_CONTROL`] that are not in [`net_ctrl::FEATURES`], and the
///   features that change the layout or the use of virtqueues.
/// - If the control virtqueue is shadowed, also `VIRTIO_NET_F_MQ` if [`ControlVq::max_pairs`] is
///   [`None`], and `VIRTIO_NET_F_CTRL_MAC_ADDR` if the configuration space has no MAC address.
/// - Large packets, without mergeable buffers: when a large packet arrives in one buffer,
///   virtio_net trusts the length that the daemon reports. If the daemon reports a full buffer,
///   virtio_net writes beyond the array of the packet's fragments.
/// - Standby: a standby card takes over the host's own card with the same MAC address, and the
///   daemon can choose that address.
pub(crate) fn hidden_from_kernel(
    device_id: u32,
    features: u64,
    control: Option<&ControlVq>,
) -> u64 {
    match device_id {
        device_id::NET => (),
        device_id::BLOCK => return feature::RING_PACKED,
        _ => return 0,
    }

    let control = match control {
        None => feature::NET_CONTROL,
        Some(control) => {
            let pairs = match control.max_pairs {
                None => feature::NET_MQ,
                Some(_) => 0,
            };

            // If the configuration space has no MAC address, virtio_net's probe sets one by a
            // command, and the probe fails if the command fails.
            let address = match features & feature::NET_MAC {
                0 => feature::NET_CTRL_MAC_ADDR,
                _ => 0,
            };

            feature::NET_CONTROL & !net_ctrl::FEATURES | pairs | address | RINGS
        }
    };
    let large_packets = if features & feature::NET_MERGEABLE_BUFFERS == 0 {
        feature::NET_LARGE_PACKETS
    } else {
        0
    };

    control | large_packets | feature::NET_STANDBY
}

/// Returns sets of hidden features of a device, each with the reason why the set is hidden.
/// `hidden` is the result of [`hidden_from_kernel`] for the same `control`, or a part of that
/// result.
pub(crate) fn reasons(
    hidden: u64,
    control: Option<&ControlVq>,
) -> impl Iterator<Item = (u64, &'static str)> {
    let is_shadowed = control.is_some();
    let sets = [
        (
            RINGS,
            if is_shadowed {
                "the control virtqueue is shadowed, which such virtqueues cannot be"
            } else {
                "a request would fail, and not wait, if memory is short"
            },
        ),
        (
            feature::NET_MQ,
            if is_shadowed {
                "max_virtqueue_pairs is above 256, or does not fit the number of virtqueues"
            } else {
                "there is no control virtqueue that could be shadowed"
            },
        ),
        (
            feature::NET_CONTROL
                & net_ctrl::FEATURES
                & !feature::NET_MQ
                & !feature::NET_CTRL_MAC_ADDR,
            "there is no control virtqueue that could be shadowed",
        ),
        (
            feature::NET_CTRL_MAC_ADDR,
            if is_shadowed {
                "the card has no address of its own"
            } else {
                "there is no control virtqueue that could be shadowed"
            },
        ),
        (
            feature::NET_CTRL_OTHERS,
            "their commands must be carried out, or answered with data",
        ),
        (
            feature::NET_GUEST_ANNOUNCE,
            "virtio_net can be made to wait for itself by an announcement",
        ),
        (
            feature::NET_LARGE_PACKETS,
            "a large packet in one buffer takes the daemon's word for its length",
        ),
        (
            feature::NET_STANDBY,
            "the card could take the host's own card over",
        ),
    ];

    sets.into_iter()
        .map(move |(set, reason)| (set & hidden, reason))
        .filter(|&(set, _)| set != 0)
}

/// The limits of one request of a kernel driver.
///
/// Kernel drivers do not check whether a request can fit at all. They retry a request indefinitely
/// if its descriptors do not fit into the virtqueue. virtio_blk does the same if the request's
/// buffers do not fit into the bounce area. If memory is short, the buffers must fit into the
/// area's reserve, as the kernel may be waiting for this request in order to free memory.
#[derive(Clone, Copy)]
pub(crate) struct RequestLimits {
    /// The size of the bounce area, in pages.
    pub(crate) pages: usize,
    /// The number of mappings for which the bounce area always has room, and memory if the area has
    /// a reserve.
    pub(crate) mappings: usize,
    /// The size of the shortest virtqueue, in descriptors.
    pub(crate) shortest_vq: u16,
    /// Whether a request can have an indirect descriptor table (`VIRTIO_F_INDIRECT_DESC`).
    pub(crate) indirect: bool,
}

impl RequestLimits {
    /// Returns the maximum number of data segments in a request to a block device; 0 if no request
    /// fits.
    ///
    /// Three mappings are left for the request's header and status (section 5.2.6), and for its
    /// indirect descriptor table, which must be no longer than a page.
    ///
    /// If memory is short, a driver makes a request without an indirect descriptor table even if
    /// `VIRTIO_F_INDIRECT_DESC` was negotiated. So the virtqueue must have room for all descriptors
    /// of a request. By this rule, a virtqueue of fewer than three descriptors would have no room
    /// for a data segment. If `indirect` is set, the rule treats such a virtqueue as if it had
    /// three descriptors, so that the device is of use at least while memory is not short.
    fn segments(&self) -> usize {
        let least = if self.indirect { 3 } else { 0 };
        let descriptors = usize::from(self.shortest_vq.max(least));

        self.mappings
            .saturating_sub(3)
            .min(descriptors.saturating_sub(2))
            .min(254)
    }

    /// Returns the size of each virtqueue as virtiofs must see it, in descriptors; 0 if virtiofs
    /// cannot use the virtqueues.
    ///
    /// virtiofs limits the number of data pages in a request to the number of descriptors of the
    /// first request queue, less 4. So all virtqueues get the size of the shortest one. Each data
    /// page can take two pages of the bounce area, and one request takes at most a quarter of the
    /// area.
    ///
    /// If the file system's daemon does not specify a maximum number of data pages, a request has
    /// up to 32 data pages, and some more descriptors. Without an indirect descriptor table, all of
    /// these descriptors must fit into the virtqueue.
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

    /// Returns the size that kernel drivers must see of a virtqueue of `size` descriptors, or 0 if
    /// kernel drivers cannot use the virtqueue.
    pub(crate) fn vq_size(&self, device_id: u32, size: u16) -> u16 {
        match device_id {
            device_id::BLOCK if self.segments() == 0 => 0,
            device_id::FS => self.fs_vq_size().min(size),
            _ => size,
        }
    }
}

/// Returns the field at byte `at` of a configuration space, or [`None`] if `buf` does not contain
/// the whole field. `buf` is the part of the configuration space from byte `offset` on.
fn field<const N: usize>(at: usize, offset: usize, buf: &mut [u8]) -> Option<&mut [u8; N]> {
    buf.get_mut(at.checked_sub(offset)?..)?.first_chunk_mut()
}

/// The properties of a device that decide what kernel drivers read from its configuration space.
pub(crate) trait KernelView {
    /// Returns the limits of one request of a kernel driver.
    fn request_limits(&self) -> RequestLimits;
    /// Returns the control virtqueue, if the device has one that can be shadowed.
    fn control(&self) -> Option<&ControlVq>;
}

/// Replaces the values in `buf` that kernel drivers cannot handle. `buf` is the part of a device's
/// configuration space from byte `offset` on. Fields that are only partly in `buf` are left as they
/// are: drivers read whole fields, one or more at a time.
pub(crate) fn hide_from_kernel(
    device_id: u32,
    view: &impl KernelView,
    offset: usize,
    buf: &mut [u8],
) {
    match device_id {
        device_id::NET => {
            // The bit of the link status by which the device asks for an announcement (section
            // 5.1.4). virtio_net acknowledges the bit through the control virtqueue without
            // checking that there is one, and hits its own `BUG_ON`. `net_ctrl::FEATURES` says why
            // the bit is cleared even if there is a control virtqueue.
            if let Some([status, _]) = field(NET_STATUS, offset, buf) {
                *status &= !NET_STATUS_ANNOUNCE;
            }
            if let Some(max_pairs) = view.control().and_then(|control| control.max_pairs) {
                if let Some(to) = field(NET_MAX_PAIRS, offset, buf) {
                    *to = max_pairs.to_le_bytes();
                }
            }
        }
        device_id::BLOCK => {
            // The maximum size of a segment, in bytes (section 5.2.4). The block layer warns if
            // this is below 4096.
            if let Some(size_max) = field(8, offset, buf) {
                *size_max = u32::from_le_bytes(*size_max).max(4096).to_le_bytes();
            }
            // The maximum number of segments of a request. If the device does not offer
            // `VIRTIO_BLK_F_SEG_MAX`, virtio_blk does not use this field, and a request has 1
            // segment.
            if let Some(seg_max) = field(12, offset, buf) {
                let most = u32::try_from(view.request_limits().segments()).unwrap_or(u32::MAX);

                *seg_max = u32::from_le_bytes(*seg_max).min(most).to_le_bytes();
            }
            // The exponent of the physical block size. virtio_blk shifts by the exponent without
            // checking it.
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
            hide_from_kernel(device_id, &View::default(), offset, &mut buf);
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
        assert_eq!(seen(device_id::BLOCK, 10, 0xff), [0xff, 0xff, 50, 0, 0, 0]);
        assert_eq!(seen(device_id::BLOCK, 12, 0x00), [0; 6]);
        hide_from_kernel(device_id::NET, &View::default(), 6, &mut []);
    }

    /// A device with the request limits [`LIMITS`], and with the given control virtqueue, if any.
    #[derive(Default)]
    struct View {
        control: Option<ControlVq>,
    }

    impl KernelView for View {
        fn request_limits(&self) -> RequestLimits {
            LIMITS
        }

        fn control(&self) -> Option<&ControlVq> {
            self.control.as_ref()
        }
    }

    #[test]
    fn a_card_with_a_control_virtqueue_has_the_pairs_that_it_had_at_first() {
        let seen = |max_pairs| {
            let mut buf = [0xff; 4];
            let view = View {
                control: Some(ControlVq { max_pairs }),
            };
            hide_from_kernel(device_id::NET, &view, 6, &mut buf);
            buf
        };
        assert_eq!(seen(Some(0x102)), [0xfd, 0xff, 2, 1]);
        assert_eq!(seen(None), [0xfd, 0xff, 0xff, 0xff]);
    }

    #[test]
    fn a_control_virtqueue_follows_the_pairs() {
        const MQ: u64 = feature::NET_CTRL_VQ | feature::NET_MQ;
        let of = |features, vq_num, pairs: u16| {
            let space = [&[0; 8][..], &pairs.to_le_bytes(), &[0; 2]].concat();
            ControlVq::of(device_id::NET, features, vq_num, &space).map(|vq| vq.max_pairs)
        };
        assert_eq!(of(MQ, 9, 4), Some(Some(4)));
        assert_eq!(of(MQ, 10, 4), Some(Some(4)));
        assert_eq!(of(MQ, 3, 1), Some(Some(1)));
        assert_eq!(of(MQ, 8, 4), Some(None));
        assert_eq!(of(MQ, 9, 0), Some(None));
        assert_eq!(of(MQ, u32::MAX, 256), Some(Some(256)));
        assert_eq!(of(MQ, u32::MAX, 257), Some(None));
        assert_eq!(of(MQ, 2, 1), None);
        assert_eq!(of(feature::NET_CTRL_VQ, 9, 4), Some(None));
        assert_eq!(of(feature::NET_MQ, 9, 4), None);
        let short = ControlVq::of(device_id::NET, MQ, 9, &[1; 9]);
        assert_eq!(short, Some(ControlVq { max_pairs: None }));
        assert_eq!(ControlVq::of(device_id::BLOCK, MQ, 9, &[1; 12]), None);
    }

    /// The limits with the default bounce area, a reserve of 53 pages, and a virtqueue of 256
    /// descriptors.
    const LIMITS: RequestLimits = RequestLimits {
        pages: 16384,
        mappings: 53,
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

        assert_eq!(segments(53, 1024, true), (50, 64));
        assert_eq!(segments(512, 1024, true), (254, 64));
        assert_eq!(segments(1023, 1024, false), (254, 64));
        assert_eq!(segments(256, 1024, true), (253, 64));
        assert_eq!(segments(512, 128, true), (126, 64));
        assert_eq!(segments(512, 3, false), (1, 64));
        assert_eq!(segments(512, 2, false), (0, 0));
        assert_eq!(segments(512, 2, true), (1, 64));
        assert_eq!(segments(512, 0, false), (0, 0));
        // A request of one segment needs four mappings: table, header, segment and status.
        assert_eq!(segments(4, 256, true), (1, 64));
        assert_eq!(segments(3, 256, true), (0, 0));
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
        // The virtqueues of a network card keep their size.
        assert_eq!(
            RequestLimits { pages: 0, ..LIMITS }.vq_size(device_id::NET, 256),
            256
        );
    }

    fn hidden(features: u64, control: Option<ControlVq>) -> Vec<u32> {
        let hidden = hidden_from_kernel(device_id::NET, features, control.as_ref());
        let explained: u64 = reasons(hidden, control.as_ref()).map(|(set, _)| set).sum();
        assert_eq!(explained, hidden, "each is explained once");
        (0..64).filter(|bit| hidden >> bit & 1 != 0).collect()
    }

    #[test]
    fn without_a_shadow_the_control_virtqueue_is_hidden_with_all_that_needs_it() {
        assert_eq!(
            hidden(feature::NET_MERGEABLE_BUFFERS, None),
            [2, 17, 18, 19, 20, 21, 22, 23, 50, 52, 53, 57, 60, 62]
        );
        assert_eq!(
            hidden(0, None),
            [2, 7, 8, 9, 10, 17, 18, 19, 20, 21, 22, 23, 50, 52, 53, 54, 55, 57, 60, 62]
        );
        // For disks and file systems, these feature bits have other meanings, so they are not
        // hidden.
        let of_disk = hidden_from_kernel(device_id::BLOCK, !0, None);
        assert_eq!(of_disk, feature::RING_PACKED);
        assert_eq!(reasons(of_disk, None).count(), 1);
        assert_eq!(hidden_from_kernel(device_id::FS, 0, None), 0);
    }

    #[test]
    fn with_a_shadow_only_what_it_cannot_do_is_hidden() {
        let mergeable = feature::NET_MERGEABLE_BUFFERS | feature::NET_MAC;
        let with = |max_pairs| Some(ControlVq { max_pairs });
        assert_eq!(
            hidden(mergeable, with(Some(4))),
            [2, 21, 34, 35, 50, 52, 53, 57, 60, 62]
        );
        assert_eq!(
            hidden(mergeable, with(None)),
            [2, 21, 22, 34, 35, 50, 52, 53, 57, 60, 62]
        );
        assert_eq!(
            hidden(0, with(Some(1))),
            [2, 7, 8, 9, 10, 21, 23, 34, 35, 50, 52, 53, 54, 55, 57, 60, 62]
        );
    }
}
