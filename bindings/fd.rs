// SPDX-License-Identifier: GPL-2.0

//! File descriptors of the current task.
//!
//! C header: [`include/linux/file.h`](srctree/include/linux/file.h)

use super::raw as bindings;
use core::ptr;
use kernel::{
    fs::{
        file::flags::O_CLOEXEC,
        File, //
    },
    prelude::*, //
};

/// Installs a descriptor of `file` in the current task, and returns its number.
///
/// For a file that the task did not open itself: security modules are asked whether the task may
/// have the file. The descriptor is closed on exec. It gives the access that the file was opened
/// with, as a descriptor has no access mode of its own.
///
/// Another thread can use or close the descriptor before this returns, so the caller must not fail
/// afterwards.
///
/// # Errors
///
/// `EMFILE` if the task has too many descriptors; `EBADF` if the task is exiting and has no table
/// of descriptors any more; `ENOMEM`; or the error of a security module.
///
/// # Context
///
/// May sleep.
pub(crate) fn receive(file: &File) -> Result<u32> {
    // SAFETY: The current task is valid, and only the task itself changes this pointer.
    if unsafe { (*bindings::get_current()).files }.is_null() {
        return Err(EBADF);
    }

    // SAFETY: The file is valid, and the descriptor gets a reference of its own. By the invariant
    // of `File`, no use of the file's position is in progress that could race with a use through
    // the new descriptor. The task has a table of descriptors, as checked above.
    let fd = unsafe { bindings::receive_fd(file.as_ptr(), ptr::null_mut(), O_CLOEXEC) };

    u32::try_from(fd).map_err(|_| Error::from_errno(fd))
}
