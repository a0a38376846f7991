// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Events on a card.

use crate::net::control::{Command, Settings};

/// An event on a card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// A driver with these features has started, or was found running.
    Started(u64),
    /// The driver has reset the card.
    Reset,
    /// The driver suspends the card, which has completed what it had begun.
    Suspended,
    /// The driver has issued a command, which was executed.
    Done(Command),
    /// The driver has issued a command that is invalid or cannot be executed. Nothing has changed.
    Refused,
    /// A virtqueue group has moved to an address space.
    Moved {
        /// The group.
        group: u32,
        /// The address space.
        asid: u32,
    },
}

/// An event, and the settings that are in effect from then on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The event.
    pub what: What,
    /// The settings.
    pub settings: Settings,
}

/// The function that is called for each event.
pub(super) type Observer = Box<dyn FnMut(Event) + Send>;
