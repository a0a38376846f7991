// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A client of the Linux vDPA core's generic netlink family, which iproute2's `vdpa` program uses
//! too.
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
//! Calls block until the kernel has finished, including everything that adding or deleting a device
//! waits for: for a VDUSE device, the answers of its daemon.

#![forbid(unsafe_code)]

mod attributes;
mod info;
mod message;
mod socket;

pub use info::{DeviceConfig, DeviceInfo, ManagementDevice};
pub use socket::Vdpa;
