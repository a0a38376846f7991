// SPDX-License-Identifier: Apache-2.0 OR MIT

//! vDPA devices in userspace (VDUSE).
//!
//! A program that uses VDUSE implements a virtio device. The program creates the device through
//! [`Control`], opens it as a [`Device`], and answers the driver's requests. Once the device is put
//! on the vDPA bus (`vdpa dev add name NAME mgmtdev vduse`), the kernel's own virtio drivers or a
//! virtual machine can use the device.
//!
//! - [`control`] and [`device`] wrap the ioctls and messages in types.
//! - [`iotlb`] maps the driver's memory on first access.
//! - [`virtqueue`] is the device side of a virtqueue.
//! - [`server`] runs a whole device: requests, virtqueues, kicks, interrupts. The program only
//!   provides a [`server::Backend`], which receives descriptor chains.
//! - [`blk`] is a backend for a disk, [`net`] one for a network card.
//! - [`state`] reads the state of a device in use, for a program that takes the device over.
//! - [`memory`] prepares a program for serving a disk while memory is short.
//! - [`umem`] registers the program's own memory as a device's bounce area.
//!
//! The numbers and layouts of the ABI are in [`uapi`].

pub use vduse_uapi as uapi;

pub mod blk;
pub mod control;
pub mod device;
pub mod eventfd;
pub mod iotlb;
mod mapping;
pub mod memory;
pub mod net;
pub mod request;
pub mod server;
pub mod state;
mod sys;
pub mod umem;
pub mod virtqueue;

pub use control::{Control, DeviceConfig};
pub use device::Device;
pub use mapping::Mapping;

/// The examples of the README, which are compiled as documentation tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
