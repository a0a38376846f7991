// SPDX-License-Identifier: GPL-2.0

//! Reference-counted pages.
//!
//! [`kernel::page::Page`] has one owner. A page that is mapped into userspace has several owners:
//! the driver, and every page table that maps the page.
//!
//! C header: [`include/linux/mm.h`](srctree/include/linux/mm.h)

use super::{
    phys,
    raw as bindings,
    vring::{
        Malformed,
        Memory, //
    }, //
};
use core::ptr::NonNull;
use kernel::{
    prelude::*,
    sync::aref::{
        ARef,
        AlwaysRefCounted, //
    },
    types::Opaque,
};

pub(crate) use kernel::page::{
    PAGE_SHIFT,
    PAGE_SIZE, //
};

/// What an allocation of a page may do if memory is short.
#[derive(Clone, Copy)]
pub(super) enum Effort {
    /// The allocation may sleep and reclaim memory. The page is charged to the memory cgroup of the
    /// current task.
    Sleeps,
    /// The allocation must not sleep, and may use a part of the memory that the kernel keeps for
    /// such allocations.
    Atomic,
    /// The same as [`Atomic`](Self::Atomic), but in a task that frees memory (`PF_MEMALLOC`), the
    /// allocation leaves the rest of the memory to others as well.
    Spares,
}

/// A reference-counted page of memory.
#[repr(transparent)]
pub(crate) struct Page(Opaque<bindings::page>);

// SAFETY: A page may be referred to, and released, by any task.
unsafe impl Send for Page {}
// SAFETY: No method touches the page's contents.
unsafe impl Sync for Page {}

// SAFETY: The reference count of a page keeps the page allocated.
unsafe impl AlwaysRefCounted for Page {
    fn inc_ref(&self) {
        // SAFETY: The existence of `self` shows that the count is not zero.
        unsafe { bindings::get_page(self.as_raw()) }
    }

    unsafe fn dec_ref(obj: NonNull<Self>) {
        // SAFETY: By the safety requirements, the caller owns a reference.
        unsafe { bindings::put_page(obj.as_ptr().cast()) }
    }
}

impl Page {
    /// Converts a pointer from C code to a reference.
    ///
    /// # Safety
    ///
    /// `ptr` must point to a page. For the whole of `'a`, its reference count must include a
    /// reference that keeps the page allocated.
    pub(super) unsafe fn from_raw<'a>(ptr: *mut bindings::page) -> &'a Self {
        // SAFETY: By the safety requirements, the page is valid for `'a`; `Page` is transparent.
        unsafe { &*ptr.cast() }
    }

    /// Returns the pointer by which C code refers to the page.
    pub(super) fn as_raw(&self) -> *mut bindings::page {
        self.0.get()
    }

    /// Returns whether the kernel has marked the page as poisoned, because the hardware lost some
    /// of the page's contents. No code may read such a page.
    pub(super) fn is_poisoned(&self) -> bool {
        // SAFETY: The existence of `self` shows that the page is allocated.
        unsafe { bindings::PageHWPoison(self.as_raw()) }
    }

    /// Allocates a zeroed page. Returns null if no memory is available.
    ///
    /// The caller owns the only reference to the page.
    ///
    /// # Context
    ///
    /// Any context that `effort` allows.
    pub(super) fn alloc_zeroed(effort: Effort) -> *mut bindings::page {
        let flags = match effort {
            Effort::Sleeps => bindings::GFP_KERNEL_ACCOUNT,
            Effort::Atomic => bindings::GFP_ATOMIC | bindings::__GFP_NOWARN,
            Effort::Spares => bindings::RUST_CONST_HELPER_GFP_SPARES,
        };

        // SAFETY: Any order may be requested.
        unsafe { bindings::alloc_pages(flags | bindings::__GFP_ZERO, 0) }
    }
}

/// References to contiguous pages, which keep the pages allocated until this value is dropped.
///
/// If a driver allocated the pages, the driver may free them in the meantime: freeing drops only
/// the driver's own reference to each page.
///
/// # Invariants
///
/// `first` is the first of `count` contiguous pages, and this value owns a reference to each.
pub(crate) struct Pages {
    first: NonNull<bindings::page>,
    count: usize,
}

// SAFETY: Page references may be released by any task.
unsafe impl Send for Pages {}
// SAFETY: Several tasks may access the pages' contents at the same time, as the `phys` module says.
unsafe impl Sync for Pages {}

