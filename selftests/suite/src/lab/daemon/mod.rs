// SPDX-License-Identifier: GPL-2.0

//! The daemon side of a device.

pub mod answered;
pub mod bounce_pages;
pub mod card;
pub mod control_ring;
pub mod disk;
pub mod fs;
pub mod fuse;
pub mod groups;
pub mod interrupt_on_drop;
pub mod irq_blocker;
pub mod out_of_order;
pub mod process;
pub mod refusing;
pub mod regions;
pub mod replaceable;
pub mod responder;
pub mod served_groups;
pub mod serving;
pub mod tap;
pub mod unanswered;
pub mod vduse_blk;
pub mod vswitch;
