// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A server of a whole device: requests, virtqueues, kicks, interrupts.
//!
//! A single thread runs the server. The requests of a virtqueue are completed in order of arrival,
//! which keeps a reconnect simple: a server that takes over a device in use resumes where the used
//! ring ends, and so repeats the requests that its predecessor had begun. When the new server
//! starts, it interrupts each virtqueue in use once: the predecessor may have ended between adding
//! an entry to the used ring and interrupting the driver, and nothing records the missing
//! interrupt. A driver looks at its used ring on a spurious interrupt, but waits forever for a
//! missing one.
//!
//! Only split virtqueues are supported: do not offer `VIRTIO_F_RING_PACKED`.
//!
//! The virtqueue groups of a version 1 device ([`Server::with_groups`]) are in address space 0
//! after each reset. The driver side can move groups to other address spaces before it sets
//! `DRIVER_OK`. A server that takes over finds out which address spaces the groups are in, and
//! whether the device is suspended, if the kernel shows that ([`DeviceState`](crate::state)); if
//! not, it assumes address space 0 for all groups.
//!
//! If the VDUSE features were negotiated ([`Control::offer_all`](crate::Control::offer_all)), the
//! kernel tells the server when a virtqueue is enabled, rather than the server having to look, and
//! a driver can suspend the device, for a migration that loses nothing, and resume it. A suspended
//! server goes on with a virtqueue where it stopped, unless the driver has changed the virtqueue's
//! settings meanwhile.

mod backend;
mod handle;
mod run;
mod virtqueue;

pub use backend::{Backend, Chain, Memory};
pub use handle::Handle;
pub use run::Server;
