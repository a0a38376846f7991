// SPDX-License-Identifier: GPL-2.0

//! Allocators of I/O virtual addresses.
//!
//! C header: [`include/linux/iova.h`](srctree/include/linux/iova.h)

use super::{
    page::{
        PAGE_SHIFT,
        PAGE_SIZE, //
    },
    raw as bindings, //
};
use kernel::{
    error::to_result,
    prelude::*,
    sync::Arc,
    types::Opaque, //
};

/// A reference to the kernel's slab caches, from which all [`Domain`]s take memory for their data
/// structures.
///
/// # Invariants
///
/// A `Cache` owns one reference that `iova_cache_get` has taken.
pub(crate) struct Cache(());

impl Cache {
    /// Takes a reference. May sleep.
    pub(crate) fn get() -> Result<Arc<Self>> {
        // SAFETY: `iova_cache_get` may be called at any time in process context.
        to_result(unsafe { bindings::iova_cache_get() })?;

        // INVARIANT: The reference was taken just now. If the allocation fails, dropping `Self`
        // releases the reference.
        Ok(Arc::new(Self(()), GFP_KERNEL)?)
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        // SAFETY: By the type invariants, this value owns the reference. Each domain keeps a
        // `Cache` alive, so no domain needs this reference any more.
        unsafe { bindings::iova_cache_put() }
    }
}

/// Whether an allocator that finds no room empties the caches of all CPUs and tries again, which
/// takes a while.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flush {
    No,
    Yes,
}

/// An allocator of ranges of pages in a space of I/O virtual addresses.
///
/// # Invariants
///
/// If `cache` is set, `inner` and its per-CPU caches are initialised, and `inner` is pinned.
#[pin_data(PinnedDrop)]
pub(crate) struct Domain {
    #[pin]
    inner: Opaque<bindings::iova_domain>,
    /// The number of the last page that may be allocated.
    limit: usize,
    cache: Option<Arc<Cache>>,
}

// SAFETY: An allocator may be used and destroyed by any task.
unsafe impl Send for Domain {}
// SAFETY: An allocator synchronises its users itself.
unsafe impl Sync for Domain {}

impl Domain {
    /// Returns an initialiser for an allocator of the addresses from `start` to `last`, in bytes.
    ///
    /// Without a `cache`, the allocator takes no memory, and all allocations fail. With a `cache`,
    /// the allocator takes some 12 KiB for each CPU. Page 0 is never allocated.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if `start` is not a multiple of the page size, or less than one page.
    ///
    /// # Context
    ///
    /// May sleep.
    pub(crate) fn new(
        cache: Option<&Arc<Cache>>,
        start: usize,
        last: usize,
    ) -> impl PinInit<Self, Error> + use<'_> {
        try_pin_init!(Self {
            cache: {
                if start < PAGE_SIZE || start % PAGE_SIZE != 0 {
                    return Err(EINVAL);
                }
                cache.cloned()
            },
            limit: last >> PAGE_SHIFT,
            // INVARIANT: If `cache` is set, this initialises `inner` and then its per-CPU caches.
            // If the per-CPU caches cannot be initialised, `inner` owns nothing that would have to
            // be released.
            inner <- Opaque::try_ffi_init(move |slot: *mut bindings::iova_domain| {
                if cache.is_none() {
                    return Ok(());
                }
                // SAFETY: `slot` is valid for writes and pinned.
                unsafe { bindings::init_iova_domain(slot, PAGE_SIZE, start >> PAGE_SHIFT) };
                // SAFETY: `slot` was initialised just now.
                to_result(unsafe { bindings::iova_domain_init_rcaches(slot) })
            }),
        })
    }

    /// Allocates `size` bytes, rounded up to whole pages. The address is aligned to that size,
    /// rounded up to a power of two.
    ///
    /// Returns the address, or [`None`] if there is no room. Any context.
    pub(crate) fn alloc(&self, size: usize, flush: Flush) -> Option<u64> {
        let pages = size.div_ceil(PAGE_SIZE);
        if pages == 0 || self.cache.is_none() {
            return None;
        }

        // SAFETY: There is a cache, so by the type invariants the domain is initialised.
        let pfn = unsafe {
            bindings::alloc_iova_fast(self.inner.get(), pages, self.limit, flush == Flush::Yes)
        };
        match pfn {
            0 => None,
            pfn => Some((pfn << PAGE_SHIFT) as u64),
        }
    }

    /// Frees the range at `iova`, which [`alloc`](Self::alloc) returned for `size` bytes. Any
    /// context.
    ///
    /// If `iova` and `size` do not match such an allocation, the domain may allocate the same
    /// address twice. The domain's owner may rely on unique addresses for memory safety only if no
    /// other code can call this function.
    pub(crate) fn free(&self, iova: u64, size: usize) {
        if self.cache.is_none() {
            return;
        }
        let pages = size.div_ceil(PAGE_SIZE);

        // SAFETY: There is a cache, so by the type invariants the domain is initialised. A wrong
        // address affects only which addresses are allocated later.
        unsafe { bindings::free_iova_fast(self.inner.get(), iova as usize >> PAGE_SHIFT, pages) }
    }
}

#[pinned_drop]
impl PinnedDrop for Domain {
    fn drop(self: Pin<&mut Self>) {
        if self.cache.is_some() {
            // SAFETY: By the type invariants, the domain is initialised. No user of the domain is
            // left.
            unsafe { bindings::put_iova_domain(self.inner.get()) }
        }
    }
}
