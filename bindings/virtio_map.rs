// SPDX-License-Identifier: GPL-2.0

//! Map operations that map a virtio driver's memory into a device's address space.
//!
//! A virtio driver whose device has map operations passes its buffers and rings to these
//! operations, together with the *token* of the virtqueue. In this module, a token points to a
//! [`Space`]. The operations map buffers into the space's [bounce area](Area). The operations also
//! allocate rings (coherent memory), to which the space's owner assigns addresses. For a virtqueue
//! whose device is in the kernel itself, a *direct* token maps memory into a [`DirectMap`] instead.
//! Finding the space of a token takes an RCU read-side critical section and no lock.
//!
//! C header: [`include/linux/virtio_config.h`](srctree/include/linux/virtio_config.h)

use super::{
    bounce::{
        Area,
        Buffer,
        Direction, //
    },
    direct_map::DirectMap,
    fast::Inlined,
    page::{
        Pages,
        PAGE_SIZE, //
    },
    raw as bindings,
    rcu, //
};
use core::{
    marker::PhantomData,
    ptr::{
        self,
        NonNull, //
    },
};
use kernel::{
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Full,
            Relaxed,
            Release, //
        },
        Arc, //
    },
};

/// The operations that the owner of a [`Space`] provides.
///
/// # Context
///
/// The methods are called in any context in which a virtio driver maps memory, including interrupt
/// handlers. So the methods must not sleep.
pub(crate) trait Owner: Send + Sync + 'static {
    /// Returns whether buffers may be mapped into the bounce area. If they may not, the caller must
    /// call [`prepare`](Self::prepare) before it maps a buffer.
    fn is_prepared(&self) -> bool;

    /// Prepares the owner for buffers in the bounce area. Several callers may call this method at
    /// the same time.
    fn prepare(&self);

    /// Assigns an I/O virtual address to the first `size` bytes of `pages`, which are coherent
    /// memory. Returns the address.
    ///
    /// The driver owns the memory until [`unmap_coherent`](Self::unmap_coherent) is called with
    /// that address. The memory's pages stay allocated for as long as the owner keeps `pages`,
    /// which may be longer.
    fn map_coherent(&self, pages: Pages, size: usize) -> Result<u64>;

    /// Ends the use of the I/O virtual address that [`map_coherent`](Self::map_coherent) assigned
    /// to `size` bytes.
    fn unmap_coherent(&self, iova: u64, size: usize);

    /// Returns whether any coherent memory has an I/O virtual address.
    fn has_coherent(&self) -> bool;
}

/// An address space into which drivers' memory is mapped.
#[pin_data]
pub(crate) struct Space<T: Owner> {
    #[pin]
    bounce: Area,
    #[pin]
    owner: T,
}

impl<T: Owner> Space<T> {
    /// Returns an initialiser for a space.
    pub(crate) fn new(
        bounce: impl PinInit<Area, Error>,
        owner: impl PinInit<T, Error>,
    ) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            bounce <- bounce,
            owner <- owner,
        })
    }

    /// Returns the area into which buffers are mapped.
    pub(crate) fn bounce(&self) -> &Area {
        &self.bounce
    }

    /// Returns the space's owner.
    pub(crate) fn owner(&self) -> &T {
        &self.owner
    }
}

/// The handle with which a virtio driver maps the memory of one virtqueue.
///
/// A token points to one space at a time. A token can be pointed to another space only while
/// nothing is mapped into its current space, so memory is always unmapped from the space into which
/// it was mapped.
///
/// # Invariants
///
/// - `space` came from [`Arc::into_raw`], and the token owns a reference to the space. `former` is
///   null or the previous space, to which the token owns a reference as well.
/// - `space` and `former` change only while `quiesced_by` is not 0. Only the call that has set
///   `quiesced_by` changes them, once and after an RCU grace period. By then, no reader uses the
///   space in `former` any more.
pub(crate) struct Token<T: Owner> {
    space: Atomic<*mut Space<T>>,
    former: Atomic<*mut Space<T>>,
    /// 0 while the token is open; otherwise a value that identifies the call that has quiesced the
    /// token.
    quiesced_by: Atomic<usize>,
    /// The number of the virtqueue.
    vq: u32,
    /// The map into which a [direct](Self::new_direct) token maps memory. A direct token is always
    /// quiesced.
    direct: Option<Arc<DirectMap>>,
}

