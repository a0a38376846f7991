// SPDX-License-Identifier: Apache-2.0 OR MIT

//! vDPA devices in userspace (VDUSE).
//!
//! With VDUSE a program is a virtio device. It creates one through [`Control`], opens it as a
//! [`Device`], and answers what the driver asks; somebody puts the device on the vDPA bus
//! (`vdpa dev add name NAME mgmtdev vduse`), where the kernel's own virtio drivers or a virtual
//! machine find it.
//!
//! - [`control`] and [`device`] are the ioctls and messages, typed.
//! - [`iotlb`] is the driver's memory, mapped where it is looked at.
//! - [`server`] does all of it: requests, virtqueues, kicks, interrupts. What is left to write is
//!   a [`server::Backend`], which is handed descriptor chains.
//! - [`blk`] is such a backend, a disk; [`net`] is another, a network card.
//! - [`umem`] is memory of the device's own that the driver's data is copied through.
//!
//! The numbers and layouts are those of [`uapi`].

pub use vduse_uapi as uapi;

pub mod blk;
pub mod control;
pub mod device;
pub mod eventfd;
pub mod iotlb;
mod mapping;
pub mod net;
pub mod request;
pub mod server;
mod sys;
pub mod umem;

pub use control::{Control, DeviceConfig};
pub use device::Device;
pub use mapping::Mapping;
