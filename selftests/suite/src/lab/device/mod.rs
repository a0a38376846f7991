// SPDX-License-Identifier: GPL-2.0

//! VDUSE devices, both on the vDPA bus and off it.

pub mod bus;
pub mod negotiation;
pub mod spaces;
pub mod test_device;
pub mod virtio;