/// The value of [`Token::quiesced_by`] in a [direct](Token::new_direct) token. Calls store the
/// address of a variable instead, which is never 1.
const ALWAYS: usize = 1;

// SAFETY: A token owns references to spaces, which move with the token.
unsafe impl<T: Owner> Send for Token<T> {}
// SAFETY: All fields are atomic, and spaces are `Sync`.
unsafe impl<T: Owner> Sync for Token<T> {}

/// Tokens that a call quiesces: nothing can be mapped with a quiesced token. Dropping this value
/// opens all of these tokens again.
struct Quiescing<'a, T: Owner, I: Iterator<Item = &'a Token<T>> + Clone> {
    /// The tokens, and possibly others. If the iterator's clones do not always yield the same
    /// tokens, some may stay quiesced.
    tokens: I,
    /// The value of [`Token::quiesced_by`] in the tokens that this call has quiesced.
    call: usize,
}

impl<'a, T: Owner, I: Iterator<Item = &'a Token<T>> + Clone> Quiescing<'a, T, I> {
    /// Returns the tokens that this call has quiesced.
    fn quiesced(&self) -> impl Iterator<Item = &'a Token<T>> + use<'a, T, I> {
        let call = self.call;

        self.tokens
            .clone()
            .filter(move |token| token.quiesced_by.load(Relaxed) == call)
    }
}

impl<'a, T: Owner, I: Iterator<Item = &'a Token<T>> + Clone> Drop for Quiescing<'a, T, I> {
    fn drop(&mut self) {
        for token in self.quiesced() {
            token.quiesced_by.store(0, Release);
        }
    }
}

impl<T: Owner> Token<T> {
    /// Creates the token of the virtqueue `vq`, which points to `space`.
    pub(crate) fn new(vq: u32, space: Arc<Space<T>>) -> Self {
        // INVARIANT: The token owns the reference from now on.
        Self {
            space: Atomic::new(Arc::into_raw(space).cast_mut()),
            former: Atomic::new(ptr::null_mut()),
            quiesced_by: Atomic::new(0),
            vq,
            direct: None,
        }
    }

    /// Creates a direct token, for a virtqueue whose device is in the kernel itself. The token maps
    /// memory into `direct`. The token always points to `space`, but maps nothing into that space.
    pub(crate) fn new_direct(space: Arc<Space<T>>, direct: Arc<DirectMap>) -> Self {
        // The number does not matter, because the token maps nothing into the space.
        let mut token = Self::new(0, space);
        token.quiesced_by = Atomic::new(ALWAYS);
        token.direct = Some(direct);

        token
    }

    /// Returns whether the token points to `space` now.
    pub(crate) fn points_to(&self, space: &Arc<Space<T>>) -> bool {
        ptr::eq(self.space.load(Relaxed), Arc::as_ptr(space))
    }

