// SPDX-License-Identifier: GPL-2.0

//! The ioctls of userfaultfd (`include/uapi/linux/userfaultfd.h`).

use crate::lab::kernel::raw::{number, READ, WRITE};

/// Type byte of the ioctls.
const TYPE: u8 = 0xaa;

/// Version of the userfaultfd interface.
pub const VERSION: u64 = 0xaa;
/// Registration mode in which the kernel reports faults on missing pages.
pub const MODE_MISSING: u64 = 1;

/// Ioctl that negotiates the version of the interface.
pub const API: u32 = number(READ | WRITE, TYPE, 0x3f, 24);
/// Ioctl that registers a range of addresses in which the kernel reports faults.
pub const REGISTER: u32 = number(READ | WRITE, TYPE, 0x00, 32);
/// Ioctl that wakes the threads that wait for a page of a range.
pub const WAKE: u32 = number(READ, TYPE, 0x02, 16);
/// Ioctl that fills a missing page, and wakes the threads that wait for the page.
pub const COPY: u32 = number(READ | WRITE, TYPE, 0x03, 40);
/// Ioctl that fills a missing page with zeroes, and wakes the threads that wait for the page.
pub const ZEROPAGE: u32 = number(READ | WRITE, TYPE, 0x04, 32);
