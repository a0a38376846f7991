// SPDX-License-Identifier: GPL-2.0

//! One page-sized slot of a bounce area: its page, and the buffer that is mapped to it.

use super::super::{
    fast::{
        page_to_phys,
        Inlined, //
    },
    page::{
        Effort,
        Page, //
    },
    raw as bindings, //
};
use core::{
    ops::Range,
    ptr::{
        self,
        NonNull, //
    },
};
use kernel::sync::{
    aref::ARef,
    atomic::{
        Atomic,
        Full,
        Relaxed, //
    },
};

/// The value of [`Slot::orig`] in a slot to which no buffer is mapped, and to which no buffer was
/// mapped since [`Slot::age`] was last called.
const NO_BUFFER: u64 = u64::MAX;

/// The value of [`Slot::orig`] in a slot to which no buffer is mapped, but to which a buffer was
/// mapped since [`Slot::age`] was last called. All greater values mean that no buffer is mapped.
const USED: u64 = NO_BUFFER - 1;

/// How long a slot has not been used.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Age {
    /// A buffer is mapped to the slot.
    InUse,
    /// A buffer was mapped to the slot since the age was last asked for.
    Recent,
    /// No buffer was mapped to the slot since the age was last asked for.
    Idle,
}

/// One page-sized slot of an area.
///
/// # Invariants
///
/// - `page` is null or a page to which the slot owns a reference. Once set, `page` does not change
///   while the slot is allocated or a buffer is mapped to the slot.
/// - `orig` is [`USED`] or more, or the physical address of the part of a buffer that is mapped to
///   the slot.
pub(super) struct Slot {
    page: Atomic<*mut bindings::page>,
    orig: Atomic<u64>,
}

impl Slot {
    pub(super) const fn new() -> Self {
        Self {
            page: Atomic::new(ptr::null_mut()),
            orig: Atomic::new(NO_BUFFER),
        }
    }

    /// Returns the page that the kernel has allocated for this slot, if there is one.
    #[inline(always)]
    pub(super) fn kernel_page(&self) -> Option<NonNull<bindings::page>> {
        NonNull::new(self.page.read_acquire())
    }

    /// Records that the part of a buffer that begins at the physical address `phys` is mapped to
    /// the slot.
    ///
    /// # Safety
    ///
    /// That part must stay mapped until [`clear_buffer`](Self::clear_buffer) is called.
    #[inline(always)]
    pub(super) unsafe fn set_buffer(&self, phys: u64) {
        // INVARIANT: By the safety requirements, the part is mapped to the slot.
        self.orig.write(phys);
    }

    /// Records that no buffer is mapped to the slot any more.
    #[inline(always)]
    pub(super) fn clear_buffer(&self) {
        self.orig.write(USED);
    }

    /// Returns whether a buffer is mapped to the slot.
    #[inline(always)]
    pub(super) fn has_buffer(&self) -> bool {
        self.orig.read() < USED
    }

    /// Returns how long the slot has not been used, counted from the previous call.
    pub(super) fn age(&self) -> Age {
        match self.orig.load(Relaxed) {
            NO_BUFFER => Age::Idle,
            // If the exchange fails, a buffer was mapped just now.
            USED => {
                let _ = self.orig.cmpxchg(USED, NO_BUFFER, Relaxed);
                Age::Recent
            }
            _ => Age::InUse,
        }
    }

    /// Allocates this slot's page, unless another CPU has allocated it in the meantime. Returns
    /// whether this call has allocated it, or [`None`] if no memory is available.
    ///
    /// # Context
    ///
    /// Any context that `effort` allows.
    #[cold]
    #[inline(never)]
    pub(super) fn alloc_page(&self, effort: Effort) -> Option<bool> {
        let new = NonNull::new(Page::alloc_zeroed(effort))?;

        // INVARIANT: The slot owns the reference that the allocation returned.
        let is_new = self
            .page
            .cmpxchg(ptr::null_mut(), new.as_ptr(), Full)
            .is_ok();
        if !is_new {
            // SAFETY: `new` was never published, and this function owns its only reference.
            unsafe { bindings::put_page(new.as_ptr()) };
        }

        Some(is_new)
    }