    /// Points all of `tokens` to `space` if `agree` succeeds. From before the call of `agree` until
    /// this function returns, nothing can be mapped with the tokens.
    ///
    /// If all of the tokens point to `space` already, calls `agree` and does nothing else.
    ///
    /// # Errors
    ///
    /// - [`EBUSY`] if something is mapped into a token's current space, or if another call has
    ///   quiesced a token.
    /// - Those of `agree`.
    ///
    /// No token changes if this function fails.
    ///
    /// # Context
    ///
    /// May sleep. Waits for an RCU grace period (some tens of milliseconds), whatever the number of
    /// tokens, except if the call fails at once. The grace period is not expedited, because a
    /// process can cause this call, and a process must not be able to interrupt other CPUs.
    pub(crate) fn retarget<'a>(
        tokens: impl Iterator<Item = &'a Self> + Clone,
        space: &Arc<Space<T>>,
        agree: impl FnOnce() -> Result,
    ) -> Result {
        if tokens.clone().all(|token| token.points_to(space)) {
            return agree();
        }
        if Self::in_use(tokens.clone()).any(|(_, in_use)| in_use) {
            return Err(EBUSY);
        }

        // The address of `mark` identifies this call: no other call has this address until this
        // call returns.
        let mark = 0u8;
        let quiescing = Quiescing {
            tokens: tokens.clone(),
            call: ptr::from_ref(&mark) as usize,
        };
        for token in tokens.clone() {
            token
                .quiesced_by
                .cmpxchg(0, quiescing.call, Full)
                .map_err(|_| EBUSY)?;
        }

        rcu::synchronize();
        // The spaces are checked again, because memory may have been mapped after the first check.
        // From now on, no new mapping can appear.
        if Self::in_use(tokens).any(|(_, in_use)| in_use) {
            return Err(EBUSY);
        }
        agree()?;
        for token in quiescing.quiesced() {
            // SAFETY: This call has quiesced the token, and a grace period has passed since then.
            unsafe { token.point_to(space.clone()) }
        }

        Ok(())
    }

    /// Points all of `tokens` to `space`. Skips each token that another call has quiesced, and each
    /// token whose current space has something mapped into it.
    ///
    /// # Context
    ///
    /// May sleep, for one RCU grace period at most, whatever the number of tokens.
    pub(crate) fn retarget_unused<'a>(
        tokens: impl Iterator<Item = &'a Self> + Clone,
        space: &Arc<Space<T>>,
    ) {
        // As in `retarget`.
        let mark = 0u8;
        let quiescing = Quiescing {
            tokens: tokens.clone(),
            call: ptr::from_ref(&mark) as usize,
        };
        let mut any = false;

        for (token, in_use) in Self::in_use(tokens.filter(|token| !token.points_to(space))) {
            let is_quiesced = !in_use && token.quiesced_by.cmpxchg(0, quiescing.call, Full).is_ok();

            any |= is_quiesced;
        }
        if !any {
            return;
        }

        rcu::synchronize();
        for (token, in_use) in Self::in_use(quiescing.quiesced()) {
            if !in_use {
                // SAFETY: As in `retarget`.
                unsafe { token.point_to(space.clone()) }
            }
        }
    }

    /// Returns each of `tokens`, and whether anything is mapped into its space. Checks a space only
    /// once if consecutive tokens point to it.
    fn in_use<'a>(
        tokens: impl Iterator<Item = &'a Self>,
    ) -> impl Iterator<Item = (&'a Self, bool)> {
        let mut last = (ptr::null_mut(), false);

        tokens.map(move |token| {
            let space = token.space.load(Relaxed);
            if !ptr::eq(space, last.0) {
                last = (space, token.is_in_use());
            }

            (token, last.1)
        })
    }

    /// Returns whether anything is mapped into the token's space.
    fn is_in_use(&self) -> bool {
        rcu::read(|rcu| {
            let space = self.enter(rcu);

            space.bounce.is_in_use() || space.owner.has_coherent()
        })
    }

    /// Points the token to another space, and opens the token. May sleep.
    ///
    /// # Safety
    ///
    /// The caller must have quiesced the token, and an RCU grace period must have passed since then.
    unsafe fn point_to(&self, space: Arc<Space<T>>) {
        // INVARIANT: By the safety requirements, the caller may change the space.
        let old = self.space.xchg(Arc::into_raw(space).cast_mut(), Full);
        // `old` may have readers until the next grace period has ended. Until then, `former` keeps
        // `old` allocated.
        let former = self.former.xchg(old, Full);

        if !former.is_null() {
            // SAFETY: By the type invariants, the token owns the reference. The token stopped
            // pointing to `former` before it was quiesced, so the grace period of this quiescing
            // has waited for all readers of `former`.
            drop(unsafe { Arc::from_raw(former) });
        }
        // From now on, the token does not count as quiesced by this caller, even if the caller finds
        // it a second time.
        self.quiesced_by.store(0, Release);
    }

    /// Returns the space that the token points to. The space stays valid until the RCU read-side
    /// critical section ends.
    #[inline(always)]
    fn enter<'a>(&'a self, _rcu: rcu::Section<'a>) -> &'a Space<T> {
        // SAFETY: By the type invariants, the token's reference to this space is not released
        // before the read-side section ends, even if the token points to another space by then.
        unsafe { &*self.space.read_acquire() }
    }

    /// Returns the space that the token points to, for a new mapping. Returns [`None`] if the token
    /// is quiesced.
    #[inline(always)]
    fn enter_open<'a>(&'a self, rcu: rcu::Section<'a>) -> Option<&'a Space<T>> {
        (self.quiesced_by.read_acquire() == 0).then(|| self.enter(rcu))
    }

    /// Maps a buffer with [`Area::map`], or with [`DirectMap::map`] if the token is direct. Returns
    /// [`None`] if that fails, or if a token that is not direct is quiesced.
    #[inline(never)]
    fn map(
        &self,
        buffer: Buffer<'_>,
        dir: Direction,
        sync: bool,
        rcu: rcu::Section<'_>,
    ) -> Option<u64> {
        let Some(space) = self.enter_open(rcu) else {
            return self.direct.as_ref()?.map(buffer, dir);
        };
        if !space.owner.is_prepared() {
            space.owner.prepare();
        }

        space.bounce.map(buffer, dir, sync, self.vq, rcu)
    }

    /// Maps a buffer with [`Area::map_fast`]. Returns the buffer as the error if `map_fast` fails,
    /// if the token is quiesced, or if the owner of the token's space is not prepared.
    #[inline(always)]
    fn map_fast<'a>(
        &self,
        buffer: Buffer<'a>,
        dir: Direction,
        sync: bool,
        rcu: rcu::Section<'_>,
    ) -> Result<u64, Buffer<'a>> {
        match self.enter_open(rcu) {
            Some(space) if space.owner.is_prepared() => {
                space.bounce.map_fast(buffer, dir, sync, rcu)
            }
            _ => Err(buffer),
        }
    }

    /// Ends a mapping, as [`Area::unmap`] does.
    ///
    /// # Safety
    ///
    /// The same as for [`Area::unmap`]. In addition, the mapping must have been made with this
    /// token.
    #[inline(always)]
    unsafe fn unmap(
        &self,
        iova: u64,
        len: usize,
        dir: Direction,
        sync: bool,
        rcu: rcu::Section<'_>,
    ) {
        // SAFETY: By the safety requirements, this token made the mapping. The token points to the
        // same space as long as anything is mapped into that space.
        unsafe {
            if !self.enter(rcu).bounce.unmap_fast(iova, len, dir, sync, rcu) {
                self.unmap_slow(iova, len, dir, sync, rcu);
            }
        }
    }

    /// Slow path of [`unmap`](Self::unmap). Not inlined, so that the fast path need not keep the
    /// arguments for this call.
    ///
    /// # Safety
    ///
    /// The same as for [`unmap`](Self::unmap).
    #[inline(never)]
    unsafe fn unmap_slow(
        &self,
        iova: u64,
        len: usize,
        dir: Direction,
        sync: bool,
        rcu: rcu::Section<'_>,
    ) {
        // SAFETY: As in `unmap`. A direct token's mappings are at addresses outside the area, for
        // which `Area::unmap` does nothing.
        if unsafe { self.enter(rcu).bounce.unmap(iova, len, dir, sync, rcu) } {
            return;
        }
        if let Some(direct) = &self.direct {
            direct.unmap(iova, len);
        }
    }

    /// Copies `len` bytes, beginning at `iova`, between a mapped buffer and its bounce pages, as
    /// [`Area::sync`] does.
    ///
    /// # Safety
    ///
    /// The same as for [`Area::sync`]. In addition, the mapping must have been made with this
    /// token.
    #[inline(always)]
    unsafe fn sync(&self, iova: u64, len: usize, to_device: bool, rcu: rcu::Section<'_>) {
        // SAFETY: By the safety requirements, this token made the mapping. The token points to the
        // same space as long as anything is mapped into that space.
        unsafe { self.enter(rcu).bounce.sync(iova, len, to_device, rcu) }
    }

    /// Returns the token in the form in which C code passes it to the map operations.
    pub(super) fn as_raw(&self) -> bindings::virtio_map {
        bindings::virtio_map {
            group: ptr::from_ref(self).cast_mut().cast(),
        }
    }

    /// Converts a `virtio_map` from C code to a token. Returns [`None`] for null, which C code
    /// passes for a device whose virtqueues are not set up yet.
    ///
    /// # Safety
    ///
    /// `map` must be null or come from [`as_raw`](Self::as_raw) of a token that lives for `'a`.
    unsafe fn from_raw<'a>(map: bindings::virtio_map) -> Option<&'a Self> {
        // SAFETY: By the safety requirements, `map` is null or a token that lives for `'a`.
        unsafe { map.group.cast::<Self>().as_ref() }
    }
}

