// SPDX-License-Identifier: GPL-2.0

//! The errors that a daemon's calls may fail with.

use rustix::io::Errno;

/// Opening a device.
pub const OPEN: &[Errno] = &[Errno::NOENT, Errno::BUSY, Errno::NODEV, Errno::NXIO];

/// What any ioctl of a device that has been given up says.
pub const BROKEN: Errno = Errno::PERM;

pub const INVALID: &[Errno] = &[BROKEN, Errno::INVAL];
