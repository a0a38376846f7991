// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Disks (virtio 1.3, section 5.2).
//!
//! [`Geometry`] describes a disk to its driver. [`parse`] and [`complete`] understand the driver's
//! requests, for a device of any kind. [`Disk`] is a simple backend for a
//! [`Server`](crate::server::Server), whose data is in a file or in an anonymous memory file
//! (memfd). Tests can read the same file, to check which data the disk has written.

mod disk;
mod geometry;
mod request;

pub use disk::{Disk, Stats};
pub use geometry::{config_space, device_config, resize, Geometry, FEATURES, READ_ONLY, SECTOR};
pub use request::{complete, parse, write_id, Operation, Segment, Segments, Status};