impl<T: Owner> Drop for Token<T> {
    fn drop(&mut self) {
        // SAFETY: By the type invariants, the token owns the reference. No user of the token is
        // left.
        drop(unsafe { Arc::from_raw(*self.space.get_mut()) });
        let former = *self.former.get_mut();
        if !former.is_null() {
            // SAFETY: As for `space` above.
            drop(unsafe { Arc::from_raw(former) });
        }
    }
}

/// The map operations of devices whose spaces have an owner of type `T`.
pub(super) struct VTable<T: Owner>(PhantomData<T>);

/// The address that tells the virtio core that a mapping failed: `DMA_MAPPING_ERROR`.
const MAPPING_ERROR: bindings::dma_addr_t = bindings::dma_addr_t::MAX;

/// Returns whether mapping or unmapping a buffer with these DMA attributes copies the buffer's
/// contents.
fn syncs(attrs: c_ulong) -> bool {
    attrs & bindings::DMA_ATTR_SKIP_CPU_SYNC as c_ulong == 0
}

// The virtio core calls the map operations in this `impl` with the token that a device's
// `get_vq_map` returned. The device lives at least as long as its virtqueues, and the token lives
// at least as long as the device: see `vdpa::Device`.
impl<T: Owner> VTable<T> {
    /// Maps the `size` bytes that begin `offset` bytes after the start of `page`. Returns the I/O
    /// virtual address of the mapping, or [`MAPPING_ERROR`].
    ///
    /// # Safety
    ///
    /// `map` must be null or a token that lives until this function returns.
    unsafe extern "C" fn map_page(
        map: bindings::virtio_map,
        page: *mut bindings::page,
        offset: usize,
        size: usize,
        dir: bindings::dma_data_direction,
        attrs: c_ulong,
    ) -> bindings::dma_addr_t {
        // SAFETY: The virtio core passes a device's token.
        let Some(token) = (unsafe { Token::<T>::from_raw(map) }) else {
            return MAPPING_ERROR;
        };
        // SAFETY: The virtio core maps this memory for a driver. The driver must not free the
        // memory before it unmaps the memory with the same token. The token points to the same
        // space as long as anything is mapped.
        let buffer = unsafe { Buffer::new(page, offset, size) };
        let (dir, sync) = (Direction::from_raw(dir), syncs(attrs));

        // SAFETY: This function does not enable softirqs or preemption, so what the caller has
        // disabled stays disabled until this function returns.
        let Some(rcu) = (unsafe { rcu::Section::around() }) else {
            return Self::map_slow(token, buffer, dir, sync, None);
        };
        match token.map_fast(buffer, dir, sync, rcu) {
            Ok(iova) => iova,
            Err(buffer) => Self::map_slow(token, buffer, dir, sync, Some(rcu)),
        }
    }

