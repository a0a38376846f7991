// SPDX-License-Identifier: GPL-2.0

//! File operations, both for character devices ([`super::chrdev`]) and for anonymous files
//! ([`super::anon_inode`]).
//!
//! C header: [`include/linux/fs.h`](srctree/include/linux/fs.h)

use super::{
    page::{
        Page,
        PAGE_SHIFT,
        PAGE_SIZE, //
    },
    raw as bindings, //
};
use core::{
    marker::PhantomData,
    ptr::{
        self,
        NonNull, //
    },
};
use kernel::{
    error::VTABLE_DEFAULT_ERROR,
    fs::{
        file::flags::O_NONBLOCK,
        File,
        Kiocb, //
    },
    iov::{
        IovIterDest,
        IovIterSource, //
    },
    mm::virt::{
        VmaMixedMap,
        VmaNew,
        VmaRef, //
    },
    prelude::*,
    sync::{
        aref::ARef,
        poll::PollTable, //
    },
    types::ForeignOwnable, //
};

/// Returns the module that this code is part of, as the owner of objects that must keep the
/// module's code in memory.
///
/// This is the right owner for any C table of generic functions of this crate: the functions are in
/// this module, wherever their type parameters come from.
pub(crate) const fn this_module() -> *mut bindings::module {
    // The equivalent of `THIS_MODULE` in C. Where `module!` puts its own differs between kernels.
    &raw mut bindings::__this_module
}

/// A set of poll events: what can be done with a file without waiting.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Events(bindings::__poll_t);

impl Events {
    /// No event.
    pub(crate) const NONE: Self = Self(0);
    /// The file can be read.
    pub(crate) const READABLE: Self = Self(bindings::POLLIN | bindings::POLLRDNORM);
    /// The file can be written.
    pub(crate) const WRITABLE: Self = Self(bindings::POLLOUT | bindings::POLLWRNORM);
    /// Something is wrong with the file.
    pub(crate) const ERROR: Self = Self(bindings::POLLERR);

    /// Returns these events, with `others` added if `condition` holds.
    pub(crate) const fn with(self, others: Self, condition: bool) -> Self {
        if condition {
            Self(self.0 | others.0)
        } else {
            self
        }
    }
}

