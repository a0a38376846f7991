// SPDX-License-Identifier: GPL-2.0

//! File operations, both for character devices ([`super::chrdev`]) and for anonymous files
//! ([`super::anon_inode`]).
//!
//! C header: [`include/linux/fs.h`](srctree/include/linux/fs.h)

use super::{
    address_space::AddressSpace,
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

/// Returns the module that this code is part of. An object that has this module as its owner keeps
/// the module's code in memory.
///
/// A C table of this crate's generic functions must have this module as its owner, because the
/// compiled functions are in this module, wherever their type parameters are defined.
pub(crate) const fn this_module() -> *mut bindings::module {
    // This is `THIS_MODULE` of C. The `THIS_MODULE` that `module!` defines is not used here,
    // because its path differs between kernels.
    &raw mut bindings::__this_module
}

/// A set of poll events, which say whether a file can be read or written without waiting, and
/// whether the file is in an error state.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Events(bindings::__poll_t);

impl Events {
    /// No event.
    pub(crate) const NONE: Self = Self(0);
    /// The file can be read.
    pub(crate) const READABLE: Self = Self(bindings::POLLIN | bindings::POLLRDNORM);
    /// The file can be written.
    pub(crate) const WRITABLE: Self = Self(bindings::POLLOUT | bindings::POLLWRNORM);
    /// The file is in an error state.
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
    /// The data is dropped after the last reference to the file is released, when no method is
    /// running and no method will be called. The drop may happen in a task that never used the
    /// file. The drop may also happen long after the descriptor was closed, because calls in
    /// progress and mappings hold references to the file, too.
    type Data: ForeignOwnable + Send + Sync + 'static;

    /// Reads from the file, and returns the number of bytes put into `iov`.
    ///
    /// May wait only if [`must_not_block`] returns `false`.
    fn read_iter(_kiocb: Kiocb<'_, Self::Data>, _iov: &mut IovIterDest<'_>) -> Result<usize> {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Writes to the file, and returns the number of bytes taken from `iov`.
    ///
    /// May wait only if [`must_not_block`] returns `false`.
    fn write_iter(_kiocb: Kiocb<'_, Self::Data>, _iov: &mut IovIterSource<'_>) -> Result<usize> {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Adds to `table` every wait queue that is woken when a new event occurs, then returns the
    /// current events.
    fn poll(
        _data: <Self::Data as ForeignOwnable>::Borrowed<'_>,
        _file: &File,
        _table: PollTable<'_>,
    ) -> Events {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Handles an ioctl.
    ///
    /// For an unknown `cmd`, a new interface returns `ENOTTY` or `ENOIOCTLCMD`: userspace sees
    /// `ENOTTY` either way.
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
    /// Needed only if a structure has a different layout in such a program. Without this method,
    /// the kernel converts the argument to a pointer and calls [`ioctl`](Self::ioctl).
    #[cfg(CONFIG_COMPAT)]
    fn compat_ioctl(
        _data: <Self::Data as ForeignOwnable>::Borrowed<'_>,
        _file: &File,
        _cmd: u32,
        _arg: usize,
    ) -> Result<isize> {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Handles a page fault in a mapping of the file: returns the page at an offset of the file.
    /// The offset is in bytes, and a multiple of the page size. If the return value is [`None`],
    /// the process gets a `SIGBUS`.
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

    /// Returns whether a fault in a mapping also maps the pages that
    /// [`fault_around`](Self::fault_around) returns. The mapping begins at the given offset of the
    /// file, in bytes. If this method returns `true`, a fork copies the mapping's page tables.
    ///
    /// # Context
    ///
    /// Called with the mmap lock held for writing.
    fn maps_around(_data: <Self::Data as ForeignOwnable>::Borrowed<'_>, _offset: u64) -> bool {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Returns the address space of the file's mappings, through which the file's pages can be taken
    /// away from all processes. Without this method, a file shares an address space with others.
    ///
    /// The address space must exist until the file is released. Only files that
    /// [`super::anon_inode::open`] has opened can have an address space of their own.
    fn address_space<'a>(
        _data: &'a <Self::Data as ForeignOwnable>::Borrowed<'_>,
    ) -> &'a AddressSpace {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Returns the length of the part of a mapping, in bytes, whose page tables are allocated when
    /// the mapping is made. The mapping begins at the given offset of the file, in bytes. A later
    /// fault in that part needs no memory, apart from what [`fault`](Self::fault) allocates. The
    /// length may exceed that of the mapping.
    ///
    /// # Context
    ///
    /// Called with the mmap lock held for writing.
    fn prepared_len(_data: <Self::Data as ForeignOwnable>::Borrowed<'_>, _offset: u64) -> u64 {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Returns the page at an offset of the file, in bytes. Called after [`fault`](Self::fault),
    /// for the pages that follow the page of the fault. A returned page is mapped together with the
    /// page of the fault, which saves another fault if the process accesses the returned page, too.
    /// If the return value is [`None`], the page at the offset and all pages after it are not
    /// mapped now. They are left to later calls of [`fault`](Self::fault).
    ///
    /// No method is called again for a page that was mapped in this way. So before the file has a
    /// different page at this offset, or if the old page would do harm, the page must be
    /// [unmapped](AddressSpace::unmap). Until the page is mapped, there is a reference to it, which
    /// this method has returned.
    ///
    /// # Context
    ///
    /// Called with the mmap lock held for reading.
    fn fault_around(
        _data: <Self::Data as ForeignOwnable>::Borrowed<'_>,
        _offset: u64,
    ) -> Option<ARef<Page>> {
        build_error!(VTABLE_DEFAULT_ERROR)
    }
}

/// Returns whether a read or a write must fail with `EAGAIN` instead of waiting, because the file
/// or this single call is in non-blocking mode.
pub(crate) fn must_not_block<T: ForeignOwnable>(kiocb: &Kiocb<'_, T>) -> bool {
    let kiocb = kiocb.as_raw();
    // SAFETY: A `Kiocb` points to a valid `struct kiocb`, whose flags do not change while a read or
    // write handler uses it.
    let nowait = unsafe { (*kiocb).ki_flags } & bindings::RUST_CONST_HELPER_IOCB_NOWAIT != 0;
    // SAFETY: A `struct kiocb` holds a reference to its file. The read is volatile, as in
    // `READ_ONCE`, because userspace can change the flags at the same time.
    let flags = unsafe { (&raw const (*(*kiocb).ki_filp).f_flags).read_volatile() };

    nowait || flags & O_NONBLOCK != 0
}

/// The C function that opens a file.
pub(super) type Open = unsafe extern "C" fn(*mut bindings::inode, *mut bindings::file) -> c_int;

/// The C functions that call the methods of [`FileOperations`], and the C table of these functions.
pub(super) struct VTable<T: FileOperations>(PhantomData<T>);

impl<T: FileOperations> VTable<T> {
    /// Builds the operations table of a type of file.
    ///
    /// # Safety
    ///
    /// The private data of every file that is opened with this table must be a pointer that
    /// `T::Data::into_foreign()` returned for this file alone. Either `open` stores the pointer in
    /// the file if `open` succeeds, or the caller stores the pointer before any other code can use
    /// the file. Only the functions of this table may convert the pointer back.
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
    /// `file` must be valid, its `f_op` must be the table of `Self`, and the file must not be
    /// released during `'a`.
    unsafe fn data<'a>(file: *mut bindings::file) -> <T::Data as ForeignOwnable>::Borrowed<'a> {
        // SAFETY: The file is valid, and its private data does not change until the file is
        // released.
        let private = unsafe { (*file).private_data };
        // SAFETY: The pointer came from `into_foreign()`, see `build()`. Only `release()` converts
        // the pointer back, which by the safety requirements is after `'a`.
        unsafe { T::Data::borrow(private) }
    }

    /// Drops the private data of a file.
    ///
    /// # Safety
    ///
    /// `file` must be a file with this table that is being released.
    unsafe extern "C" fn release(_inode: *mut bindings::inode, file: *mut bindings::file) -> c_int {
        // SAFETY: The file is valid until this function returns.
        let private = unsafe { (*file).private_data };
        // SAFETY: The pointer came from `into_foreign()`, see `build()`. A file is released once,
        // with no other operation in progress, so no borrow is left.
        drop(unsafe { T::Data::from_foreign(private) });
        0
    }

    /// Reads from a file with [`FileOperations::read_iter`].
    ///
    /// # Safety
    ///
    /// `kiocb` must belong to a file with this table, and `iov` must be a destination. Both must be
    /// valid for the duration of this call.
    unsafe extern "C" fn read_iter(
        kiocb: *mut bindings::kiocb,
        iov: *mut bindings::iov_iter,
    ) -> isize {
        // SAFETY: By the safety requirements, `kiocb` is valid. The private data is a `T::Data`,
        // see `build()`.
        let kiocb = unsafe { Kiocb::from_raw(kiocb) };
        // SAFETY: By the safety requirements, `iov` is a destination. The caller does not access
        // `iov` during this call.
        let iov = unsafe { IovIterDest::from_raw(iov) };

        transferred(T::read_iter(kiocb, iov))
    }

    /// Writes to a file with [`FileOperations::write_iter`].
    ///
    /// # Safety
    ///
    /// `kiocb` must belong to a file with this table, and `iov` must be a source. Both must be
    /// valid for the duration of this call.
    unsafe extern "C" fn write_iter(
        kiocb: *mut bindings::kiocb,
        iov: *mut bindings::iov_iter,
    ) -> isize {
        // SAFETY: By the safety requirements, `kiocb` is valid. The private data is a `T::Data`,
        // see `build()`.
        let kiocb = unsafe { Kiocb::from_raw(kiocb) };
        // SAFETY: By the safety requirements, `iov` is a source. The caller does not access `iov`
        // during this call.
        let iov = unsafe { IovIterSource::from_raw(iov) };

        transferred(T::write_iter(kiocb, iov))
    }

    /// Polls a file with [`FileOperations::poll`].
    ///
    /// # Safety
    ///
    /// `file` must be a file with this table, and `table` must be null or a poll table. Both must
    /// be valid for the duration of this call.
    unsafe extern "C" fn poll(
        file: *mut bindings::file,
        table: *mut bindings::poll_table_struct,
    ) -> bindings::__poll_t {
        // SAFETY: The caller holds a reference to the file during this call.
        let data = unsafe { Self::data(file) };
        // SAFETY: The file is valid, as above. Polling does not use the file position.
        let file = unsafe { File::from_raw_file(file) };
        // SAFETY: By the safety requirements, `table` is null or a valid poll table.
        let table = unsafe { PollTable::from_raw(table) };

        T::poll(data, file, table).0
    }

    /// Handles an ioctl with [`FileOperations::ioctl`].
    ///
    /// # Safety
    ///
    /// `file` must be a file with this table, valid for the duration of this call.
    unsafe extern "C" fn ioctl(file: *mut bindings::file, cmd: c_uint, arg: c_ulong) -> c_long {
        // SAFETY: The caller holds a reference to the file during this call.
        let data = unsafe { Self::data(file) };
        // SAFETY: The file is valid, as above. Ioctls do not use the file position.
        let file = unsafe { File::from_raw_file(file) };

        answered(T::ioctl(data, file, cmd, arg))
    }

    /// Handles an ioctl of a 32-bit program with [`FileOperations::compat_ioctl`].
    ///
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
        // SAFETY: The file is valid, as above. Ioctls do not use the file position.
        let file = unsafe { File::from_raw_file(file) };

        answered(T::compat_ioctl(data, file, cmd, arg))
    }

    /// Sets up a mapping of a file.
    ///
    /// # Safety
    ///
    /// `file` must be a file with this table, valid for the duration of this call. `vma` must be a
    /// mapping of this file that is being set up.
    unsafe extern "C" fn mmap(
        file: *mut bindings::file,
        vma: *mut bindings::vm_area_struct,
    ) -> c_int {
        // SAFETY: By the safety requirements, `vma` is a mapping that is being set up.
        let new = unsafe { VmaNew::from_raw(vma) };
        new.set_dontdump();
        new.set_dontexpand();
        // SAFETY: By the safety requirements, `vma` is valid.
        let offset = (unsafe { (*vma).vm_pgoff } as u64) << PAGE_SHIFT;
        if T::HAS_MAPS_AROUND {
            // SAFETY: By the safety requirements, `file` is a file with this table.
            let data = unsafe { Self::data(file) };

            if T::maps_around(data, offset) {
                new.set_mixedmap();
            }
        }
        if T::HAS_PREPARED_LEN {
            // SAFETY: By the safety requirements, `file` is a file with this table.
            let len = T::prepared_len(unsafe { Self::data(file) }, offset);
            let len = usize::try_from(len)
                .unwrap_or(usize::MAX)
                .min(new.end() - new.start());

            if len > 0 {
                // SAFETY: The caller holds the mmap lock for writing, and the range is in the
                // mapping that is being set up. Without a function, page tables are allocated and
                // nothing is mapped. If this function fails, the caller frees the page tables.
                let result = unsafe {
                    bindings::apply_to_page_range(
                        (*vma).vm_mm,
                        new.start() as c_ulong,
                        len as c_ulong,
                        None,
                        ptr::null_mut(),
                    )
                };
                if result != 0 {
                    return result;
                }
            }
        }

        // SAFETY: A mapping that is being set up may be written to. The mapping's file remains
        // `file`, which has this table.
        unsafe { (*vma).vm_ops = &Self::VM_OPERATIONS };

        0
    }

    const VM_OPERATIONS: bindings::vm_operations_struct = bindings::vm_operations_struct {
        fault: Some(Self::fault),
        ..pin_init::zeroed()
    };

    /// Handles a fault in a mapping with [`FileOperations::fault`] and
    /// [`FileOperations::fault_around`].
    ///
    /// # Safety
    ///
    /// `vmf` must be a fault in a mapping of a file with this table, and valid for the duration of
    /// this call.
    unsafe extern "C" fn fault(vmf: *mut bindings::vm_fault) -> bindings::vm_fault_t {
        // SAFETY: By the safety requirements, the fault is valid, and these fields are constant.
        let (vma, address, offset) = unsafe {
            let about = &(*vmf).__bindgen_anon_1;
            (about.vma, about.address, (about.pgoff as u64) << PAGE_SHIFT)
        };
        // SAFETY: The mapping holds a reference to its file. During this call, the caller holds the
        // lock under which the kernel handles faults.
        let (data, vma) = unsafe { (Self::data((*vma).vm_file), VmaRef::from_raw(vma)) };

        match T::fault(data, offset) {
            Some(page) => {
                if T::HAS_FAULT_AROUND {
                    if let Some(vma) = vma.as_mixedmap_vma() {
                        // SAFETY: The fault at `address` and `offset` is in this mapping, and is
                        // being handled.
                        unsafe { Self::map_behind(vma, address, offset) }
                    }
                }
                // SAFETY: By the safety requirements, `vmf` is valid. The caller takes over the
                // reference to the page.
                unsafe { (*vmf).page = ARef::into_raw(page).as_ptr().cast() };
                0
            }
            None => bindings::vm_fault_reason_VM_FAULT_SIGBUS,
        }
    }

    /// Maps the pages after the page of a fault. Stops at the first page that
    /// [`FileOperations::fault_around`] does not return, or that is poisoned or already mapped.
    ///
    /// # Safety
    ///
    /// `vma` must be a mapping of a file with this table. A fault in this mapping must be in
    /// progress, for the page at `address`, which must be the page at `offset` of the file.
    unsafe fn map_behind(vma: &VmaMixedMap, address: usize, offset: u64) {
        /// The maximum number of pages to map, including the page of the fault. On a fault in an
        /// ordinary file, the kernel maps the same number of pages (`fault_around_bytes`).
        const PAGES: usize = 16;

        // SAFETY: A mapping's file does not change while a fault in the mapping is handled.
        let file = unsafe { (*vma.as_ptr()).vm_file };
        let behind = (vma.end() - address) / PAGE_SIZE - 1;
        let mut pages = [ptr::null_mut(); PAGES - 1];
        let mut count = 0;

        for (place, number) in pages.iter_mut().zip(1..=behind) {
            // SAFETY: The mapping holds a reference to its file, and exists during this call.
            let data = unsafe { Self::data(file) };
            let page = T::fault_around(data, offset + (number << PAGE_SHIFT) as u64);
            // The kernel checks only the page of `fault` for poison, so this code checks the other
            // pages.
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
        // SAFETY: `pages` begins with `count` pages, to which the mapping takes its own references.
        // By the invariants of `VmaMixedMap`, pages can be inserted into the mapping, and the
        // mapping's lock is held. The address is that of the page after the page of the fault, and
        // is inside the mapping. The return value is ignored, because a page that was not mapped
        // causes a fault when it is accessed.
        let _ = unsafe {
            bindings::vm_insert_pages(
                vma.as_ptr(),
                address + PAGE_SIZE,
                pages.as_mut_ptr(),
                &raw mut left,
            )
        };

        for page in pages.into_iter().filter_map(NonNull::new) {
            // SAFETY: `into_raw()` returned this reference above.
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
