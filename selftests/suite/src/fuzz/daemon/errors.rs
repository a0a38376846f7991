// SPDX-License-Identifier: GPL-2.0

//! Errors with which a daemon's calls may fail.

use rustix::io::Errno;

/// Errors of opening a device.
pub const OPEN: &[Errno] = &[Errno::NOENT, Errno::BUSY, Errno::NODEV, Errno::NXIO];

/// Error of every ioctl on a broken device.
pub const BROKEN: Errno = Errno::PERM;

/// Errors of an ioctl whose arguments may be invalid.
pub const INVALID: &[Errno] = &[BROKEN, Errno::INVAL];
