// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Events on a card, which the card reports to its observer.

use crate::net::control::{Command, Settings};

/// An event on a card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// The driver has started, or was running already when the server took the card over. The value
    /// holds the features that the driver has accepted.
    Started(u64),
    /// The driver has reset the card.
    Reset,
    /// The driver suspends the card. The card has completed the requests that it had begun.
    Suspended,
    /// The card has executed this command of the driver.
    Done(Command),
    /// The card has rejected a command that is invalid or cannot be executed. The settings are
    /// unchanged.
    Refused,
    /// The driver has moved a virtqueue group to an address space.
    Moved {
        /// The virtqueue group.
        group: u32,
        /// The group's new address space.
        asid: u32,
    },
}

/// An event, and the settings after the event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// What happened.
    pub what: What,
    /// The card's settings after the event.
    pub settings: Settings,
}

/// The function that the card calls for each event.
pub(super) type Observer = Box<dyn FnMut(Event) + Send>;
