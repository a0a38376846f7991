// SPDX-License-Identifier: GPL-2.0

//! The driver: every rule of the VDUSE protocol, and nothing of C.
//!
//! A *device* ([`dev`]) is created on the control node ([`control`]), served by a daemon through
//! its own node ([`ioctl`], [`msg`]) and, once the device is added to the vDPA bus, driven from
//! there ([`vdpa`]). Virtqueues are in [`vq`]; the memory that they reside in is in [`spaces`] and
//! their [`domain`]s.
//!
//! # Lock order
//!
//! 1. The vDPA core's device lock, the [registry], the [use of a device](dev::Dev).
//! 2. The vDPA core's locks, then waiting for a [message](msg) to be answered.
//! 3. `mmap_lock` of a vhost client whose memory is being mapped, then the lock of the [address
//!    spaces](spaces) or the mutex of the messages. Apart from that, the registration of a bounce
//!    area's user pages.
//! 4. The mutex of the messages, a callback slot (a virtio driver runs under its lock), then a
//!    [virtqueue](vq) or an [IOTLB](domain).
//!
//! The registry is not held while a device is added to the bus: adding it probes a driver, which
//! sends messages and waits for the daemon.

#![forbid(unsafe_code)]

pub(crate) mod nodes;
pub(crate) mod registry;

mod budget;
mod config;
mod control;
mod dev;
mod domain;
mod ioctl;
mod mapping;
mod msg;
mod net_ctrl;
mod quirks;
mod shadow;
mod spaces;
mod sysfs;
mod user;
mod vdpa;
mod vq;
mod vq_state;