    /// Slow path of [`map_page`](Self::map_page).
    #[inline(never)]
    fn map_slow(
        token: &Token<T>,
        buffer: Buffer<'_>,
        dir: Direction,
        sync: bool,
        rcu: Option<rcu::Section<'_>>,
    ) -> bindings::dma_addr_t {
        match rcu {
            Some(rcu) => token.map(buffer, dir, sync, rcu),
            None => rcu::read(|rcu| token.map(buffer, dir, sync, rcu)),
        }
        .unwrap_or(MAPPING_ERROR)
    }

    /// Ends a mapping that [`map_page`](Self::map_page) made.
    ///
    /// # Safety
    ///
    /// `map` must be null or a token that lives until this function returns.
    unsafe extern "C" fn unmap_page(
        map: bindings::virtio_map,
        iova: bindings::dma_addr_t,
        size: usize,
        dir: bindings::dma_data_direction,
        attrs: c_ulong,
    ) {
        // SAFETY: The virtio core passes a device's token.
        let Some(token) = (unsafe { Token::<T>::from_raw(map) }) else {
            return;
        };
        let (dir, sync) = (Direction::from_raw(dir), syncs(attrs));

        // SAFETY: The virtio core ends a mapping that `map_page` made with the same token. This
        // function does not enable softirqs or preemption, so what the caller has disabled stays
        // disabled.
        unsafe {
            match rcu::Section::around() {
                Some(rcu) => token.unmap(iova, size, dir, sync, rcu),
                None => rcu::read(move |rcu| token.unmap(iova, size, dir, sync, rcu)),
            }
        }
    }

