// SPDX-License-Identifier: GPL-2.0

//! Anonymous files: open files without a name in any file system.
//!
//! C header: [`include/linux/anon_inodes.h`](srctree/include/linux/anon_inodes.h)

use super::{
    file_ops::{
        FileOperations,
        VTable, //
    },
    raw as bindings, //
};
use core::{
    marker::PhantomData,
    ptr::NonNull, //
};
use kernel::{
    error::from_err_ptr,
    fs::{
        file::flags::{
            O_ACCMODE,
            O_NONBLOCK, //
        },
        File, //
    },
    prelude::*,
    sync::aref::ARef,
    types::ForeignOwnable, //
};

/// The C operations table of anonymous files with the operations of `T`.
struct AnonFile<T: FileOperations>(PhantomData<T>);

impl<T: FileOperations> AnonFile<T> {
    const FILE_OPERATIONS: bindings::file_operations = {
        // SAFETY: Only `open` below uses the table. It passes a pointer from
        // `T::Data::into_foreign()` to `anon_inode_getfile()`, which stores it before any other
        // code has the file.
        unsafe { VTable::<T>::build(None) }
    };
}

/// Opens a new file with the operations of `T` on `data`.
///
/// `/proc/PID/fd` shows the file as a link to `name`, prefixed with `anon_inode:`. Of `flags`, only
/// the access mode and `O_NONBLOCK` are used.
///
/// The file gets no descriptor. `data` is dropped in process context when the last reference to the
/// file is gone: by the task that drops the reference, as the task returns to userspace, or by a
/// work item if the reference was dropped in a kernel thread, an exiting task or an interrupt.
///
/// To test whether a given file is the one returned here, compare their addresses with
/// [`core::ptr::eq`].
///
/// # Errors
///
/// `ENOMEM`; `ENFILE` if there are too many open files; `ENOENT` if the module is being unloaded.
/// `data` is dropped on every error.
///
/// # Context
///
/// May sleep.
pub(crate) fn open<T: FileOperations>(
    name: &CStr,
    data: T::Data,
    flags: u32,
) -> Result<ARef<File>> {
    let private = data.into_foreign();
    // CAST: Both are low bits, which fit into a `c_int`.
    let flags = (flags & (O_ACCMODE | O_NONBLOCK)) as c_int;

    // SAFETY: The table is static, and `private` is the private data that its functions expect. The
    // name is copied.
    let file = from_err_ptr(unsafe {
        bindings::anon_inode_getfile(
            name.as_char_ptr(),
            &AnonFile::<T>::FILE_OPERATIONS,
            private,
            flags,
        )
    })
    .inspect_err(|_| {
        // SAFETY: `private` came from `into_foreign()` above, and no file was created to hold it.
        drop(unsafe { T::Data::from_foreign(private) });
    })?;

    let file = NonNull::new(file).ok_or(ENOMEM)?;
    // SAFETY: This function owns the only reference to the new file. No descriptor refers to the
    // file, so nothing can be using its position. A `File` is a `struct file`.
    Ok(unsafe { ARef::from_raw(file.cast()) })
}
