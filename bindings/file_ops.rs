// SPDX-License-Identifier: GPL-2.0

//! File operations, for character devices ([`super::chrdev`]) and anonymous files
//! ([`super::anon_inode`]) alike.
//!
//! C header: [`include/linux/fs.h`](srctree/include/linux/fs.h)

use super::{
    page::{
        Page,
        PAGE_SHIFT,
        PAGE_SIZE, //
    },
    raw, //
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

/// The module that this code is part of, as the owner of what has to keep its code in memory.
///
/// Always the right owner for a C table made of generic functions of this crate: they are in this
/// module, wherever their type parameter comes from.
pub(crate) const fn this_module() -> *mut raw::module {
    // What `THIS_MODULE` is in C. Where `module!` puts one of its own differs between kernels.
    &raw mut raw::__this_module
}

/// What can be done with a file without waiting.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Events(raw::__poll_t);

impl Events {
    /// Nothing.
    pub(crate) const NONE: Self = Self(0);
    /// It can be read.
    pub(crate) const READABLE: Self = Self(raw::POLLIN | raw::POLLRDNORM);
    /// It can be written.
    pub(crate) const WRITABLE: Self = Self(raw::POLLOUT | raw::POLLWRNORM);
    /// Something is wrong with it.
    pub(crate) const ERROR: Self = Self(raw::POLLERR);

    /// These, and others under a condition.
    pub(crate) const fn with(self, others: Self, condition: bool) -> Self {
        if condition {
            Self(self.0 | others.0)
        } else {
            self
        }
    }
}

/// What can be done with an open file.
///
/// Every method runs in process context and may sleep. A file holds a reference to the module from
/// before its data exists until after that is dropped.
#[vtable]
pub(crate) trait FileOperations: Sized + 'static {
    /// The private data of an open file.
    ///
    /// It is dropped when the last reference to the file is gone, with no other call in progress or
    /// to come. This may be in another task than any that used the file, or long after the
    /// descriptor was closed (a call in progress and a mapping hold references too).
    type Data: ForeignOwnable + Send + Sync + 'static;

    /// Reads, and returns the number of bytes put into `iov`.
    ///
    /// See [`must_not_block`] for whether this call may wait.
    fn read_iter(_kiocb: Kiocb<'_, Self::Data>, _iov: &mut IovIterDest<'_>) -> Result<usize> {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Writes, and returns the number of bytes taken from `iov`.
    ///
    /// See [`must_not_block`] for whether this call may wait.
    fn write_iter(_kiocb: Kiocb<'_, Self::Data>, _iov: &mut IovIterSource<'_>) -> Result<usize> {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Returns what can be done without waiting, after having registered with `table` whatever
    /// will wake a waiter up.
    fn poll(
        _data: <Self::Data as ForeignOwnable>::Borrowed<'_>,
        _file: &File,
        _table: PollTable<'_>,
    ) -> Events {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Handles an ioctl.
    ///
    /// An unknown `cmd` is answered with `ENOTTY` or `ENOIOCTLCMD`: userspace sees `ENOTTY` either
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
    /// Only needed if a structure has another layout there. Without it, [`ioctl`](Self::ioctl) is
    /// called, with the argument taken for a pointer.
    #[cfg(CONFIG_COMPAT)]
    fn compat_ioctl(
        _data: <Self::Data as ForeignOwnable>::Borrowed<'_>,
        _file: &File,
        _cmd: u32,
        _arg: usize,
    ) -> Result<isize> {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Returns the page at an offset of the file, a multiple of the page size in bytes, for a
    /// mapping that was touched there. [`None`] is a bus error.
    ///
    /// A kind of file that has this can be mapped. A mapping holds a reference to the file; it is
    /// not part of core dumps and cannot grow. Comes with the mmap lock held for reading.
    fn fault(
        _data: <Self::Data as ForeignOwnable>::Borrowed<'_>,
        _offset: u64,
    ) -> Option<ARef<Page>> {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Whether a mapping that begins at an offset of the file is one in which a fault maps pages of
    /// [`fault_around`](Self::fault_around). If so, a process that forks copies its page tables.
    ///
    /// Comes with the mmap lock held for writing.
    fn maps_around(_data: <Self::Data as ForeignOwnable>::Borrowed<'_>, _offset: u64) -> bool {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Returns the page at an offset of the file soon behind one that was touched, to be mapped along
    /// with it, which saves a fault if it is touched, too. [`None`] leaves it and those behind it to
    /// [`fault`](Self::fault).
    ///
    /// Once a page is mapped in this way, nobody asks for it again. So it must not be one that the file
    /// may have another one for later on; if it may have none, it must do no harm to be seen still.
    /// Called as `fault` is.
    fn fault_around(
        _data: <Self::Data as ForeignOwnable>::Borrowed<'_>,
        _offset: u64,
    ) -> Option<ARef<Page>> {
        build_error!(VTABLE_DEFAULT_ERROR)
    }
}

/// Whether a read or a write has to fail with `EAGAIN` where it would wait: the file is in
/// non-blocking mode, or this one call is.
pub(crate) fn must_not_block<T: ForeignOwnable>(kiocb: &Kiocb<'_, T>) -> bool {
    let kiocb = kiocb.as_raw();
    // SAFETY: A `Kiocb` points to a valid `struct kiocb`, and its flags do not change while a read
    // or write handler has it.
    let nowait = unsafe { (*kiocb).ki_flags } & raw::RUST_CONST_HELPER_IOCB_NOWAIT != 0;
    // SAFETY: As above; it has a reference to its file. The volatile read stands for `READ_ONCE`:
    // userspace can change the flags meanwhile.
    let flags = unsafe { (&raw const (*(*kiocb).ki_filp).f_flags).read_volatile() };

    nowait || flags & O_NONBLOCK != 0
}

/// The C function that opens a file.
pub(super) type Open = unsafe extern "C" fn(*mut raw::inode, *mut raw::file) -> c_int;

/// The C side of [`FileOperations`].
pub(super) struct VTable<T: FileOperations>(PhantomData<T>);

impl<T: FileOperations> VTable<T> {
    /// Makes the table of a kind of file.
    ///
    /// # Safety
    ///
    /// The private data of every file that is opened with this table must be what
    /// `T::Data::into_foreign()` returned for this file alone: either `open` stores it there if it
    /// succeeds, or it is stored there before anybody else has the file. Nothing but the table may
    /// take it back.
    pub(super) const unsafe fn build(open: Option<Open>) -> raw::file_operations {
        raw::file_operations {
            owner: this_module(),
            open,
            release: Some(Self::release),
            llseek: Some(raw::noop_llseek),
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
                raw::compat_ptr_ioctl
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
    /// `file` must be a valid file with a table of `Self`, and must not be released during `'a`.
    unsafe fn data<'a>(file: *mut raw::file) -> <T::Data as ForeignOwnable>::Borrowed<'a> {
        // SAFETY: The file is valid, and its private data does not change until it is released.
        let private = unsafe { (*file).private_data };
        // SAFETY: It came from `into_foreign()`, see `build()`, and only `release()` takes it back,
        // which by the safety requirements is after `'a`.
        unsafe { T::Data::borrow(private) }
    }

    /// # Safety
    ///
    /// `file` must be a file with this table that is being released.
    unsafe extern "C" fn release(_inode: *mut raw::inode, file: *mut raw::file) -> c_int {
        // SAFETY: The file is valid until this returns.
        let private = unsafe { (*file).private_data };
        // SAFETY: It came from `into_foreign()`, see `build()`. A file is released once, with no
        // other operation in progress, so no borrow is left.
        drop(unsafe { T::Data::from_foreign(private) });
        0
    }

    /// # Safety
    ///
    /// `kiocb` must be for a file with this table, and `iov` a destination, both for the duration
    /// of this call.
    unsafe extern "C" fn read_iter(kiocb: *mut raw::kiocb, iov: *mut raw::iov_iter) -> isize {
        // SAFETY: By the safety requirements; the private data is a `T::Data`, see `build()`.
        let kiocb = unsafe { Kiocb::from_raw(kiocb) };
        // SAFETY: By the safety requirements; the caller does not touch it during this call.
        let iov = unsafe { IovIterDest::from_raw(iov) };

        transferred(T::read_iter(kiocb, iov))
    }

    /// # Safety
    ///
    /// `kiocb` must be for a file with this table, and `iov` a source, both for the duration of
    /// this call.
    unsafe extern "C" fn write_iter(kiocb: *mut raw::kiocb, iov: *mut raw::iov_iter) -> isize {
        // SAFETY: By the safety requirements; the private data is a `T::Data`, see `build()`.
        let kiocb = unsafe { Kiocb::from_raw(kiocb) };
        // SAFETY: By the safety requirements; the caller does not touch it during this call.
        let iov = unsafe { IovIterSource::from_raw(iov) };

        transferred(T::write_iter(kiocb, iov))
    }

    /// # Safety
    ///
    /// `file` must be a file with this table and `table` null or a poll table, both valid for the
    /// duration of this call.
    unsafe extern "C" fn poll(
        file: *mut raw::file,
        table: *mut raw::poll_table_struct,
    ) -> raw::__poll_t {
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
    unsafe extern "C" fn ioctl(file: *mut raw::file, cmd: c_uint, arg: c_ulong) -> c_long {
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
    unsafe extern "C" fn compat_ioctl(file: *mut raw::file, cmd: c_uint, arg: c_ulong) -> c_long {
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
    unsafe extern "C" fn mmap(file: *mut raw::file, vma: *mut raw::vm_area_struct) -> c_int {
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

        // SAFETY: A mapping that is being set up may be written to. Its file stays the one that it
        // is set up for, which has this table.
        unsafe { (*vma).vm_ops = &Self::VM_OPERATIONS };

        0
    }

    const VM_OPERATIONS: raw::vm_operations_struct = raw::vm_operations_struct {
        fault: Some(Self::fault),
        ..pin_init::zeroed()
    };

    /// # Safety
    ///
    /// `vmf` must be a fault, valid for the duration of this call, in a mapping of a file with this
    /// table.
    unsafe extern "C" fn fault(vmf: *mut raw::vm_fault) -> raw::vm_fault_t {
        // SAFETY: By the safety requirements. What a fault is about is constant.
        let (vma, address, offset) = unsafe {
            let about = &(*vmf).__bindgen_anon_1;
            (about.vma, about.address, (about.pgoff as u64) << PAGE_SHIFT)
        };
        // SAFETY: The mapping holds a reference to its file. The lock that a fault comes with is held
        // during this call.
        let (data, vma) = unsafe { (Self::data((*vma).vm_file), VmaRef::from_raw(vma)) };

        match T::fault(data, offset) {
            Some(page) => {
                if T::HAS_FAULT_AROUND {
                    if let Some(vma) = vma.as_mixedmap_vma() {
                        // SAFETY: The fault is in this mapping.
                        unsafe { Self::map_behind(vma, address, offset) }
                    }
                }
                // SAFETY: By the safety requirements. The reference to the page goes to the caller.
                unsafe { (*vmf).page = ARef::into_raw(page).as_ptr().cast() };
                0
            }
            None => raw::vm_fault_reason_VM_FAULT_SIGBUS,
        }
    }

    /// Maps pages behind one that was touched, until there is none to be mapped or one that is mapped
    /// already.
    ///
    /// # Safety
    ///
    /// `vma` must be a mapping of a file with this table, in which a fault at the page at `address` is
    /// being handled; that is at `offset` of the file.
    unsafe fn map_behind(vma: &VmaMixedMap, address: usize, offset: u64) {
        /// So many with the one that was touched: as many as the kernel maps of files
        /// (`fault_around_bytes`).
        const PAGES: usize = 16;

        // SAFETY: A mapping's file does not change while a fault is handled in it.
        let file = unsafe { (*vma.as_ptr()).vm_file };
        let behind = (vma.end() - address) / PAGE_SIZE - 1;
        let mut pages = [ptr::null_mut(); PAGES - 1];
        let mut count = 0;

        for (place, number) in pages.iter_mut().zip(1..=behind) {
            // SAFETY: The mapping holds a reference to its file, and stays during this call.
            let data = unsafe { Self::data(file) };
            let page = T::fault_around(data, offset + (number << PAGE_SHIFT) as u64);
            // Nobody looks for the mark later, as after `fault`.
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
        // SAFETY: There are `count` pages, of which the mapping takes references of its own. By the
        // invariants of its type, it is one for this, and its lock is held. The address is that of the
        // page behind the one that was touched, and inside the mapping. If not all can be mapped, they
        // are touched later.
        let _ = unsafe {
            raw::vm_insert_pages(
                vma.as_ptr(),
                address + PAGE_SIZE,
                pages.as_mut_ptr(),
                &raw mut left,
            )
        };

        for page in pages.into_iter().filter_map(NonNull::new) {
            // SAFETY: The reference is that of above.
            drop(unsafe { ARef::<Page>::from_raw(page.cast()) });
        }
    }
}

/// The result of a read or a write, as C returns it.
fn transferred(result: Result<usize>) -> isize {
    match result {
        // CAST: No buffer is larger than `isize::MAX`.
        Ok(count) => count as isize,
        Err(error) => error.to_errno() as isize,
    }
}

/// The result of an ioctl, as C returns it.
fn answered(result: Result<isize>) -> c_long {
    match result {
        Ok(value) => value,
        Err(error) if error == ENOIOCTLCMD => ENOTTY.to_errno() as c_long,
        Err(error) => error.to_errno() as c_long,
    }
}