    /// Returns the slot's page, if there is one. Any context.
    ///
    /// The page may be freed at the same time. In that case, this function returns [`None`].
    pub(super) fn get_page(&self) -> Option<ARef<Page>> {
        let page = self.kernel_page()?;
        // SAFETY: The slot had a reference to the page just now. If the page was freed since then,
        // its page structure still exists, and its reference count is that of its new owner.
        let page = unsafe {
            if !bindings::get_page_unless_zero(page.as_ptr()) {
                return None;
            }
            ARef::<Page>::from_raw(page.cast())
        };

        // If this is still the slot's page, `free_page` will find the reference.
        (self.kernel_page()?.as_ptr() == page.as_raw()).then_some(page)
    }

    /// Frees the slot's page if the slot owns the only reference to it. Returns whether the slot
    /// has no page any more.
    ///
    /// # Safety
    ///
    /// During the call, no buffer may be mapped to the slot, and no page may be allocated for it.
    pub(super) unsafe fn free_page(&self) -> bool {
        let page = self.page.load(Relaxed);
        if page.is_null() {
            return true;
        }

        // SAFETY: By the type invariants, the page is allocated, and the slot owns a reference. By
        // the safety requirements, only `get_page` accesses the slot's page. Once the count is
        // frozen, `get_page` gets no reference any more, and when it is unfrozen, the slot has no
        // page. The last call frees the page.
        unsafe {
            if !bindings::page_ref_freeze(page, 1) {
                return false;
            }
            self.page.store(ptr::null_mut(), Relaxed);
            bindings::page_ref_unfreeze(page, 1);
            bindings::put_page(page);
        }

        true
    }

    /// Copies between `page` and the part of a buffer that is mapped to this slot. `range` is the
    /// range of bytes to copy: the same offsets apply to the page and to the mapped part of the
    /// buffer. If `to_device`, copies to `page`; otherwise copies to the buffer. Does nothing if
    /// `page` is [`None`], or if no buffer is mapped to this slot.
    ///
    /// # Safety
    ///
    /// `page`, if it is not [`None`], must be the page that is in use for this slot, and `range`
    /// must be within the page. If a part of a buffer is mapped to the slot, `range` must be within
    /// that part, too. During the call, the page must stay allocated, and the mapping must not end.
    #[inline(always)]
    pub(super) unsafe fn copy(
        &self,
        page: Option<NonNull<bindings::page>>,
        range: Range<usize>,
        to_device: bool,
    ) {
        let Some(page) = page else {
            return;
        };
        let orig = self.orig.read();
        if orig >= USED {
            return;
        }

        // SAFETY: By the type invariants, the part of the buffer begins at `orig`. That part stays
        // allocated as long as the buffer is mapped. The safety requirements cover the page and the
        // range.
        unsafe { copy(page, orig, range, to_device) }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let page = *self.page.get_mut();

        if !page.is_null() {
            // SAFETY: By the type invariants, the slot owns a reference. No user of the slot is
            // left.
            unsafe { bindings::put_page(page) }
        }
    }
}

/// Copies between `page` and the memory that begins at the physical address `orig`. `range` has the
/// offsets of the bytes to copy, from the start of the page and from `orig`. If `to_device`, copies
/// to `page`; otherwise copies from `page`.
///
/// # Safety
///
/// `range` must be within the page. The memory at the same offsets from `orig` must have page
/// structures. Both the page and that memory must stay allocated during the call.
#[inline(always)]
pub(super) unsafe fn copy(
    page: NonNull<bindings::page>,
    orig: u64,
    range: Range<usize>,
    to_device: bool,
) {
    // SAFETY: By the safety requirements, `page` points to a page structure.
    let page = unsafe { page_to_phys(page.as_ptr()) } + range.start as u64;
    let orig = orig + range.start as u64;
    let (to, from) = if to_device {
        (page, orig)
    } else {
        (orig, page)
    };

    // SAFETY: By the safety requirements, both ranges are allocated memory with page structures.
    unsafe { bindings::memcpy_phys(to, from, range.len()) }
}
