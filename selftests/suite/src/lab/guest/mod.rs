// SPDX-License-Identifier: GPL-2.0

//! QEMU's programs: guests that use a device, and the storage daemon that serves a disk.

pub mod card;
pub mod interface;
pub mod ping;
pub mod qemu;
pub mod qmp;
pub mod qsd;
