// SPDX-License-Identifier: GPL-2.0

//! The daemon side of a device.

pub mod answered;
pub mod card;
pub mod disk;
pub mod fs;
pub mod fuse;
pub mod gate;
pub mod groups;
pub mod process;
pub mod regions;
pub mod rescue;
pub mod responder;
pub mod served_groups;
pub mod serving;
pub mod tap;
