// SPDX-License-Identifier: GPL-2.0

//! Constants of the virtio specification.

/// Device ids (virtio 1.3, section 5).
pub mod id {
    /// A network card.
    pub const NET: u32 = 1;
    /// A disk.
    pub const BLOCK: u32 = 2;
    /// A console, which VDUSE does not support.
    pub const CONSOLE: u32 = 3;
    /// A file system.
    pub const FS: u32 = 26;
}

/// The device status (virtio 1.3, section 2.1).
pub mod status {
    /// No status bits. A driver writes this value to reset the device.
    pub const RESET: u8 = 0;
    /// The driver has seen the device.
    pub const ACKNOWLEDGE: u8 = 1;
    /// The driver is able to drive the device.
    pub const DRIVER: u8 = 2;
    /// The driver is ready.
    pub const DRIVER_OK: u8 = 4;
    /// Feature negotiation is complete.
    pub const FEATURES_OK: u8 = 8;
    /// The driver has given up.
    pub const FAILED: u8 = 128;

    /// The status bits that a driver has set once it has set [`FEATURES_OK`].
    pub const UP_TO_FEATURES_OK: u8 = ACKNOWLEDGE | DRIVER | FEATURES_OK;
    /// The status bits that a driver has set once it has set [`DRIVER_OK`].
    pub const UP_TO_DRIVER_OK: u8 = UP_TO_FEATURES_OK | DRIVER_OK;
}

/// Feature bits (virtio 1.3, sections 5.1.3, 5.2.3, 6).
pub mod feature {
    /// A network card accepts packets without a checksum.
    pub const NET_CSUM: u64 = 1 << 0;
    /// The driver accepts packets without a checksum.
    pub const NET_GUEST_CSUM: u64 = 1 << 1;
    /// The driver can change its offloads by commands of the control queue.
    pub const NET_CTRL_GUEST_OFFLOADS: u64 = 1 << 2;
    /// A network card has a MAC address.
    pub const NET_MAC: u64 = 1 << 5;
    /// The driver accepts several TCP segments over IPv4 in one packet.
    pub const NET_GUEST_TSO4: u64 = 1 << 7;
    /// The driver accepts several TCP segments over IPv6 in one packet.
    pub const NET_GUEST_TSO6: u64 = 1 << 8;
    /// The driver accepts several TCP segments with ECN in one packet.
    pub const NET_GUEST_ECN: u64 = 1 << 9;
    /// The driver accepts several UDP fragments in one packet.
    pub const NET_GUEST_UFO: u64 = 1 << 10;
    /// A received packet may be spread over several buffers.
    pub const NET_MRG_RXBUF: u64 = 1 << 15;
    /// A network card has a link status.
    pub const NET_STATUS: u64 = 1 << 16;
    /// A network card has a control queue.
    pub const NET_CTRL_VQ: u64 = 1 << 17;
    /// The control queue has commands that select which packets the card receives.
    pub const NET_CTRL_RX: u64 = 1 << 18;
    /// The control queue has commands that configure VLAN filtering.
    pub const NET_CTRL_VLAN: u64 = 1 << 19;
    /// The control queue has additional commands that select which packets the card receives.
    pub const NET_CTRL_RX_EXTRA: u64 = 1 << 20;
    /// The driver can announce the card's address on the network when the device requests it.
    pub const NET_GUEST_ANNOUNCE: u64 = 1 << 21;
    /// A network card has several pairs of queues.
    pub const NET_MQ: u64 = 1 << 22;
    /// The control queue has a command that sets the MAC address.
    pub const NET_CTRL_MAC_ADDR: u64 = 1 << 23;
    /// The control queue has commands that return statistics.
    pub const NET_DEVICE_STATS: u64 = 1 << 50;
    /// The control queue has commands that set the interrupt moderation of a single virtqueue.
    pub const NET_VQ_NOTF_COAL: u64 = 1 << 52;
    /// The control queue has commands that set the interrupt moderation of all virtqueues.
    pub const NET_NOTF_COAL: u64 = 1 << 53;
    /// The driver accepts several UDP segments over IPv4 in one packet.
    pub const NET_GUEST_USO4: u64 = 1 << 54;
    /// The driver accepts several UDP segments over IPv6 in one packet.
    pub const NET_GUEST_USO6: u64 = 1 << 55;
    /// The device reports the hash of each received packet.
    pub const NET_HASH_REPORT: u64 = 1 << 57;
    /// The device distributes received packets to the virtqueues by their hash.
    pub const NET_RSS: u64 = 1 << 60;
    /// A network card is a standby for another one with the same MAC address.
    pub const NET_STANDBY: u64 = 1 << 62;

    /// A disk reports its block size.
    pub const BLK_SIZE: u64 = 1 << 6;
    /// The driver can write a disk's cache mode.
    pub const BLK_CONFIG_WCE: u64 = 1 << 11;
    /// A disk reports its number of queues.
    pub const BLK_MQ: u64 = 1 << 12;
    /// A disk can discard sectors.
    pub const BLK_DISCARD: u64 = 1 << 13;
    /// A disk can zero sectors.
    pub const BLK_WRITE_ZEROES: u64 = 1 << 14;
    /// A disk can erase sectors.
    pub const BLK_SECURE_ERASE: u64 = 1 << 16;
    /// A disk has zones.
    pub const BLK_ZONED: u64 = 1 << 17;

    /// A request may use an indirect descriptor table.
    pub const RING_INDIRECT_DESC: u64 = 1 << 28;
    /// Driver and device each write the ring index at which they next want a notification.
    pub const RING_EVENT_IDX: u64 = 1 << 29;
    /// The device complies with virtio 1.
    pub const VERSION_1: u64 = 1 << 32;
    /// The device uses IOVAs instead of physical addresses.
    pub const ACCESS_PLATFORM: u64 = 1 << 33;
    /// The virtqueues are packed.
    pub const RING_PACKED: u64 = 1 << 34;
    /// The device uses buffers in the order in which the driver made them available.
    pub const IN_ORDER: u64 = 1 << 35;
}

/// Flags of descriptors of a split virtqueue (virtio 1.3, section 2.7.5).
pub mod descriptor {
    /// Another descriptor follows.
    pub const NEXT: u16 = 1;
    /// The device writes to the buffer.
    pub const WRITE: u16 = 2;
    /// The buffer is a table of descriptors.
    pub const INDIRECT: u16 = 4;
}

/// The link status of a network card (virtio 1.3, section 5.1.4).
pub mod link {
    /// The link is up.
    pub const UP: u16 = 1;
    /// The driver should announce the card's address on the network.
    pub const ANNOUNCE: u16 = 2;
}
