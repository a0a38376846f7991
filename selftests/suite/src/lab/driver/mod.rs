// SPDX-License-Identifier: GPL-2.0

//! The driver side of a device: clients of vhost-vdpa, and the kernel's virtio drivers.

pub mod bare_disk;
pub mod block;
pub mod card_driver;
pub mod client;
pub mod exerciser;
pub mod hand_card;
pub mod in_flight;
pub mod isolated_card;
pub mod load;
pub mod namespace;
pub mod peer;
pub mod ring;
pub mod rtnl;
pub mod vhost;
pub mod virtio_disk;
pub mod virtiofs;