    /// Copies a part of a mapped buffer from the bounce pages to the driver's memory, if the device
    /// writes to the buffer.
    ///
    /// # Safety
    ///
    /// `map` must be null or a token that lives until this function returns.
    unsafe extern "C" fn sync_single_for_cpu(
        map: bindings::virtio_map,
        iova: bindings::dma_addr_t,
        size: usize,
        dir: bindings::dma_data_direction,
    ) {
        if Direction::from_raw(dir).device_writes() {
            // SAFETY: The virtio core passes a device's token, and a range within a mapping that
            // `map_page` made with the same token.
            unsafe { Self::sync(map, iova, size, false) }
        }
    }

    /// Copies a part of a mapped buffer from the driver's memory to the bounce pages, if the device
    /// reads the buffer.
    ///
    /// # Safety
    ///
    /// `map` must be null or a token that lives until this function returns.
    unsafe extern "C" fn sync_single_for_device(
        map: bindings::virtio_map,
        iova: bindings::dma_addr_t,
        size: usize,
        dir: bindings::dma_data_direction,
    ) {
        if Direction::from_raw(dir).device_reads() {
            // SAFETY: The virtio core passes a device's token, and a range within a mapping that
            // `map_page` made with the same token.
            unsafe { Self::sync(map, iova, size, true) }
        }
    }

    /// Copies `size` bytes, beginning at `iova`, between a mapped buffer and its bounce pages. If
    /// `to_device`, copies to the bounce pages; otherwise copies to the buffer.
    ///
    /// # Safety
    ///
    /// `map` must be null or a token that lives until this function returns. The `size` bytes that
    /// begin at `iova` must be within a mapping that was made with that token and has not ended.
    #[inline(always)]
    unsafe fn sync(map: bindings::virtio_map, iova: u64, size: usize, to_device: bool) {
        // SAFETY: By the safety requirements, `map` is null or a token that lives until this
        // function returns.
        let Some(token) = (unsafe { Token::<T>::from_raw(map) }) else {
            return;
        };

        // SAFETY: By the safety requirements, the range is within a mapping of this token. This
        // function does not enable softirqs or preemption, so what the caller has disabled stays
        // disabled.
        unsafe {
            match rcu::Section::around() {
                Some(rcu) => token.sync(iova, size, to_device, rcu),
                None => rcu::read(move |rcu| token.sync(iova, size, to_device, rcu)),
            }
        }
    }

