// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A client of the vDPA core's generic netlink family, the interface of iproute2's `vdpa` program.
//!
//! ```no_run
//! # fn main() -> std::io::Result<()> {
//! let vdpa = vdpa_netlink::Vdpa::open()?;
//! vdpa.add("disk0", "vduse")?;
//! println!("{:?}", vdpa.device("disk0")?);
//! vdpa.delete("disk0")?;
//! # Ok(())
//! # }
//! ```
//!
//! Each call blocks until the kernel has completed it. When a call adds or deletes a VDUSE device,
//! the kernel waits for the device's daemon to answer.

#![forbid(unsafe_code)]

mod attributes;
mod info;
mod message;
mod socket;

pub use info::{DeviceConfig, DeviceInfo, ManagementDevice};
pub use socket::Vdpa;

/// The examples of the README, which are compiled as documentation tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
