// SPDX-License-Identifier: GPL-2.0

//! A network card driver that the test operates through vhost-vdpa.

use vduse::net::Mac;

use crate::lab::daemon::card::MAC;
use crate::lab::driver::ring::{self, HandQueue};
use crate::lab::driver::vhost::Vhost;

/// IOVA of the receive queue's memory.
pub const RECEIVE: u64 = 0x10_0000;
/// IOVA of the transmit queue's memory.
pub const TRANSMIT: u64 = 0x20_0000;

/// Returns the command that sets the MAC address (virtio 1.3, section 5.1.6.5.2).
pub fn mac_set(mac: Mac) -> Vec<u8> {
    [&[1, 1][..], &mac].concat()
}

/// Returns a frame with the destination `to`, the card's initial MAC address as its source, and a
/// payload of 100 bytes with the value `byte`.
pub fn frame(to: Mac, byte: u8) -> Vec<u8> {
    [&to[..], &MAC, &[8, 0], &[byte; 100]].concat()
}

/// A network card driver that has set `DRIVER_OK`. The control queue is in group 1 and address
/// space 1, where it has the same IOVAs as the transmit queue has in address space 0.
#[derive(Debug)]
pub struct CardDriver {
    /// The open vhost-vdpa device of the card.
    pub vhost: Vhost,
    /// The receive queue, which is virtqueue 0.
    pub receive: HandQueue,
    /// The transmit queue, which is virtqueue 1.
    pub transmit: HandQueue,
    /// The control queue, which is the last virtqueue.
    pub control: HandQueue,
}

impl CardDriver {
    /// Starts a driver that uses one queue pair of a card. `control` is the index of the control
    /// queue.
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