    /// Allocates `size` bytes of coherent memory, and writes their I/O virtual address to `iova`.
    /// Returns null, and writes [`MAPPING_ERROR`], on failure.
    ///
    /// # Safety
    ///
    /// `map` must be null or a token that lives until this function returns.
    unsafe extern "C" fn alloc(
        map: bindings::virtio_map,
        size: usize,
        iova: *mut bindings::dma_addr_t,
        gfp: bindings::gfp_t,
    ) -> *mut c_void {
        // SAFETY: The virtio core passes a pointer to which the address can be written.
        unsafe { iova.write(MAPPING_ERROR) };
        // SAFETY: The virtio core passes a device's token.
        let Some(token) = (unsafe { Token::<T>::from_raw(map) }) else {
            return ptr::null_mut();
        };

        // SAFETY: Any size may be requested.
        let memory = unsafe { bindings::alloc_pages_exact(size, gfp | bindings::__GFP_ZERO) };
        if memory.is_null() {
            return ptr::null_mut();
        }

        // SAFETY: `memory` is the start of allocated pages.
        let first = unsafe { bindings::phys_to_page(bindings::virt_to_phys(memory)) };
        let mapped = NonNull::new(first).ok_or(ENOMEM).and_then(|first| {
            // SAFETY: `alloc_pages_exact` returns contiguous pages, each with a reference count of
            // its own.
            let pages = unsafe { Pages::get(first, size.div_ceil(PAGE_SIZE)) };

            rcu::read(|rcu| match (token.enter_open(rcu), &token.direct) {
                (Some(space), _) => space.owner.map_coherent(pages, size),
                (None, Some(direct)) => direct.map_coherent(pages, size),
                (None, None) => Err(EBUSY),
            })
        });

        match mapped {
            Ok(address) => {
                // SAFETY: The virtio core passes a pointer to which the address can be written.
                unsafe { iova.write(address) };
                memory
            }
            Err(_) => {
                // SAFETY: `memory` was allocated above, with this size, and no other code has a
                // pointer to it.
                unsafe { bindings::free_pages_exact(memory, size) };
                ptr::null_mut()
            }
        }
    }

    /// Unmaps and frees coherent memory that [`alloc`](Self::alloc) returned.
    ///
    /// # Safety
    ///
    /// `map` must be null or a token that lives until this function returns.
    unsafe extern "C" fn free(
        map: bindings::virtio_map,
        size: usize,
        memory: *mut c_void,
        iova: bindings::dma_addr_t,
        _attrs: c_ulong,
    ) {
        // SAFETY: The virtio core passes a device's token.
        if let Some(token) = unsafe { Token::<T>::from_raw(map) } {
            match &token.direct {
                Some(direct) => direct.unmap(iova, size),
                None => rcu::read(|rcu| token.enter(rcu).owner.unmap_coherent(iova, size)),
            }
            // SAFETY: The virtio core passes memory that `alloc` returned for the same size.
            unsafe { bindings::free_pages_exact(memory, size) }
        }
    }

    /// Returns whether `iova` is in the bounce area, so that the driver must sync the buffer.
    ///
    /// # Safety
    ///
    /// `map` must be null or a token that lives until this function returns.
    unsafe extern "C" fn need_sync(map: bindings::virtio_map, iova: bindings::dma_addr_t) -> bool {
        // SAFETY: The virtio core passes a device's token.
        unsafe { Token::<T>::from_raw(map) }
            .is_some_and(|token| rcu::read(|rcu| token.enter(rcu).bounce.contains(iova)))
    }

    /// Returns 0, or `-ENOMEM` if `iova` is [`MAPPING_ERROR`].
    ///
    /// # Safety
    ///
    /// The function has no requirements, because `map` is not used.
    unsafe extern "C" fn mapping_error(
        _map: bindings::virtio_map,
        iova: bindings::dma_addr_t,
    ) -> c_int {
        if iova == MAPPING_ERROR {
            ENOMEM.to_errno()
        } else {
            0
        }
    }

    /// Returns the maximum size of one mapping in the bounce area, in bytes.
    ///
    /// # Safety
    ///
    /// `map` must be null or a token that lives until this function returns.
    unsafe extern "C" fn max_mapping_size(map: bindings::virtio_map) -> usize {
        // SAFETY: The virtio core passes a device's token.
        unsafe { Token::<T>::from_raw(map) }.map_or(0, |token| {
            rcu::read(|rcu| token.enter(rcu).bounce.max_mapping())
        })
    }

    /// The table of the map operations for C code.
    pub(super) const VTABLE: bindings::virtio_map_ops = bindings::virtio_map_ops {
        map_page: Some(Self::map_page),
        unmap_page: Some(Self::unmap_page),
        sync_single_for_cpu: Some(Self::sync_single_for_cpu),
        sync_single_for_device: Some(Self::sync_single_for_device),
        alloc: Some(Self::alloc),
        free: Some(Self::free),
        need_sync: Some(Self::need_sync),
        mapping_error: Some(Self::mapping_error),
        max_mapping_size: Some(Self::max_mapping_size),
    };
}
