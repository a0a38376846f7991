// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Information about devices, as the vDPA core reports it.

/// A management device, which creates vDPA devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManagementDevice {
    /// The bus of the management device, if it is on one.
    pub bus: Option<String>,
    /// The management device's name.
    pub name: String,
    /// Bit mask of the virtio device ids that the management device can create.
    pub classes: u64,
    /// Maximum number of virtqueues of a device, or 0 if the vDPA core does not report it.
    pub max_queues: u32,
    /// Virtio feature bits that a device can offer, or 0 if the vDPA core does not report them.
    pub features: u64,
}

/// A device on the vDPA bus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// The device's name.
    pub name: String,
    /// The name of the management device that created the device.
    pub management_device: String,
    /// The virtio device id.
    pub device_id: u32,
    /// The virtio vendor id.
    pub vendor_id: u32,
    /// Number of virtqueues.
    pub queues: u32,
    /// Maximum size of a virtqueue, in descriptors.
    pub max_queue_size: u16,
    /// Minimum size of a virtqueue, in descriptors.
    pub min_queue_size: u16,
}

/// Contents of a device's configuration space. A field is `None` if the device does not have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceConfig {
    /// The device's name.
    pub name: String,
    /// The virtio device id.
    pub device_id: u32,
    /// The virtio feature bits that the device offers.
    pub features: u64,
    /// The virtio feature bits that the driver has accepted, or `None` while the driver has not
    /// accepted any.
    pub negotiated_features: Option<u64>,
    /// A disk's capacity in sectors of 512 bytes.
    pub blk_capacity: Option<u64>,
    /// A disk's block size in bytes.
    pub blk_block_size: Option<u32>,
    /// Maximum number of segments in a request to a disk.
    pub blk_segments: Option<u32>,
    /// Number of queues of a disk.
    pub blk_queues: Option<u16>,
    /// Whether a disk is read-only.
    pub blk_read_only: Option<bool>,
    /// A network device's MAC address.
    pub net_mac: Option<[u8; 6]>,
    /// A network device's MTU.
    pub net_mtu: Option<u16>,
    /// Number of queue pairs of a network device.
    pub net_queue_pairs: Option<u16>,
}
