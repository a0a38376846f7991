// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The commands of a network card's control queue (virtio 1.3, section 5.1.6.5), and the settings
//! that a driver changes with these commands.

use virtio_bindings::virtio_net::{
    VIRTIO_NET_CTRL_ANNOUNCE, VIRTIO_NET_CTRL_ANNOUNCE_ACK, VIRTIO_NET_CTRL_MAC,
    VIRTIO_NET_CTRL_MAC_ADDR_SET, VIRTIO_NET_CTRL_MAC_TABLE_SET, VIRTIO_NET_CTRL_MQ,
    VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_ALLMULTI,
    VIRTIO_NET_CTRL_RX_ALLUNI, VIRTIO_NET_CTRL_RX_NOBCAST, VIRTIO_NET_CTRL_RX_NOMULTI,
    VIRTIO_NET_CTRL_RX_NOUNI, VIRTIO_NET_CTRL_RX_PROMISC, VIRTIO_NET_F_CTRL_MAC_ADDR,
    VIRTIO_NET_F_CTRL_RX, VIRTIO_NET_F_CTRL_RX_EXTRA, VIRTIO_NET_F_GUEST_ANNOUNCE, VIRTIO_NET_F_MQ,
};

/// An Ethernet address.
pub type Mac = [u8; 6];

/// The broadcast address.
const BROADCAST: Mac = [0xff; 6];

/// Returns whether an address is a multicast address.
pub(super) fn is_group(mac: Mac) -> bool {
    mac[0] & 1 != 0
}

/// A command of the control queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Sets whether the card receives all frames, regardless of their destination.
    Promiscuous(bool),
    /// Sets whether the card receives all multicast frames.
    AllMulticast(bool),
    /// Sets whether the card receives all unicast frames.
    AllUnicast(bool),
    /// Sets whether the card drops all multicast frames.
    NoMulticast(bool),
    /// Sets whether the card drops all unicast frames.
    NoUnicast(bool),
    /// Sets whether the card drops all broadcast frames.
    NoBroadcast(bool),
    /// Sets the addresses, besides the card's own, for which the card receives frames.
    MacTable {
        /// Unicast addresses.
        unicast: Vec<Mac>,
        /// Multicast addresses.
        multicast: Vec<Mac>,
    },
    /// Sets the card's MAC address.
    MacAddress(Mac),
    /// Sets the number of queue pairs in use.
    Pairs(u16),
    /// The driver has announced itself on the network.
    AnnounceAck,
}

impl Command {
    /// Parses a command. Returns `None` if the command is invalid, or if its feature bit is not in
    /// `features`.
    pub(super) fn parse(bytes: &[u8], features: u64) -> Option<Self> {
        let (&[class, command], data) = bytes.split_first_chunk()?;
        let (parsed, feature) = match (class.into(), command.into()) {
            (VIRTIO_NET_CTRL_RX, command) => Self::parse_mode(command, switch(data)?)?,
            (VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_TABLE_SET) => {
                let (unicast, rest) = table(data)?;
                let (multicast, rest) = table(rest)?;
                if !rest.is_empty() {
                    return None;
                }
                let tables = Self::MacTable { unicast, multicast };
                (tables, VIRTIO_NET_F_CTRL_RX)
            }
            (VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET) => {
                let mac: Mac = data.try_into().ok()?;
                if is_group(mac) {
                    return None;
                }
                (Self::MacAddress(mac), VIRTIO_NET_F_CTRL_MAC_ADDR)
            }
            (VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET) => {
                let pairs = u16::from_le_bytes(data.try_into().ok()?);
                (Self::Pairs(pairs), VIRTIO_NET_F_MQ)
            }
            (VIRTIO_NET_CTRL_ANNOUNCE, VIRTIO_NET_CTRL_ANNOUNCE_ACK) if data.is_empty() => {
                (Self::AnnounceAck, VIRTIO_NET_F_GUEST_ANNOUNCE)
            }
            _ => return None,
        };
        (features & 1 << feature != 0).then_some(parsed)
    }

    /// Returns the command that sets a receive mode, and the feature bit that the command needs.
    fn parse_mode(command: u32, on: bool) -> Option<(Self, u32)> {
        let extra = VIRTIO_NET_F_CTRL_RX_EXTRA;
        Some(match command {
            VIRTIO_NET_CTRL_RX_PROMISC => (Self::Promiscuous(on), VIRTIO_NET_F_CTRL_RX),
            VIRTIO_NET_CTRL_RX_ALLMULTI => (Self::AllMulticast(on), VIRTIO_NET_F_CTRL_RX),
            VIRTIO_NET_CTRL_RX_ALLUNI => (Self::AllUnicast(on), extra),
            VIRTIO_NET_CTRL_RX_NOMULTI => (Self::NoMulticast(on), extra),
            VIRTIO_NET_CTRL_RX_NOUNI => (Self::NoUnicast(on), extra),
            VIRTIO_NET_CTRL_RX_NOBCAST => (Self::NoBroadcast(on), extra),
            _ => return None,
        })
    }
}

