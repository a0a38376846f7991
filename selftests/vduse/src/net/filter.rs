// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Which frames a driver wants (virtio 1.3, section 5.1.6.5.1 and 2).

use super::{Command, Mac};

/// Which frames a driver wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// The card's own address.
    pub mac: Mac,
    /// All frames, whatever else is said.
    pub promiscuous: bool,
    /// All frames to groups.
    pub all_multicast: bool,
    /// All frames to single addresses.
    pub all_unicast: bool,
    /// No frames to groups.
    pub no_multicast: bool,
    /// No frames to single addresses.
    pub no_unicast: bool,
    /// No frames to everybody.
    pub no_broadcast: bool,
    /// Frames to these single addresses, beside its own.
    pub unicast: Vec<Mac>,
    /// Frames to these groups.
    pub multicast: Vec<Mac>,
}

const BROADCAST: Mac = Mac([0xff; 6]);

impl Filter {
    /// That of a driver that has said nothing yet, and so may not know of filters: it gets all
    /// frames.
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
        }
    }

    /// Does what a command says. Returns whether it is about filters.
    pub(super) fn change(&mut self, command: &Command) -> bool {
        match command {
            Command::Promiscuous(on) => self.promiscuous = *on,
            Command::AllMulticast(on) => self.all_multicast = *on,
            Command::AllUnicast(on) => self.all_unicast = *on,
            Command::NoMulticast(on) => self.no_multicast = *on,
            Command::NoUnicast(on) => self.no_unicast = *on,
            Command::NoBroadcast(on) => self.no_broadcast = *on,
            Command::Tables { unicast, multicast } => {
                self.unicast.clone_from(unicast);
                self.multicast.clone_from(multicast);
            }
            Command::Address(mac) => self.mac = *mac,
            Command::Announced | Command::Pairs(_) => return false,
        }
        true
    }

    /// Whether a frame is wanted.
    pub fn accepts(&self, frame: &[u8]) -> bool {
        let Some((&to, _)) = frame.split_first_chunk() else {
            return false;
        };
        let to = Mac(to);
        if self.promiscuous {
            true
        } else if to == BROADCAST {
            !self.no_broadcast
        } else if to.0[0] & 1 != 0 {
            !self.no_multicast && (self.all_multicast || self.multicast.contains(&to))
        } else {
            !self.no_unicast && (self.all_unicast || to == self.mac || self.unicast.contains(&to))
        }
    }
}
