// SPDX-License-Identifier: GPL-2.0

//! The driver: all rules of the VDUSE protocol, in safe Rust and without C types.
//!
//! A daemon creates a *device* ([`device`]) through the control node ([`control`]), and serves the
//! device through the device's own node ([`ioctl`], [`msg`]). Once the device is added to the vDPA
//! bus, a driver on that bus uses the device ([`vdpa`]). Virtqueues are in [`vq`]. The memory of
//! virtqueues and buffers is mapped into address spaces ([`spaces`]), each of which has a
//! [`domain`].
//!
//! # Lock order
//!
//! 1. The vDPA core's device lock, then the lock of the [registry], then the lock of a device's
//!    [usage].
//! 2. The vDPA core's locks, then the wait for the daemon's answer to a [message](msg).
//! 3. `mmap_lock` of a vhost client whose memory is being mapped, then the lock of the [address
//!    spaces](spaces) or the mutex of the [message queue](msg). The lock under which user pages are
//!    registered for a bounce area is never held together with these.
//! 4. The mutex of the [message queue](msg), then the lock of a callback slot (under which a virtio
//!    driver's callback runs), then the lock of a [virtqueue](vq) or of a domain's
//!    [mappings](domain).
//!
//! The registry's lock is not held while a device is added to the bus: a driver is probed then, and
//! the probe sends messages and waits for the daemon.

#![forbid(unsafe_code)]

pub(crate) mod idle;
pub(crate) mod nodes;
pub(crate) mod registry;

mod budget;
mod config_space;
mod control;
mod device;
mod domain;
mod groups;
mod ioctl;
mod mapping;
mod msg;
mod net_ctrl;
mod quirks;
mod shadow;
mod spaces;
mod sysfs;
mod umem;
mod usage;
mod user;
mod validate;
mod vdpa;
mod virtio;
mod vq;
mod vq_state;
