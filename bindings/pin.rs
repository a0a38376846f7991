// SPDX-License-Identifier: GPL-2.0

//! Memory of a process that stays pinned for as long as a device uses the memory.
//!
//! C header: [`include/linux/mm.h`](srctree/include/linux/mm.h)

use super::{
    page::{
        PAGE_SHIFT,
        PAGE_SIZE, //
    },
    raw as bindings, //
};
use core::ptr::NonNull;
use kernel::{
    alloc::flags::GFP_KERNEL_ACCOUNT,
    mm::Mm,
    prelude::*,
    sync::{
        aref::ARef,
        atomic::{
            Atomic,
            Relaxed, //
        },
    },
};

/// A charge of pinned pages against a process's limit of locked memory. Dropping this value removes
/// the charge.
///
/// # Invariants
///
/// `pages` pages were added to the count of pinned pages of `mm` for this value.
struct Charge {
    mm: ARef<Mm>,
    pages: i64,
}

impl Charge {
    /// Charges `pages` pages to the current process, within its limit of locked memory.
    ///
    /// The limit check and the addition are one atomic step, so that two callers cannot exceed the
    /// limit together.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if the caller is a kernel thread, [`ENOMEM`] if the process would then have more
    /// pinned pages than the limit allows.
    fn current(pages: usize) -> Result<Self> {
        let task = current!();
        let mm: &Mm = task.mm().ok_or(EINVAL)?;
        let pages = i64::try_from(pages)?;

        // SAFETY: `rlimit` accepts the number of any limit, such as `RLIMIT_MEMLOCK`.
        let limit = unsafe { bindings::rlimit(bindings::RLIMIT_MEMLOCK) } >> PAGE_SHIFT;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);

        // INVARIANT: No pages were charged so far.
        let mut charge = Self {
            mm: mm.into(),
            pages: 0,
        };
        let pinned = charge.pinned();
        let mut seen = pinned.load(Relaxed);

        loop {
            let sum = seen
                .checked_add(pages)
                .filter(|&sum| sum <= limit)
                .ok_or(ENOMEM)?;

            match pinned.cmpxchg(seen, sum, Relaxed) {
                Ok(_) => break,
                Err(current) => seen = current,
            }
        }

        // INVARIANT: The pages were added to the count just now.
        charge.pages = pages;

        Ok(charge)
    }

    fn pinned(&self) -> &Atomic<i64> {
        // SAFETY: `mm` is valid as long as `self` is, and every access to its count of pinned pages
        // is atomic.
        unsafe {
            Atomic::from_ptr(
                (&raw mut (*self.mm.as_raw()).__bindgen_anon_1.pinned_vm.counter).cast::<i64>(),
            )
        }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        let _ = self.pinned().fetch_sub(self.pages, Relaxed);
    }
}

/// Pinned, writable pages of a process.
///
/// Dropping this value marks the pages as modified and unpins them, and may sleep.
///
/// # Invariants
///
/// Each pointer points to a page that was pinned for this value.
pub(crate) struct PinnedPages {
    pages: KVVec<*mut bindings::page>,
    _charge: Charge,
}

// SAFETY: Pinned pages may be released by any task.
unsafe impl Send for PinnedPages {}
// SAFETY: No method touches the pages' contents.
unsafe impl Sync for PinnedPages {}

impl PinnedPages {
    /// Pins `count` pages of the current process from the address `start` on.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if `start` is not a multiple of the page size, [`ENOMEM`] if the process may not
    /// lock that much memory or if only a part of the memory is mapped, [`EFAULT`] if none of the
    /// memory is mapped.
    ///
    /// # Context
    ///
    /// Process context, may sleep.
    pub(crate) fn pin_current(start: usize, count: usize) -> Result<Self> {
        if start % PAGE_SIZE != 0 {
            return Err(EINVAL);
        }

        let charge = Charge::current(count)?;
        let mut pages = KVVec::with_capacity(count, GFP_KERNEL_ACCOUNT)?;

        let pinned = {
            let task = current!();
            let _lock = task.mm().ok_or(EINVAL)?.mmap_read_lock();

            // SAFETY: `mmap_lock` is held; the vector has room for `count` pointers.
            unsafe {
                bindings::pin_user_pages(
                    start,
                    count,
                    (bindings::FOLL_LONGTERM | bindings::FOLL_WRITE) as c_uint,
                    pages.as_mut_ptr(),
                )
            }
        };
        let pinned = if pinned < 0 {
            return Err(Error::from_errno(pinned as c_int));
        } else {
            pinned as usize
        };

        // SAFETY: `pinned` pointers were written, within the capacity.
        unsafe { pages.inc_len(pinned) };

        // INVARIANT: `pin_user_pages` pinned the pages for this value. If too few pages were
        // pinned, dropping `this` unpins them.
        let this = Self {
            pages,
            _charge: charge,
        };

        if pinned == count {
            Ok(this)
        } else {
            Err(ENOMEM)
        }
    }

    /// Returns the number of pages.
    pub(crate) fn len(&self) -> usize {
        self.pages.len()
    }

    /// Returns the pointer by which C code refers to the page at `index`, if there is such a page.
    pub(super) fn page(&self, index: usize) -> Option<NonNull<bindings::page>> {
        self.pages.get(index).and_then(|&page| NonNull::new(page))
    }
}

impl Drop for PinnedPages {
    fn drop(&mut self) {
        // SAFETY: By the type invariants, the pages were pinned for this value, and no code uses
        // them through this value any more.
        unsafe {
            bindings::unpin_user_pages_dirty_lock(self.pages.as_mut_ptr(), self.pages.len(), true)
        }
    }
}
