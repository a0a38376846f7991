// SPDX-License-Identifier: GPL-2.0

//! Files without a name.
//!
//! C header: [`include/linux/anon_inodes.h`](srctree/include/linux/anon_inodes.h)

use super::{
    file_ops::{
        FileOperations,
        VTable, //
    },
    raw, //
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

/// The C side of a kind of anonymous file.
struct AnonFile<T: FileOperations>(PhantomData<T>);

impl<T: FileOperations> AnonFile<T> {
    const FILE_OPERATIONS: raw::file_operations = {
        // SAFETY: Only `open` below uses the table, for files that are made with a `T::Data`.
        unsafe { VTable::<T>::build(None) }
    };
}

/// Opens a new file with the operations of `T` on `data`.
///
/// `name` is what shows, with `anon_inode:` before it, where `/proc/PID/fd` links to. Of `flags`,
/// only the access mode and `O_NONBLOCK` count.
///
/// The file gets no descriptor. `data` is dropped when the last reference to the file is gone, in
/// process context: by the task that drops the reference as it returns to userspace, or by a work
/// item if that is a kernel thread, an exiting task or an interrupt.
///
/// Fails with `ENOMEM`, `ENFILE` if there are too many open files, or `ENOENT` if the module is
/// being unloaded; `data` is dropped then. May sleep.
///
/// To find out whether some file is this one, compare the addresses with [`core::ptr::eq`].
pub(crate) fn open<T: FileOperations>(
    name: &CStr,
    data: T::Data,
    flags: u32,
) -> Result<ARef<File>> {
    let private = data.into_foreign();
    // CAST: Both are the lowest bits.
    let flags = (flags & (O_ACCMODE | O_NONBLOCK)) as c_int;

    // SAFETY: The table is static, and the private data is what it is for. The name is copied.
    let file = from_err_ptr(unsafe {
        raw::anon_inode_getfile(
            name.as_char_ptr(),
            &AnonFile::<T>::FILE_OPERATIONS,
            private,
            flags,
        )
    })
    .inspect_err(|_| {
        // SAFETY: It came from `into_foreign()` above, and there is no file that it belongs to.
        drop(unsafe { T::Data::from_foreign(private) });
    })?;

    let file = NonNull::new(file).ok_or(ENOMEM)?;
    // SAFETY: The only reference to the new file is ours to give. No descriptor refers to it, so
    // nothing can be using its position. A `File` is a `struct file`.
    Ok(unsafe { ARef::from_raw(file.cast()) })
}
