// SPDX-License-Identifier: GPL-2.0

//! Memory of a process that is pinned for as long as a device uses it.
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

/// How much of a process's memory limit is in use by us.
///
/// # Invariants
///
/// `pages` were added to the pinned pages of `mm`.
struct Charge {
    mm: ARef<Mm>,
    pages: i64,
}

impl Charge {
    /// Charges `pages` to the current process, within its limit of locked memory.
    ///
    /// Reading the count and adding to it is one step, so that no two callers can both pass a limit
    /// that has room for one.
    fn current(pages: usize) -> Result<Self> {
        let task = current!();
        let mm: &Mm = task.mm().ok_or(EINVAL)?;
        let pages = i64::try_from(pages)?;

        // SAFETY: Any limit's number may be passed, and this is one.
        let limit = unsafe { bindings::rlimit(bindings::RLIMIT_MEMLOCK) } >> PAGE_SHIFT;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);

        // INVARIANT: None were added so far.
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

        // INVARIANT: They were added just now.
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
/// They are released, as modified, when this is dropped, which may sleep.
///
/// # Invariants
///
/// Each pointer is a page that was pinned for us.
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
    /// Process context; may sleep. Errors: [`EINVAL`] if `start` is not a multiple of the page
    /// size, [`ENOMEM`] if the process may not lock as much memory or only a part of it is there,
    /// [`EFAULT`] if none is.
    pub(crate) fn pin_current(start: usize, count: usize) -> Result<Self> {
        if start % PAGE_SIZE != 0 {
            return Err(EINVAL);
        }

        let charge = Charge::current(count)?;
        let mut pages = KVVec::with_capacity(count, GFP_KERNEL_ACCOUNT)?;

        let pinned = {
            let task = current!();
            let _lock = task.mm().ok_or(EINVAL)?.mmap_read_lock();

            // SAFETY: The lock is held; the vector has room for `count` pointers.
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

        // SAFETY: As many pointers were written, within the capacity.
        unsafe { pages.inc_len(pinned) };

        // INVARIANT: `pin_user_pages` pinned them for us. If they are too few, the drop releases
        // them.
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

    /// How many pages there are.
    pub(crate) fn len(&self) -> usize {
        self.pages.len()
    }

    /// The pointer that C knows a page by.
    pub(super) fn page(&self, index: usize) -> Option<NonNull<bindings::page>> {
        self.pages.get(index).and_then(|&page| NonNull::new(page))
    }
}

impl Drop for PinnedPages {
    fn drop(&mut self) {
        // SAFETY: By the type invariants, they were pinned for us, and nobody uses them through us
        // any more.
        unsafe {
            bindings::unpin_user_pages_dirty_lock(self.pages.as_mut_ptr(), self.pages.len(), true)
        }
    }
}