/// Parses a byte that switches a mode on or off.
fn switch(data: &[u8]) -> Option<bool> {
    match data {
        [0] => Some(false),
        [1] => Some(true),
        _ => None,
    }
}

/// Parses an address count followed by that number of addresses. Returns the addresses and the
/// bytes that follow.
fn table(data: &[u8]) -> Option<(Vec<Mac>, &[u8])> {
    let (count, rest) = data.split_first_chunk()?;
    let len = usize::try_from(u32::from_le_bytes(*count)).ok()?;
    let (macs, rest) = rest.split_at_checked(len.checked_mul(size_of::<Mac>())?)?;
    let mac = |bytes: &[u8]| bytes.try_into().ok();
    let macs: Option<_> = macs.chunks_exact(size_of::<Mac>()).map(mac).collect();
    Some((macs?, rest))
}

/// The settings that the driver changes with commands.
///
/// Initially and after a reset, the card receives all frames, because a driver need not support
/// filters, and because a program that takes over a running card does not know the driver's
/// settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The card's MAC address.
    pub mac: Mac,
    /// Whether the card receives all frames, regardless of their destination.
    pub promiscuous: bool,
    /// Whether the card receives all multicast frames.
    pub all_multicast: bool,
    /// Whether the card receives all unicast frames.
    pub all_unicast: bool,
    /// Whether the card drops all multicast frames.
    pub no_multicast: bool,
    /// Whether the card drops all unicast frames.
    pub no_unicast: bool,
    /// Whether the card drops all broadcast frames.
    pub no_broadcast: bool,
    /// Unicast addresses, besides the card's own, for which the card receives frames.
    pub unicast: Vec<Mac>,
    /// Multicast addresses for which the card receives frames.
    pub multicast: Vec<Mac>,
    /// Number of queue pairs in use.
    pub pairs: u16,
}

impl Settings {
    /// Returns the initial settings of a card with this MAC address.
    pub fn new(mac: Mac) -> Self {
        Self {
            mac,
            promiscuous: true,
            all_multicast: false,
            all_unicast: false,
            no_multicast: false,
            no_unicast: false,
            no_broadcast: false,
            unicast: Vec::new(),
            multicast: Vec::new(),
            pairs: 1,
        }
    }

    /// Applies a command.
    pub(super) fn apply(&mut self, command: &Command) {
        match command {
            Command::Promiscuous(on) => self.promiscuous = *on,
            Command::AllMulticast(on) => self.all_multicast = *on,
            Command::AllUnicast(on) => self.all_unicast = *on,
            Command::NoMulticast(on) => self.no_multicast = *on,
            Command::NoUnicast(on) => self.no_unicast = *on,
            Command::NoBroadcast(on) => self.no_broadcast = *on,
            Command::MacTable { unicast, multicast } => {
                self.unicast.clone_from(unicast);
                self.multicast.clone_from(multicast);
            }
            Command::MacAddress(mac) => self.mac = *mac,
            Command::Pairs(pairs) => self.pairs = *pairs,
            Command::AnnounceAck => {}
        }
    }