/// The operations on an open file.
///
/// A file holds a reference to the module from before its data is created until after the data is
/// dropped.
///
/// # Context
///
/// Every method runs in process context and may sleep.
#[vtable]
pub(crate) trait FileOperations: Sized + 'static {
    /// The private data of an open file.
    ///
    /// The data is dropped when the last reference to the file is gone, with no other call in
    /// progress or to come. The drop may happen in a task that never used the file, or long after
    /// the descriptor was closed (a call in progress and a mapping hold references too).
    type Data: ForeignOwnable + Send + Sync + 'static;

    /// Reads from the file, and returns the number of bytes put into `iov`.
    ///
    /// [`must_not_block`] tells whether this call may wait.
    fn read_iter(_kiocb: Kiocb<'_, Self::Data>, _iov: &mut IovIterDest<'_>) -> Result<usize> {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Writes to the file, and returns the number of bytes taken from `iov`.
    ///
    /// [`must_not_block`] tells whether this call may wait.
    fn write_iter(_kiocb: Kiocb<'_, Self::Data>, _iov: &mut IovIterSource<'_>) -> Result<usize> {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Registers with `table` everything that can wake a waiter, then returns what can be done
    /// without waiting.
    fn poll(
        _data: <Self::Data as ForeignOwnable>::Borrowed<'_>,
        _file: &File,
        _table: PollTable<'_>,
    ) -> Events {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Handles an ioctl.
    ///
    /// Must return `ENOTTY` or `ENOIOCTLCMD` for an unknown `cmd`: userspace sees `ENOTTY` either
    /// way.
    fn ioctl(
        _data: <Self::Data as ForeignOwnable>::Borrowed<'_>,
        _file: &File,
        _cmd: u32,
        _arg: usize,
    ) -> Result<isize> {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Handles an ioctl of a 32-bit program on a 64-bit kernel.
    ///
    /// Needed only if a structure has another layout in such a program. Without this method,
    /// [`ioctl`](Self::ioctl) is called, with the argument taken for a pointer.
    #[cfg(CONFIG_COMPAT)]
    fn compat_ioctl(
        _data: <Self::Data as ForeignOwnable>::Borrowed<'_>,
        _file: &File,
        _cmd: u32,
        _arg: usize,
    ) -> Result<isize> {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Returns the page at an offset of the file, in bytes and a multiple of the page size, for a
    /// mapping that was accessed there. [`None`] raises a bus error.
    ///
    /// Files can be mapped if their type implements this method. A mapping holds a reference to the
    /// file, is not part of core dumps and cannot grow.
    ///
    /// # Context
    ///
    /// Called with the mmap lock held for reading.
    fn fault(
        _data: <Self::Data as ForeignOwnable>::Borrowed<'_>,
        _offset: u64,
    ) -> Option<ARef<Page>> {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Returns whether a fault in a mapping that begins at an offset of the file also maps pages of
    /// [`fault_around`](Self::fault_around). If so, a process that forks copies the mapping's page
    /// tables.
    ///
    /// # Context
    ///
    /// Called with the mmap lock held for writing.
    fn maps_around(_data: <Self::Data as ForeignOwnable>::Borrowed<'_>, _offset: u64) -> bool {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Returns the page at an offset of the file shortly after that of a page that was accessed, to
    /// map both at once, which saves a fault if the second page is accessed too. [`None`] leaves
    /// the page and all after it to [`fault`](Self::fault).
    ///
    /// No method is called again for a page that was mapped in this way. So the file must never
    /// have a different page at this offset later; if the file may later have no page there, the
    /// old page must do no harm when it is still visible.
    ///
    /// # Context
    ///
    /// As for [`fault`](Self::fault).
    fn fault_around(
        _data: <Self::Data as ForeignOwnable>::Borrowed<'_>,
        _offset: u64,
    ) -> Option<ARef<Page>> {
        build_error!(VTABLE_DEFAULT_ERROR)
    }
}

/// Returns whether a read or a write has to fail with `EAGAIN` instead of waiting: either the file
/// is in non-blocking mode, or this one call is.
pub(crate) fn must_not_block<T: ForeignOwnable>(kiocb: &Kiocb<'_, T>) -> bool {
    let kiocb = kiocb.as_raw();
    // SAFETY: A `Kiocb` points to a valid `struct kiocb`, and its flags do not change while a read
    // or write handler has it.
    let nowait = unsafe { (*kiocb).ki_flags } & bindings::RUST_CONST_HELPER_IOCB_NOWAIT != 0;
    // SAFETY: As above; a `struct kiocb` has a reference to its file. The volatile read is that of
    // `READ_ONCE`: userspace can change the flags meanwhile.
    let flags = unsafe { (&raw const (*(*kiocb).ki_filp).f_flags).read_volatile() };

    nowait || flags & O_NONBLOCK != 0
}

/// The C function that opens a file.
pub(super) type Open = unsafe extern "C" fn(*mut bindings::inode, *mut bindings::file) -> c_int;

/// The C functions that call those of [`FileOperations`], and the table of them.
pub(super) struct VTable<T: FileOperations>(PhantomData<T>);

impl<T: FileOperations> VTable<T> {
    /// Builds the operations table of a type of file.
    ///
    /// # Safety
    ///
    /// The private data of every file that is opened with this table must be a pointer that
    /// `T::Data::into_foreign()` returned for this file alone: either `open` stores the pointer in
    /// the file if it succeeds, or the pointer is stored before any other code has the file. Only
    /// the functions of this table may convert the pointer back.
    pub(super) const unsafe fn build(open: Option<Open>) -> bindings::file_operations {
        bindings::file_operations {
            owner: this_module(),
            open,
            release: Some(Self::release),
            llseek: Some(bindings::noop_llseek),
            read_iter: if T::HAS_READ_ITER {
                Some(Self::read_iter)
            } else {
                None
            },
            write_iter: if T::HAS_WRITE_ITER {
                Some(Self::write_iter)
            } else {
                None
            },
            poll: if T::HAS_POLL { Some(Self::poll) } else { None },
            unlocked_ioctl: if T::HAS_IOCTL {
                Some(Self::ioctl)
            } else {
                None
            },
            #[cfg(CONFIG_COMPAT)]
            compat_ioctl: if T::HAS_COMPAT_IOCTL {
                Some(Self::compat_ioctl)
            } else if T::HAS_IOCTL {
                bindings::compat_ptr_ioctl
            } else {
                None
            },
            mmap: if T::HAS_FAULT { Some(Self::mmap) } else { None },
            ..pin_init::zeroed()
        }
    }

    /// Borrows the private data of a file.
    ///
    /// # Safety
    ///
    /// `file` must be valid, its `f_op` must be the table of `Self`, and it must not be released
    /// during `'a`.
    unsafe fn data<'a>(file: *mut bindings::file) -> <T::Data as ForeignOwnable>::Borrowed<'a> {
        // SAFETY: The file is valid, and its private data does not change until it is released.
        let private = unsafe { (*file).private_data };
        // SAFETY: The pointer came from `into_foreign()`, see `build()`, and only `release()`
        // converts it back, which by the safety requirements is after `'a`.
        unsafe { T::Data::borrow(private) }
    }

    /// # Safety
    ///
    /// `file` must be a file with this table that is being released.
    unsafe extern "C" fn release(_inode: *mut bindings::inode, file: *mut bindings::file) -> c_int {
        // SAFETY: The file is valid until this returns.
        let private = unsafe { (*file).private_data };
        // SAFETY: The pointer came from `into_foreign()`, see `build()`. A file is released once,
        // with no other operation in progress, so no borrow is left.
        drop(unsafe { T::Data::from_foreign(private) });
        0
    }

    /// # Safety
    ///
    /// `kiocb` must be for a file with this table, and `iov` a destination, both for the duration
    /// of this call.
    unsafe extern "C" fn read_iter(
        kiocb: *mut bindings::kiocb,
        iov: *mut bindings::iov_iter,
    ) -> isize {
        // SAFETY: By the safety requirements; the private data is a `T::Data`, see `build()`.
        let kiocb = unsafe { Kiocb::from_raw(kiocb) };
        // SAFETY: By the safety requirements; the caller does not access `iov` during this call.
        let iov = unsafe { IovIterDest::from_raw(iov) };

        transferred(T::read_iter(kiocb, iov))
    }

    /// # Safety
    ///
    /// `kiocb` must be for a file with this table, and `iov` a source, both for the duration of
    /// this call.
    unsafe extern "C" fn write_iter(
        kiocb: *mut bindings::kiocb,
        iov: *mut bindings::iov_iter,
    ) -> isize {
        // SAFETY: By the safety requirements; the private data is a `T::Data`, see `build()`.
        let kiocb = unsafe { Kiocb::from_raw(kiocb) };
        // SAFETY: By the safety requirements; the caller does not access `iov` during this call.
        let iov = unsafe { IovIterSource::from_raw(iov) };

        transferred(T::write_iter(kiocb, iov))
    }

    /// # Safety
    ///
    /// `file` must be a file with this table and `table` null or a poll table, both valid for the
    /// duration of this call.
    unsafe extern "C" fn poll(
        file: *mut bindings::file,
        table: *mut bindings::poll_table_struct,
    ) -> bindings::__poll_t {
        // SAFETY: The caller holds a reference to the file during this call.
        let data = unsafe { Self::data(file) };
        // SAFETY: As above; polling does not use the file position.
        let file = unsafe { File::from_raw_file(file) };
        // SAFETY: By the safety requirements.
        let table = unsafe { PollTable::from_raw(table) };

        T::poll(data, file, table).0
    }

    /// # Safety
    ///
    /// `file` must be a file with this table, valid for the duration of this call.
    unsafe extern "C" fn ioctl(file: *mut bindings::file, cmd: c_uint, arg: c_ulong) -> c_long {
        // SAFETY: The caller holds a reference to the file during this call.
        let data = unsafe { Self::data(file) };
        // SAFETY: As above; ioctls do not use the file position.
        let file = unsafe { File::from_raw_file(file) };

        answered(T::ioctl(data, file, cmd, arg))
    }

    /// # Safety
    ///
    /// `file` must be a file with this table, valid for the duration of this call.
    #[cfg(CONFIG_COMPAT)]
    unsafe extern "C" fn compat_ioctl(
        file: *mut bindings::file,
        cmd: c_uint,
        arg: c_ulong,
    ) -> c_long {
        // SAFETY: The caller holds a reference to the file during this call.
        let data = unsafe { Self::data(file) };
        // SAFETY: As above; ioctls do not use the file position.
        let file = unsafe { File::from_raw_file(file) };

        answered(T::compat_ioctl(data, file, cmd, arg))
    }

    /// # Safety
    ///
    /// `file` must be a file with this table, valid for the duration of this call, and `vma` a
    /// mapping of it that is being set up.
    unsafe extern "C" fn mmap(
        file: *mut bindings::file,
        vma: *mut bindings::vm_area_struct,
    ) -> c_int {
        // SAFETY: By the safety requirements.
        let new = unsafe { VmaNew::from_raw(vma) };
        new.set_dontdump();
        new.set_dontexpand();
        if T::HAS_MAPS_AROUND {
            // SAFETY: By the safety requirements.
            let (data, offset) =
                unsafe { (Self::data(file), ((*vma).vm_pgoff as u64) << PAGE_SHIFT) };

            if T::maps_around(data, offset) {
                new.set_mixedmap();
            }
        }

        // SAFETY: A mapping that is being set up may be written to. Its file remains `file`, which
        // has this table.
        unsafe { (*vma).vm_ops = &Self::VM_OPERATIONS };

        0
    }

    const VM_OPERATIONS: bindings::vm_operations_struct = bindings::vm_operations_struct {
        fault: Some(Self::fault),
        ..pin_init::zeroed()
    };

    /// # Safety
    ///
    /// `vmf` must be a fault, valid for the duration of this call, in a mapping of a file with this
    /// table.
    unsafe extern "C" fn fault(vmf: *mut bindings::vm_fault) -> bindings::vm_fault_t {
        // SAFETY: By the safety requirements, the fault is valid, and these fields are constant.
        let (vma, address, offset) = unsafe {
            let about = &(*vmf).__bindgen_anon_1;
            (about.vma, about.address, (about.pgoff as u64) << PAGE_SHIFT)
        };
        // SAFETY: The mapping holds a reference to its file. The lock that faults are handled under
        // is held during this call.
        let (data, vma) = unsafe { (Self::data((*vma).vm_file), VmaRef::from_raw(vma)) };

        match T::fault(data, offset) {
            Some(page) => {
                if T::HAS_FAULT_AROUND {
                    if let Some(vma) = vma.as_mixedmap_vma() {
                        // SAFETY: The fault at `address` and `offset` is in this mapping, and in
                        // progress.
                        unsafe { Self::map_behind(vma, address, offset) }
                    }
                }
                // SAFETY: By the safety requirements. The reference to the page goes to the caller.
                unsafe { (*vmf).page = ARef::into_raw(page).as_ptr().cast() };
                0
            }
            None => bindings::vm_fault_reason_VM_FAULT_SIGBUS,
        }
    }

    /// Maps the pages after the one that was accessed, up to the first that
    /// [`FileOperations::fault_around`] does not return or that is already mapped.
    ///
    /// # Safety
    ///
    /// `vma` must be a mapping of a file with this table, in which a fault is being handled for the
    /// page at `address`, which must be the page at `offset` of the file.
    unsafe fn map_behind(vma: &VmaMixedMap, address: usize, offset: u64) {
        /// The number of pages to map, including the one that was accessed: as many as the kernel
        /// maps of ordinary files (`fault_around_bytes`).
        const PAGES: usize = 16;

        // SAFETY: A mapping's file does not change while a fault in the mapping is handled.
        let file = unsafe { (*vma.as_ptr()).vm_file };
        let behind = (vma.end() - address) / PAGE_SIZE - 1;
        let mut pages = [ptr::null_mut(); PAGES - 1];
        let mut count = 0;

        for (place, number) in pages.iter_mut().zip(1..=behind) {
            // SAFETY: The mapping holds a reference to its file, and exists during this whole call.
            let data = unsafe { Self::data(file) };
            let page = T::fault_around(data, offset + (number << PAGE_SHIFT) as u64);
            // Unlike the page that `fault` returned, these are not checked for poison later.
            let Some(page) = page.filter(|page| !page.is_poisoned()) else {
                break;
            };
            *place = ARef::into_raw(page).as_ptr().cast();
            count += 1;
        }
        if count == 0 {
            return;
        }

        let mut left = count;
        // SAFETY: `pages` begins with `count` pages, to which the mapping takes references of its
        // own. By the invariants of `VmaMixedMap`, pages can be inserted into the mapping, and its
        // lock is held. The address is that of the page after the one that was accessed, and inside
        // the mapping. Pages that could not be mapped fault when they are accessed.
        let _ = unsafe {
            bindings::vm_insert_pages(
                vma.as_ptr(),
                address + PAGE_SIZE,
                pages.as_mut_ptr(),
                &raw mut left,
            )
        };

        for page in pages.into_iter().filter_map(NonNull::new) {
            // SAFETY: The reference is the one that `into_raw()` returned above.
            drop(unsafe { ARef::<Page>::from_raw(page.cast()) });
        }
    }
}

/// Converts the result of a read or a write to the C return value.
fn transferred(result: Result<usize>) -> isize {
    match result {
        // CAST: No buffer is larger than `isize::MAX`.
        Ok(count) => count as isize,
        Err(error) => error.to_errno() as isize,
    }
}

/// Converts the result of an ioctl to the C return value.
fn answered(result: Result<isize>) -> c_long {
    match result {
        Ok(value) => value,
        Err(error) if error == ENOIOCTLCMD => ENOTTY.to_errno() as c_long,
        Err(error) => error.to_errno() as c_long,
    }
}