impl Pages {
    /// Takes a reference to each of `count` contiguous pages.
    ///
    /// # Safety
    ///
    /// `first` must be the first of `count` contiguous pages. Each page must have its own reference
    /// count, and must stay allocated during the call.
    pub(super) unsafe fn get(first: NonNull<bindings::page>, count: usize) -> Self {
        for i in 0..count {
            // SAFETY: By the safety requirements, the page is allocated and has its own reference
            // count.
            unsafe { bindings::get_page(first.as_ptr().add(i)) }
        }

        // INVARIANT: The references were taken above.
        Self { first, count }
    }

    /// Allocates zeroed memory of `size` bytes, rounded up to whole pages, to share with userspace
    /// or with a device.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`] if not enough contiguous memory is available, or if `size` is 0.
    ///
    /// # Context
    ///
    /// May sleep.
    pub(crate) fn alloc(size: usize) -> Result<Self> {
        if size == 0 {
            return Err(ENOMEM);
        }
        // The kernel must not warn about a failure, because contiguous pages may be scarce, and the
        // caller handles the error.
        let flags = bindings::GFP_KERNEL_ACCOUNT | bindings::__GFP_ZERO | bindings::__GFP_NOWARN;

        // SAFETY: Any size but 0 may be requested.
        let memory = unsafe { bindings::alloc_pages_exact(size, flags) };
        if memory.is_null() {
            return Err(ENOMEM);
        }
        // SAFETY: `memory` is the start of allocated pages.
        let first = unsafe { bindings::phys_to_page(bindings::virt_to_phys(memory)) };

        // INVARIANT: `alloc_pages_exact` returned contiguous pages, each with a reference of its
        // own, which this value owns.
        Ok(Self {
            first: NonNull::new(first).ok_or(ENOMEM)?,
            count: size.div_ceil(PAGE_SIZE),
        })
    }

    /// Returns a new set of references to the same pages.
    pub(crate) fn share(&self) -> Self {
        // SAFETY: By the type invariants, these are contiguous pages to which `self` owns
        // references.
        unsafe { Self::get(self.first, self.count) }
    }

    /// Returns the physical address of the `len` bytes at `offset`, or [`None`] if some of these
    /// bytes are outside the pages.
    pub(super) fn phys(&self, offset: u64, len: usize) -> Option<u64> {
        let end = offset.checked_add(len as u64)?;
        if end > (self.count as u64) << PAGE_SHIFT {
            return None;
        }

        // SAFETY: By the type invariants, `first` points to a page.
        Some(unsafe { bindings::page_to_phys(self.first.as_ptr()) } + offset)
    }

    /// Returns a reference to the page at `index`, or [`None`] if `index` is out of range.
    pub(crate) fn page(&self, index: usize) -> Option<ARef<Page>> {
        if index >= self.count {
            return None;
        }

        // SAFETY: By the type invariants, the page at `index` is allocated.
        Some(unsafe { Page::from_raw(self.first.as_ptr().add(index)) }.into())
    }
}

/// Addresses are offsets in bytes from the start of the first page.
impl Memory for Pages {
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), Malformed> {
        let phys = self.phys(offset, buf.len()).ok_or(Malformed)?;

        // SAFETY: By the type invariants, the pages stay allocated as long as `self` exists.
        unsafe { phys::read(phys, buf) }

        Ok(())
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), Malformed> {
        let phys = self.phys(offset, bytes.len()).ok_or(Malformed)?;

        // SAFETY: As in `read`. The pages hold data that drivers and devices share. Drivers and
        // devices check such data before they use it, so no code relies on the data for memory
        // safety.
        unsafe { phys::write(phys, bytes) }

        Ok(())
    }

    fn load_acquire(&self, offset: u64) -> Result<u16, Malformed> {
        let phys = self.phys(offset, 2).filter(|phys| phys % 2 == 0);

        // SAFETY: As in `read`; the address is even.
        Ok(unsafe { phys::load_acquire(phys.ok_or(Malformed)?) })
    }

    fn store_release(&self, offset: u64, value: u16) -> Result<(), Malformed> {
        let phys = self.phys(offset, 2).filter(|phys| phys % 2 == 0);

        // SAFETY: As in `write`; the address is even.
        unsafe { phys::store_release(phys.ok_or(Malformed)?, value) }

        Ok(())
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        for i in 0..self.count {
            // SAFETY: By the type invariants, this value owns a reference to each page.
            unsafe { bindings::put_page(self.first.as_ptr().add(i)) }
        }
    }
}
