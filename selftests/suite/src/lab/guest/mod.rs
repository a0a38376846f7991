// SPDX-License-Identifier: GPL-2.0

//! QEMU: guests that use a device; its storage daemon, which serves one.

pub mod card;
pub mod interface;
pub mod ping;
pub mod qemu;
pub mod qmp;
pub mod qsd;
