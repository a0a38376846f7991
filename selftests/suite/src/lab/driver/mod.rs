// SPDX-License-Identifier: GPL-2.0

//! The driver side of a device: clients of vhost, and the kernel's own drivers.

pub mod block;
pub mod card;
pub mod client;
pub mod namespace;
pub mod net;
pub mod ring;
pub mod vhost;
