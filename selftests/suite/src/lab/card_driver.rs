// SPDX-License-Identifier: GPL-2.0

//! The driver side of a network card with one pair of queues and a control queue, by hand.

use vduse::net::Mac;

use crate::lab::net::MAC;
use crate::lab::ring::{self, HandQueue};
use crate::lab::vhost::Vhost;

/// Where the memory of the receive queue is.
pub const RECEIVE: u64 = 0x10_0000;
/// Where the memory of the transmit queue is.
pub const TRANSMIT: u64 = 0x20_0000;

/// The command that sets the address (virtio 1.3, section 5.1.6.5.2).
pub fn mac_set(mac: Mac) -> Vec<u8> {
    [&[1, 1][..], &mac].concat()
}

/// A frame from the card's first address.
pub fn frame(to: Mac, byte: u8) -> Vec<u8> {
    [&to[..], &MAC, &[8, 0], &[byte; 100]].concat()
}

/// A driver that is ready. Its control queue is in address space 1, with group 1, at the
/// addresses that the transmit queue has in space 0.
#[derive(Debug)]
pub struct CardDriver {
    /// The card.
    pub vhost: Vhost,
    /// Queue 0.
    pub receive: HandQueue,
    /// Queue 1.
    pub transmit: HandQueue,
    /// The last queue.
    pub control: HandQueue,
}

impl CardDriver {
    /// Starts a driver of a card whose control queue has this index.
    #[track_caller]
    pub fn start(vhost: Vhost, control: u32) -> Self {
        ring::agree(&vhost);
        vhost.set_group_asid(1, 1).expect("moving the group");
        let driver = Self {
            receive: HandQueue::prepare(&vhost, 0, 0, RECEIVE),
            transmit: HandQueue::prepare(&vhost, 1, 0, TRANSMIT),
            control: HandQueue::prepare(&vhost, control, 1, TRANSMIT),
            vhost,
        };
        for queue in [&driver.receive, &driver.transmit, &driver.control] {
            queue.set_up(&driver.vhost);
        }
        ring::start(&driver.vhost);
        driver
    }
}
