// SPDX-License-Identifier: GPL-2.0

//! VDUSE devices, on the vDPA bus or not.

pub mod bus;
pub mod negotiation;
pub mod spaces;
pub mod test_device;
pub mod virtio;
