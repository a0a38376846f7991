// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The commands of a control queue (virtio 1.3, section 5.1.6.5).

use virtio_bindings::virtio_net::{
    VIRTIO_NET_CTRL_ANNOUNCE, VIRTIO_NET_CTRL_ANNOUNCE_ACK, VIRTIO_NET_CTRL_MAC,
    VIRTIO_NET_CTRL_MAC_ADDR_SET, VIRTIO_NET_CTRL_MAC_TABLE_SET, VIRTIO_NET_CTRL_MQ,
    VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_ALLMULTI,
    VIRTIO_NET_CTRL_RX_ALLUNI, VIRTIO_NET_CTRL_RX_NOBCAST, VIRTIO_NET_CTRL_RX_NOMULTI,
    VIRTIO_NET_CTRL_RX_NOUNI, VIRTIO_NET_CTRL_RX_PROMISC,
};

use super::Mac;

/// A command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// All frames are wanted, or not.
    Promiscuous(bool),
    /// All frames to groups are wanted, or not.
    AllMulticast(bool),
    /// All frames to single addresses are wanted, or not.
    AllUnicast(bool),
    /// No frames to groups are wanted, or some.
    NoMulticast(bool),
    /// No frames to single addresses are wanted, or some.
    NoUnicast(bool),
    /// No frames to everybody are wanted, or they are.
    NoBroadcast(bool),
    /// Frames to these addresses are wanted, beside those to the card's own.
    Tables {
        /// Single addresses.
        unicast: Vec<Mac>,
        /// Addresses of groups.
        multicast: Vec<Mac>,
    },
    /// The card has another address.
    Address(Mac),
    /// The driver has announced itself to the network.
    Announced,
    /// The driver uses so many pairs of virtqueues.
    Pairs(u16),
}

impl Command {
    /// Reads one as it is in the device-readable part of a request: a class, a command, and what
    /// belongs to it, no more and no less.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let (&[class, command], data) = bytes.split_first_chunk()?;
        let command = u32::from(command);
        match u32::from(class) {
            VIRTIO_NET_CTRL_RX => {
                let &[on @ 0..=1] = data else {
                    return None;
                };
                let mode = match command {
                    VIRTIO_NET_CTRL_RX_PROMISC => Self::Promiscuous,
                    VIRTIO_NET_CTRL_RX_ALLMULTI => Self::AllMulticast,
                    VIRTIO_NET_CTRL_RX_ALLUNI => Self::AllUnicast,
                    VIRTIO_NET_CTRL_RX_NOMULTI => Self::NoMulticast,
                    VIRTIO_NET_CTRL_RX_NOUNI => Self::NoUnicast,
                    VIRTIO_NET_CTRL_RX_NOBCAST => Self::NoBroadcast,
                    _ => return None,
                };
                Some(mode(on == 1))
            }
            VIRTIO_NET_CTRL_MAC => match command {
                VIRTIO_NET_CTRL_MAC_TABLE_SET => {
                    let (unicast, rest) = table(data)?;
                    let (multicast, rest) = table(rest)?;
                    rest.is_empty()
                        .then_some(Self::Tables { unicast, multicast })
                }
                VIRTIO_NET_CTRL_MAC_ADDR_SET => Some(Self::Address(Mac(data.try_into().ok()?))),
                _ => None,
            },
            VIRTIO_NET_CTRL_ANNOUNCE if command == VIRTIO_NET_CTRL_ANNOUNCE_ACK => {
                data.is_empty().then_some(Self::Announced)
            }
            VIRTIO_NET_CTRL_MQ if command == VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET => {
                Some(Self::Pairs(u16::from_le_bytes(data.try_into().ok()?)))
            }
            _ => None,
        }
    }
}

/// Reads a table: how many addresses, and the addresses. Returns what is behind it, too.
fn table(bytes: &[u8]) -> Option<(Vec<Mac>, &[u8])> {
    let (count, rest) = bytes.split_first_chunk()?;
    let len = usize::try_from(u32::from_le_bytes(*count))
        .ok()?
        .checked_mul(6)?;
    let (addresses, rest) = rest.split_at_checked(len)?;
    let addresses = addresses
        .chunks_exact(6)
        .filter_map(|bytes| bytes.try_into().ok().map(Mac))
        .collect();
    Some((addresses, rest))
}
