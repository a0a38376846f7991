// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A disk as its driver sees it.

use std::io;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ,
    VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_config::{VIRTIO_F_ACCESS_PLATFORM, VIRTIO_F_VERSION_1};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use crate::{Device, DeviceConfig};

/// Size of a sector in bytes. A disk's addresses count sectors.
pub const SECTOR: u64 = 512;

/// Maximum number of data descriptors in one request.
const SEG_MAX: u32 = 126;

/// The virtio feature bits that a [`Disk`](crate::blk::Disk) supports.
pub const FEATURES: u64 = (1 << VIRTIO_F_VERSION_1)
    | (1 << VIRTIO_F_ACCESS_PLATFORM)
    | (1 << VIRTIO_RING_F_EVENT_IDX)
    | (1 << VIRTIO_RING_F_INDIRECT_DESC)
    | (1 << VIRTIO_BLK_F_SEG_MAX)
    | (1 << VIRTIO_BLK_F_BLK_SIZE)
    | (1 << VIRTIO_BLK_F_FLUSH)
    | (1 << VIRTIO_BLK_F_MQ);

/// The virtio feature bit of a disk that rejects writes.
pub const READ_ONLY: u64 = 1 << VIRTIO_BLK_F_RO;

/// Offset of the capacity in the configuration space, in bytes. The capacity itself is in sectors.
const CAPACITY_OFFSET: u32 = 0;

/// A disk as its driver sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Size in bytes. A part of a sector at the end is not used.
    pub bytes: u64,
    /// Number of virtqueues.
    pub queues: u16,
    /// Maximum number of data descriptors in one request.
    pub max_segments: u32,
    /// Size of a block in bytes, a power of 2 from 512 on. Requests are of whole blocks.
    pub block: u32,
    /// Best length of a request in bytes: a multiple of this. 0 if unknown.
    pub optimal: u32,
    /// Maximum number of sectors in a request to discard sectors or to write zeroes, each with one
    /// segment. 0 if the disk supports neither.
    pub max_discard: u32,
    /// Whether the disk rejects writes.
    pub read_only: bool,
}

impl Geometry {
    /// Returns the configuration space: the first 60 bytes of `struct virtio_blk_config`.
    pub fn config_space(&self) -> Vec<u8> {
        let mut space = vec![0; 60];
        let mut put = |at: usize, bytes: &[u8]| space[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &(self.bytes / SECTOR).to_le_bytes());
        put(12, &self.max_segments.to_le_bytes());
        put(20, &self.block.to_le_bytes());
        put(28, &(self.optimal / self.block.max(1)).to_le_bytes());
        put(34, &self.queues.to_le_bytes());
        if self.max_discard != 0 {
            let alignment = self.block / SECTOR as u32;
            put(36, &self.max_discard.to_le_bytes());
            put(40, &1u32.to_le_bytes());
            put(44, &alignment.to_le_bytes());
            put(48, &self.max_discard.to_le_bytes());
            put(52, &1u32.to_le_bytes());
            put(56, &[1]);
        }
        space
    }

    /// Returns the configuration of a device called `name`.
    pub fn device_config(&self, name: &str) -> DeviceConfig {
        let mut config = DeviceConfig::new(name, VIRTIO_ID_BLOCK);
        let discard = 1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES;
        config.features = FEATURES;
        for (offered, features) in [
            (self.optimal != 0, 1 << VIRTIO_BLK_F_TOPOLOGY),
            (self.max_discard != 0, discard),
            (self.read_only, READ_ONLY),
        ] {
            config.features |= if offered { features } else { 0 };
        }
        config.queues = self.queues;
        config.space = self.config_space();
        config
    }
}

/// Returns the configuration space of a disk: the first 60 bytes of `struct virtio_blk_config`. All
/// fields after the number of queues are 0.
pub fn config_space(sectors: u64, queues: u16) -> Vec<u8> {
    simple(sectors * SECTOR, queues).config_space()
}

/// Returns the configuration of a disk with this size in bytes and number of queues.
pub fn device_config(name: &str, bytes: u64, queues: u16) -> DeviceConfig {
    simple(bytes, queues).device_config(name)
}

fn simple(bytes: u64, queues: u16) -> Geometry {
    Geometry {
        bytes,
        queues,
        max_segments: SEG_MAX,
        block: SECTOR as u32,
        optimal: 0,
        max_discard: 0,
        read_only: false,
    }
}

/// Tells the driver that a disk in use now has `bytes` bytes. The caller must have resized the file
/// before.
///
/// # Errors
///
/// Returns the error of the ioctl that failed.
pub fn resize(device: &Device, bytes: u64) -> io::Result<()> {
    device.set_config(CAPACITY_OFFSET, &(bytes / SECTOR).to_le_bytes())?;
    match device.inject_config_irq() {
        // No driver is ready for the configuration interrupt. The next driver reads the new size
        // when it starts.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_space_has_what_is_offered() {
        let geometry = Geometry {
            bytes: (1 << 40) + 100,
            queues: 3,
            max_segments: 254,
            block: 4096,
            optimal: 65536,
            max_discard: 1 << 20,
            read_only: true,
        };
        let space = geometry.config_space();
        let word = |at: usize| u32::from_le_bytes(space[at..at + 4].try_into().unwrap());
        assert_eq!((word(0), word(4)), (1 << 31, 0));
        assert_eq!((word(12), word(20), word(28)), (254, 4096, 16));
        assert_eq!(space[34..36], [3, 0]);
        assert_eq!((word(36), word(40), word(44)), (1 << 20, 1, 8));
        assert_eq!((word(48), word(52), space[56]), (1 << 20, 1, 1));
        let config = geometry.device_config("d");
        let optional = config.features & !FEATURES;
        let expected = [
            VIRTIO_BLK_F_RO,
            VIRTIO_BLK_F_TOPOLOGY,
            VIRTIO_BLK_F_DISCARD,
            VIRTIO_BLK_F_WRITE_ZEROES,
        ];
        assert_eq!(
            optional,
            expected.iter().map(|bit| 1u64 << bit).sum::<u64>()
        );
        assert_eq!(device_config("d", 1 << 20, 1).features, FEATURES);
    }
}
