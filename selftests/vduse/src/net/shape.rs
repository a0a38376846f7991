// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The configuration of a network card and its device.

use std::io;

use virtio_bindings::virtio_config::{VIRTIO_F_ACCESS_PLATFORM, VIRTIO_F_VERSION_1};
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CTRL_MAC_ADDR, VIRTIO_NET_F_CTRL_RX, VIRTIO_NET_F_CTRL_RX_EXTRA,
    VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_ANNOUNCE, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MQ,
    VIRTIO_NET_F_STATUS, VIRTIO_NET_S_LINK_UP,
};

use crate::net::card::Net;
use crate::net::control::Mac;
use crate::net::port::Port;
use crate::server::Server;
use crate::{Control, Device, DeviceConfig};

/// Maximum size of every virtqueue, including the control queue. QEMU creates virtqueues of this
/// size, regardless of the maximum that the device reports.
pub const QUEUE_SIZE: u16 = 1024;

/// Length in bytes of the configuration space (`struct virtio_net_config`).
const CONFIG_SIZE: usize = 32;

/// Feature bit for [`Shape::options`]: the card can ask the driver to announce itself.
pub const GUEST_ANNOUNCE: u64 = 1 << VIRTIO_NET_F_GUEST_ANNOUNCE;

/// Feature bit for [`Shape::options`]: the driver can use additional modes for filtering received
/// frames.
pub const CTRL_RX_EXTRA: u64 = 1 << VIRTIO_NET_F_CTRL_RX_EXTRA;

/// The virtqueue groups and address spaces of a card.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Groups {
    /// No virtqueue groups: a device of version 0.
    None,
    /// One virtqueue group and one address space, on a device of version 1.
    One,
    /// Two virtqueue groups and two address spaces. The control queue is alone in its group.
    Isolated,
}

/// The configuration of a network card.
#[derive(Clone, Debug)]
pub struct Shape {
    /// The device's name.
    pub name: String,
    /// The card's MAC address.
    pub mac: Mac,
    /// Number of queue pairs, at least 1. A pair is a receive queue and a transmit queue.
    pub pairs: u16,
    /// Whether the card has a control queue. Without a control queue, the driver uses only the
    /// first pair.
    pub control: bool,
    /// The virtqueue groups and address spaces.
    pub groups: Groups,
    /// Additional feature bits that the card offers if it has a control queue: [`GUEST_ANNOUNCE`],
    /// [`CTRL_RX_EXTRA`], or both.
    pub options: u64,
    /// Whether the driver can suspend the card, if the kernel supports that. With suspend, a
    /// virtual machine can migrate without losing the requests in the virtqueues.
    pub suspend: bool,
}

impl Shape {
    /// Returns the configuration of a card with one queue pair and no control queue.
    pub fn new(name: &str, mac: Mac) -> Self {
        Self {
            name: name.to_owned(),
            mac,
            pairs: 1,
            control: false,
            groups: Groups::None,
            options: 0,
            suspend: true,
        }
    }

    /// Returns the virtio feature bits that the card offers.
    ///
    /// QEMU isolates the control queue only if QEMU can shadow every offered feature, so the card
    /// offers neither indirect descriptors nor the event index.
    pub fn features(&self) -> u64 {
        let mut features = 1 << VIRTIO_F_VERSION_1
            | 1 << VIRTIO_F_ACCESS_PLATFORM
            | 1 << VIRTIO_NET_F_MAC
            | 1 << VIRTIO_NET_F_STATUS;
        if self.control {
            features |= 1 << VIRTIO_NET_F_CTRL_VQ
                | 1 << VIRTIO_NET_F_CTRL_RX
                | 1 << VIRTIO_NET_F_CTRL_MAC_ADDR
                | self.options;
            if self.pairs > 1 {
                features |= 1 << VIRTIO_NET_F_MQ;
            }
        }
        features
    }

