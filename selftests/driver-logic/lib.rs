// SPDX-License-Identifier: GPL-2.0

//! Files of the driver and its bindings that do not depend on the kernel. This crate compiles them
//! so that their unit tests run on the host.

pub use vduse_uapi as uapi;

// The kernel module uses every item of these files. In this crate, only the tests use them.
#[allow(dead_code)]
#[path = "../../driver/budget.rs"]
mod budget;

#[allow(dead_code)]
#[path = "../../driver/config.rs"]
mod config;

#[allow(dead_code)]
#[path = "../../driver/net_ctrl.rs"]
mod net_ctrl;

#[allow(dead_code)]
#[path = "../../driver/quirks.rs"]
mod quirks;

#[allow(dead_code)]
#[path = "../../bindings/vdpa/status.rs"]
mod status;

#[allow(dead_code)]
#[path = "../../bindings/vring.rs"]
mod vring;
