// SPDX-License-Identifier: GPL-2.0

//! The numbers of the virtio specification that the driver knows: device ids and feature bits.
//!
//! This module uses no kernel facilities, so that `selftests/driver-logic` can compile and test it
//! on the host as well.

/// Virtio device ids (virtio 1.3, section 5).
pub(crate) mod device_id {
    /// A network card.
    pub(crate) const NET: u32 = 1;
    /// A block device.
    pub(crate) const BLOCK: u32 = 2;
    /// A file system.
    pub(crate) const FS: u32 = 26;
}

/// Feature bits (virtio 1.3, sections 5.1.3, 5.2.3 and 6).
pub(crate) mod feature {
    /// Block: the driver may switch between write-back and write-through caching, by writing to the
    /// configuration space.
    pub(crate) const BLK_CONFIG_WCE: u64 = 1 << 11;
    /// Net: the configuration space has the card's MAC address.
    pub(crate) const NET_MAC: u64 = 1 << 5;
    /// Net: there is a control virtqueue.
    pub(crate) const NET_CTRL_VQ: u64 = 1 << 17;
    /// Net: the driver may set receive modes and filter tables of MAC addresses.
    pub(crate) const NET_CTRL_RX: u64 = 1 << 18;
    /// Net: the driver may set a filter of VLAN ids.
    pub(crate) const NET_CTRL_VLAN: u64 = 1 << 19;
    /// Net: the driver may set the receive modes that `NET_CTRL_RX` does not cover.
    pub(crate) const NET_CTRL_RX_EXTRA: u64 = 1 << 20;
    /// Net: the device may ask the driver to announce itself on the network. The driver
    /// acknowledges the request.
    pub(crate) const NET_GUEST_ANNOUNCE: u64 = 1 << 21;
    /// Net: there can be more than one pair of virtqueues.
    pub(crate) const NET_MQ: u64 = 1 << 22;
    /// Net: the driver may set the card's MAC address.
    pub(crate) const NET_CTRL_MAC_ADDR: u64 = 1 << 23;
    /// Net: the control virtqueue, and all features that use it (section 5.1.3.1, and later
    /// additions). With some of these bits, virtio_net uses the control virtqueue without checking
    /// that the device has one, and hits its own `BUG_ON`.
    pub(crate) const NET_CONTROL: u64 = NET_CTRL_VQ
        | NET_CTRL_RX
        | NET_CTRL_VLAN
        | NET_CTRL_RX_EXTRA
        | NET_GUEST_ANNOUNCE
        | NET_MQ
        | NET_CTRL_MAC_ADDR
        | NET_CTRL_OTHERS;
    /// Net: the features of [`NET_CONTROL`] whose commands the daemon must carry out, or must
    /// answer with data on which the driver relies.
    pub(crate) const NET_CTRL_OTHERS: u64 = 1 << 2 // offloads that change at run time
        | 1 << 50 // device statistics
        | 1 << 52 // interrupt coalescing of one virtqueue
        | 1 << 53 // interrupt coalescing
        | 1 << 57 // hash reports
        | 1 << 60; // receive side scaling
    /// Net: the features that allow the driver to receive packets larger than the MTU of the link
    /// (section 5.1.3).
    pub(crate) const NET_LARGE_PACKETS: u64 = 1 << 7 // TCP over IPv4
        | 1 << 8 // TCP over IPv6
        | 1 << 9 // TCP with ECN
        | 1 << 10 // UDP fragments
        | 1 << 54 // UDP segments over IPv4
        | 1 << 55; // UDP segments over IPv6
    /// Net: a packet may be spread over several buffers.
    pub(crate) const NET_MERGEABLE_BUFFERS: u64 = 1 << 15;
    /// Net: the card is a standby for another card with the same MAC address (section 5.1.3).
    pub(crate) const NET_STANDBY: u64 = 1 << 62;
    /// Any device: a request may have a descriptor table of its own, outside the virtqueue.
    pub(crate) const INDIRECT_DESC: u64 = 1 << 28;
    /// Any device: the device follows virtio 1.0 or later, and not the legacy interface.
    pub(crate) const VERSION_1: u64 = 1 << 32;
    /// Any device: the device accesses memory through address translation.
    pub(crate) const ACCESS_PLATFORM: u64 = 1 << 33;
    /// Any device: virtqueues have the packed layout.
    pub(crate) const RING_PACKED: u64 = 1 << 34;
    /// Any device: the device uses buffers in the order in which the driver made them available.
    pub(crate) const IN_ORDER: u64 = 1 << 35;
}