    /// Returns whether the driver's filter accepts a frame.
    pub fn wants(&self, frame: &[u8]) -> bool {
        let Some(&to) = frame.first_chunk::<6>() else {
            return false;
        };
        if self.promiscuous {
            true
        } else if to == BROADCAST {
            !self.no_broadcast
        } else if is_group(to) {
            !self.no_multicast && (self.all_multicast || self.multicast.contains(&to))
        } else {
            !self.no_unicast && (self.all_unicast || to == self.mac || self.unicast.contains(&to))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: u64 = u64::MAX;
    const OURS: Mac = [2, 0, 0, 0, 0, 1];
    const OTHER: Mac = [2, 0, 0, 0, 0, 2];
    const GROUP: Mac = [1, 0, 0x5e, 0, 0, 1];

    fn quiet() -> Settings {
        let mut settings = Settings::new(OURS);
        settings.apply(&Command::Promiscuous(false));
        settings
    }

    /// Returns whether the filter accepts a frame to each of these addresses, in this order: the
    /// card's own address, another card's address, a multicast address, the broadcast address.
    fn wanted(settings: &Settings) -> [bool; 4] {
        [OURS, OTHER, GROUP, BROADCAST].map(|to| settings.wants(&[&to[..], &[0; 54]].concat()))
    }

    #[test]
    fn every_mode_is_a_command_with_a_byte_that_is_0_or_1() {
        type Make = fn(bool) -> Command;
        let modes: [Make; 6] = [
            Command::Promiscuous,
            Command::AllMulticast,
            Command::AllUnicast,
            Command::NoMulticast,
            Command::NoUnicast,
            Command::NoBroadcast,
        ];
        for (number, mode) in (0..).zip(modes) {
            for on in [0, 1] {
                let found = Command::parse(&[0, number, on], ALL);
                assert_eq!(found, Some(mode(on == 1)));
            }
            for bad in [&[0, number][..], &[0, number, 2], &[0, number, 1, 1]] {
                assert_eq!(Command::parse(bad, ALL), None);
            }
        }
        assert_eq!(Command::parse(&[0, 6, 1], ALL), None);
    }

    #[test]
    fn tables_have_as_many_addresses_as_they_say_and_nothing_behind() {
        let two = [
            &[1, 0, 2, 0, 0, 0][..],
            &OTHER,
            &OURS,
            &[1, 0, 0, 0],
            &GROUP,
        ]
        .concat();
        let tables = Command::MacTable {
            unicast: vec![OTHER, OURS],
            multicast: vec![GROUP],
        };
        assert_eq!(Command::parse(&two, ALL), Some(tables));
        for len in 0..two.len() {
            assert_eq!(Command::parse(&two[..len], ALL), None, "{len} bytes");
        }
        assert_eq!(Command::parse(&[&two[..], &[0]].concat(), ALL), None);
        let mut huge = two;
        huge[2..6].copy_from_slice(&[0xff; 4]);
        assert_eq!(Command::parse(&huge, ALL), None);
        let empty = Command::parse(&[1, 0, 0, 0, 0, 0, 0, 0, 0, 0], ALL);
        assert!(matches!(empty, Some(Command::MacTable { .. })));
    }

    #[test]
    fn an_address_is_that_of_a_single_card() {
        let set = |mac: &[u8]| Command::parse(&[&[1, 1][..], mac].concat(), ALL);
        assert_eq!(set(&OTHER), Some(Command::MacAddress(OTHER)));
        assert_eq!(set(&GROUP), None);
        assert_eq!(set(&OTHER[..5]), None);
        assert_eq!(set(&[0; 7]), None);
    }

    #[test]
    fn pairs_are_two_bytes_and_an_acknowledgement_none() {
        assert_eq!(
            Command::parse(&[4, 0, 3, 1], ALL),
            Some(Command::Pairs(259))
        );
        assert_eq!(Command::parse(&[4, 0, 3], ALL), None);
        assert_eq!(Command::parse(&[4, 0, 3, 1, 0], ALL), None);
        assert_eq!(Command::parse(&[3, 0], ALL), Some(Command::AnnounceAck));
        assert_eq!(Command::parse(&[3, 0, 0], ALL), None);
    }

    #[test]
    fn what_is_not_a_command_is_none() {
        for bad in [
            &[][..],
            &[0],
            &[1, 2],
            &[2, 0, 1, 0],
            &[4, 1],
            &[5, 0],
            &[255, 255],
        ] {
            assert_eq!(Command::parse(bad, ALL), None, "{bad:?}");
        }
    }

    #[test]
    fn a_command_needs_its_feature() {
        let table = [&[1, 0][..], &[0; 8]].concat();
        let address = [&[1, 1][..], &OTHER].concat();
        for (command, feature) in [
            (&[0, 1, 1][..], VIRTIO_NET_F_CTRL_RX),
            (&table, VIRTIO_NET_F_CTRL_RX),
            (&[0, 2, 1], VIRTIO_NET_F_CTRL_RX_EXTRA),
            (&address, VIRTIO_NET_F_CTRL_MAC_ADDR),
            (&[4, 0, 1, 0], VIRTIO_NET_F_MQ),
            (&[3, 0], VIRTIO_NET_F_GUEST_ANNOUNCE),
        ] {
            assert!(Command::parse(command, 1 << feature).is_some());
            assert!(Command::parse(command, !(1 << feature)).is_none());
        }
    }

    #[test]
    fn filters_let_through_what_was_asked_for() {
        assert_eq!(wanted(&Settings::new(OURS)), [true; 4]);
        let with = |commands: &[Command]| {
            let mut settings = quiet();
            commands.iter().for_each(|command| settings.apply(command));
            wanted(&settings)
        };
        let tables = Command::MacTable {
            unicast: vec![OTHER],
            multicast: vec![GROUP],
        };
        assert_eq!(with(&[]), [true, false, false, true]);
        assert_eq!(
            with(&[Command::AllMulticast(true)]),
            [true, false, true, true]
        );
        assert_eq!(
            with(&[Command::AllUnicast(true)]),
            [true, true, false, true]
        );
        assert_eq!(
            with(&[Command::NoUnicast(true)]),
            [false, false, false, true]
        );
        assert_eq!(
            with(&[Command::NoBroadcast(true)]),
            [true, false, false, false]
        );
        assert_eq!(with(&[tables.clone()]), [true; 4]);
        let no_groups = [tables, Command::NoMulticast(true)];
        assert_eq!(with(&no_groups), [true, true, false, true]);
        assert_eq!(
            with(&[Command::MacAddress(OTHER)]),
            [false, true, false, true]
        );
        assert_eq!(with(&[Command::Promiscuous(true)]), [true; 4]);
    }

    #[test]
    fn a_frame_without_an_address_is_not_wanted() {
        assert!(!Settings::new(OURS).wants(&[0xff; 5]));
    }
}
