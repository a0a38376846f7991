// SPDX-License-Identifier: GPL-2.0

//! File descriptors of the current task.
//!
//! C header: [`include/linux/file.h`](srctree/include/linux/file.h)

use super::raw;
use core::ptr;
use kernel::{
    fs::{
        file::flags::O_CLOEXEC,
        File, //
    },
    prelude::*, //
};

/// Gives the current task a descriptor of `file`, and returns its number.
///
/// For a file that was not opened by the task itself: security modules are asked whether it may
/// have it. The descriptor is closed on exec. The access is what the file was opened with: a
/// descriptor has none of its own.
///
/// Another thread can use, or close, the descriptor before this returns, so nothing may fail
/// after it.
///
/// Fails with `EMFILE` if the task has too many descriptors, `EBADF` if it has none any more
/// because it is exiting, `ENOMEM`, or with what a security module says. May sleep.
pub(crate) fn receive(file: &File) -> Result<u32> {
    // SAFETY: The current task is valid, and changes its own table of descriptors only itself.
    if unsafe { (*raw::get_current()).files }.is_null() {
        return Err(EBADF);
    }

    // SAFETY: The file is valid, and gets a reference of its own. By the invariant of `File` it is
    // not in the middle of a use of its position that would be a race with one by way of the new
    // descriptor. There is a table to put it into.
    let fd = unsafe { raw::receive_fd(file.as_ptr(), ptr::null_mut(), O_CLOEXEC) };

    u32::try_from(fd).map_err(|_| Error::from_errno(fd))
}
