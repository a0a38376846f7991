// SPDX-License-Identifier: GPL-2.0

//! The daemon side of a device.

pub mod disk;
pub mod fs;
pub mod fuse;
pub mod gate;
pub mod groups;
pub mod process;
pub mod rescue;
pub mod responder;
pub mod serving;
