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

/// Installs a descriptor of `file` in the current task, and returns the descriptor's number.
///
/// Meant for a file that the task did not open itself: the kernel asks the security modules whether
/// the task may receive the file. The descriptor is closed on exec. The descriptor gives the access
/// mode that the file was opened with.
///
/// Another thread can use or close the descriptor before this function returns, so the caller must
/// not fail afterwards.
///
/// # Errors
///
/// `EMFILE` if the task has too many descriptors; `EBADF` if the task is exiting and no longer has
/// a descriptor table; `ENOMEM`; or the error of a security module.
///
/// # Context
///
/// May sleep.
pub(crate) fn receive(file: &File) -> Result<u32> {
    // SAFETY: The current task is valid, and only the task itself changes its `files` pointer.
    if unsafe { (*bindings::get_current()).files }.is_null() {
        return Err(EBADF);
    }

    // SAFETY: The file is valid, and the descriptor gets a reference of its own. By the invariants
    // of `File`, each call of `fdget_pos` that is in progress has locked the file position. So a
    // use of the position through the new descriptor cannot race with such a call. The task has a
    // descriptor table, as checked above.
    let fd = unsafe { bindings::receive_fd(file.as_ptr(), ptr::null_mut(), O_CLOEXEC) };

    u32::try_from(fd).map_err(|_| Error::from_errno(fd))
}
