// SPDX-License-Identifier: GPL-2.0

//! Those files of the driver and of its bindings that need no kernel, so that their unit tests run on the
//! host.

pub use vduse_uapi as uapi;

// The module uses all of it; here, only the tests do.
#[allow(dead_code)]
#[path = "../../driver/config.rs"]
mod config;

#[allow(dead_code)]
#[path = "../../driver/quirks.rs"]
mod quirks;

#[allow(dead_code)]
#[path = "../../bindings/vdpa/status.rs"]
mod status;
