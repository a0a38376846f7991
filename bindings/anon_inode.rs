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

/// The C operations table of anonymous files whose operations are those of `T`.
struct AnonFile<T: FileOperations>(PhantomData<T>);

impl<T: FileOperations> AnonFile<T> {
    const FILE_OPERATIONS: bindings::file_operations = {
        // SAFETY: Only `open` below uses the table. `open` passes a pointer from
        // `T::Data::into_foreign()` to `anon_inode_getfile()`, which stores the pointer before any
        // other code can use the file.
        unsafe { VTable::<T>::build(None) }
    };
}

/// Opens a new file whose operations are those of `T` and whose private data is `data`.
///
/// `/proc/PID/fd` shows the file as a link to `name`, prefixed with `anon_inode:`. The file takes
/// only the access mode and `O_NONBLOCK` from `flags`.
///
/// The file gets no descriptor. `data` is dropped in process context, after the last reference to
/// the file is dropped. If a user task drops the last reference, that task drops `data` when it
/// returns to userspace. If a kernel thread, an exiting task or an interrupt drops the last
/// reference, a work item drops `data`.
///
/// To test whether a given file is the returned file, compare their addresses with
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
    // CAST: The access mode and `O_NONBLOCK` are low bits, which fit into a `c_int`.
    let flags = (flags & (O_ACCMODE | O_NONBLOCK)) as c_int;

    // SAFETY: The table is static, and `private` is the private data that the table's functions
    // expect. `anon_inode_getfile` copies the name.
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
    if T::HAS_ADDRESS_SPACE {
        // SAFETY: No other code uses the file yet. Its data is not dropped before the file is
        // released, and by the requirements of `FileOperations` keeps the address space until then.
        unsafe { T::address_space(&T::Data::borrow(private)).attach(file.as_ptr()) }
    }
    // SAFETY: This function owns the only reference to the new file. No descriptor refers to the
    // file, so nothing can be using its position. A `File` is a `struct file`.
    Ok(unsafe { ARef::from_raw(file.cast()) })
}
