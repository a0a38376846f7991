// SPDX-License-Identifier: GPL-2.0

//! Those files of `driver` and `bindings` that do not depend on the kernel. This crate compiles the
//! files so that their unit tests run on the host.

pub use vduse_uapi as uapi;

// The attribute `allow(dead_code)` is needed because only the tests of this crate use the items of
// the files below. The kernel module uses every item.
#[allow(dead_code)]
#[path = "../../driver/budget.rs"]
mod budget;

#[allow(dead_code)]
#[path = "../../driver/net_ctrl.rs"]
mod net_ctrl;

#[allow(dead_code)]
#[path = "../../driver/quirks.rs"]
mod quirks;

#[allow(dead_code)]
#[path = "../../driver/validate.rs"]
mod validate;

#[allow(dead_code)]
#[path = "../../driver/virtio.rs"]
mod virtio;

#[allow(dead_code)]
#[path = "../../bindings/vdpa/status.rs"]
mod status;

#[allow(dead_code)]
#[path = "../../bindings/vring.rs"]
mod vring;
