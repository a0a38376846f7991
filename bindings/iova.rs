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

/// A reference to the caches that all [`Domain`]s allocate from.
///
/// # Invariants
///
/// It owns a count of `iova_cache_get`.
pub(crate) struct Cache(());

impl Cache {
    /// Takes a reference. May sleep.
    pub(crate) fn get() -> Result<Arc<Self>> {
        // SAFETY: It may be called at any time in process context.
        to_result(unsafe { bindings::iova_cache_get() })?;

        // INVARIANT: The count was taken just now; if the allocation fails, it is dropped.
        Ok(Arc::new(Self(()), GFP_KERNEL)?)
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        // SAFETY: By the type invariants, the count is ours. Every domain has a reference to a
        // cache of its own, so none is left that needs this count.
        unsafe { bindings::iova_cache_put() }
    }
}

/// An allocator of ranges of pages in a space of I/O virtual addresses.
///
/// # Invariants
///
/// If there is a reference to the caches, `inner` is initialised, with its own caches, and pinned.
#[pin_data(PinnedDrop)]
pub(crate) struct Domain {
    #[pin]
    inner: Opaque<bindings::iova_domain>,
    /// The last page that may be given out.
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
    /// Without a `cache` it never gives anything out, and takes no memory: some 12 KiB for each CPU
    /// otherwise. `start` must be a multiple of the page size and at least one page: page 0 is never
    /// given out. May sleep.
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
            // INVARIANT: With a cache, both initialisations are done; if the second fails, `inner`
            // has nothing that would have to be given back.
            inner <- Opaque::try_ffi_init(move |slot: *mut bindings::iova_domain| {
                if cache.is_none() {
                    return Ok(());
                }
                // SAFETY: `slot` is valid for writes and pinned.
                unsafe { bindings::init_iova_domain(slot, PAGE_SIZE, start >> PAGE_SHIFT) };
                // SAFETY: It was initialised just now.
                to_result(unsafe { bindings::iova_domain_init_rcaches(slot) })
            }),
        })
    }

    /// Allocates `size` bytes, rounded up to pages and aligned to the next power of two.
    ///
    /// If there is no room, all CPUs' caches are emptied first, which takes a while. Returns the
    /// address, or [`None`] if there is no room. May be called in any context.
    pub(crate) fn alloc(&self, size: usize) -> Option<u64> {
        self.alloc_flush(size, true)
    }

    /// The same, but leaves what CPUs have in their caches.
    pub(crate) fn alloc_quick(&self, size: usize) -> Option<u64> {
        self.alloc_flush(size, false)
    }

    fn alloc_flush(&self, size: usize, flush: bool) -> Option<u64> {
        let pages = size.div_ceil(PAGE_SIZE);
        if pages == 0 || self.cache.is_none() {
            return None;
        }

        // SAFETY: There is a cache, and so the domain is initialised by the type invariants.
        match unsafe { bindings::alloc_iova_fast(self.inner.get(), pages, self.limit, flush) } {
            0 => None,
            pfn => Some((pfn << PAGE_SHIFT) as u64),
        }
    }

    /// Frees what [`alloc`](Self::alloc) returned for the same size.
    ///
    /// If it did not, addresses may be given out twice: whoever owns the domain must not rely on
    /// them being unique for memory safety unless nobody else can call this. Any context.
    pub(crate) fn free(&self, iova: u64, size: usize) {
        if self.cache.is_none() {
            return;
        }
        let pages = size.div_ceil(PAGE_SIZE);

        // SAFETY: There is a cache, and so the domain is initialised by the type invariants. A wrong
        // address spoils only which addresses are given out.
        unsafe { bindings::free_iova_fast(self.inner.get(), iova as usize >> PAGE_SHIFT, pages) }
    }
}

#[pinned_drop]
impl PinnedDrop for Domain {
    fn drop(self: Pin<&mut Self>) {
        if self.cache.is_some() {
            // SAFETY: By the type invariants, the domain is initialised; nobody uses it any more.
            unsafe { bindings::put_iova_domain(self.inner.get()) }
        }
    }
}