    /// Returns the configuration of the device to create.
    pub fn config(&self) -> DeviceConfig {
        let mut config = DeviceConfig::new(&self.name, VIRTIO_ID_NET);
        config.features = self.features();
        config.queues = 2 * self.pairs + u16::from(self.control);
        config.groups = self.group_count();
        config.address_spaces = self.address_spaces();
        config.space = vec![0; CONFIG_SIZE];
        config.space[..6].copy_from_slice(&self.mac);
        config.space[6..8].copy_from_slice(&(VIRTIO_NET_S_LINK_UP as u16).to_le_bytes());
        config.space[8..10].copy_from_slice(&self.pairs.to_le_bytes());
        config
    }

    fn group_count(&self) -> u32 {
        match self.groups {
            Groups::None => 0,
            Groups::One => 1,
            Groups::Isolated => 2,
        }
    }

    /// Returns the number of address spaces, which is 0 for a device of version 0.
    pub fn address_spaces(&self) -> u32 {
        self.group_count()
    }

    /// Returns the maximum size and the group of each virtqueue.
    pub fn queues(&self) -> Vec<(u16, u32)> {
        let data = 2 * self.pairs;
        let mut queues = vec![(QUEUE_SIZE, 0); data.into()];
        if self.control {
            queues.push((QUEUE_SIZE, u32::from(self.groups == Groups::Isolated)));
        }
        queues
    }

    /// Creates the device, or does nothing if it exists already.
    ///
    /// # Errors
    ///
    /// As [`Control::open`], [`Control::open_v1`], [`Control::offer_all`] and [`Control::create`],
    /// except `EEXIST`.
    pub fn create(&self) -> io::Result<()> {
        let control = match self.groups {
            Groups::None => Control::open()?,
            Groups::One | Groups::Isolated => Control::open_v1()?,
        };
        if self.suspend {
            control.offer_all()?;
        }
        match control.create(&self.config()) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            result => result,
        }
    }

    /// Creates a server of the device.
    ///
    /// # Errors
    ///
    /// As [`Server::new`].
    pub fn server<P: Port>(&self, device: Device, card: Net<P>) -> io::Result<Server<Net<P>>> {
        let queues = self.queues();
        match self.address_spaces() {
            0 => {
                let sizes: Vec<_> = queues.iter().map(|&(size, _)| size).collect();
                Server::new(device, &sizes, card)
            }
            spaces => Server::with_groups(device, &queues, spaces, card),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape() -> Shape {
        let mut shape = Shape::new("n", [2, 0, 0, 0, 0, 1]);
        shape.control = true;
        shape.groups = Groups::Isolated;
        shape
    }

    #[test]
    fn an_isolated_card_offers_what_qemu_can_shadow() {
        assert_eq!(shape().features(), 0x3_0087_0020);
        let mut shape = shape();
        shape.pairs = 2;
        assert_eq!(shape.features(), 0x3_00c7_0020);
        shape.control = false;
        assert_eq!(shape.features(), 0x3_0001_0020);
    }

    #[test]
    fn the_control_queue_comes_last_in_its_own_group() {
        let mut shape = shape();
        assert_eq!(shape.queues(), [(1024, 0), (1024, 0), (1024, 1)]);
        shape.groups = Groups::One;
        assert_eq!(shape.queues()[2], (1024, 0));
        shape.pairs = 3;
        assert_eq!(shape.queues().len(), 7);
        assert_eq!(shape.config().queues, 7);
    }

    #[test]
    fn the_configuration_space_is_whole() {
        let mut shape = shape();
        shape.pairs = 4;
        let space = shape.config().space;
        assert_eq!(space.len(), 32);
        assert_eq!(space[..10], [2, 0, 0, 0, 0, 1, 1, 0, 4, 0]);
    }

    #[test]
    fn groups_are_of_version_1() {
        let counts = |groups| {
            let config = Shape { groups, ..shape() }.config();
            (config.groups, config.address_spaces)
        };
        assert_eq!(counts(Groups::None), (0, 0));
        assert_eq!(counts(Groups::One), (1, 1));
        assert_eq!(counts(Groups::Isolated), (2, 2));
    }
}
