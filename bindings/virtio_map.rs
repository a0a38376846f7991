// SPDX-License-Identifier: GPL-2.0

//! Mapping a virtio driver's memory into a device's address space, by the device's map operations.
//!
//! A virtio driver whose device has map operations passes its buffers and rings to these
//! operations, with the *token* that belongs to the virtqueue. Here, a token points to a [`Space`]:
//! buffers are mapped into the space's [bounce area](Area); rings (coherent memory) are allocated
//! here and given addresses by the space's owner. The memory of a virtqueue whose device is in the
//! kernel itself is mapped by a *direct* token, into a [`DirectMap`] instead. Following a token to its space takes an RCU
//! read-side critical section and no lock.
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
    mem,
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

/// The operations of the owner of a [`Space`].
///
/// # Context
///
/// Any in which a virtio driver maps memory, interrupt handlers included: the methods must not
/// sleep.
pub(crate) trait Owner: Send + Sync + 'static {
    /// Returns whether buffers may be mapped into the bounce area. If not,
    /// [`prepare`](Self::prepare) is called first.
    fn is_prepared(&self) -> bool;

    /// Prepares for buffers being mapped into the bounce area. May be called by several callers at
    /// a time.
    fn prepare(&self);

    /// Gives `size` bytes of coherent memory an I/O virtual address.
    ///
    /// The memory is the driver's until [`unmap_coherent`](Self::unmap_coherent) is called with
    /// that address; the memory's pages stay allocated after that for as long as `pages` is kept.
    fn map_coherent(&self, pages: Pages, size: usize) -> Result<u64>;

    /// Removes the address of coherent memory.
    fn unmap_coherent(&self, iova: u64, size: usize);

    /// Returns whether any coherent memory has an address.
    fn has_coherent(&self) -> bool;
}

/// An address space that drivers' memory is mapped into.
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

    /// Returns the area that buffers are mapped into.
    pub(crate) fn bounce(&self) -> &Area {
        &self.bounce
    }

    /// Returns the space's owner.
    pub(crate) fn owner(&self) -> &T {
        &self.owner
    }
}

/// The handle by which a virtqueue's memory is mapped.
///
/// A token points to one space at a time, and can be pointed to another one only while nothing is
/// mapped, so that memory is unmapped from the space that it was mapped into.
///
/// # Invariants
///
/// - `space` came from [`Arc::into_raw`], and the token owns a reference. `former` is the previous
///   space, of which the token owns a reference as well, or null.
/// - Both change only while `quiesced_by` is not 0, by the call that has set `quiesced_by`, once
///   and after an RCU grace period: so by then no readers are left of the space in `former`.
pub(crate) struct Token<T: Owner> {
    space: Atomic<*mut Space<T>>,
    former: Atomic<*mut Space<T>>,
    /// 0 while the token is open; otherwise a value that identifies the call that has quiesced it.
    quiesced_by: Atomic<usize>,
    /// What memory is mapped into by a [direct](Self::new_direct) token, which stays quiesced.
    direct: Option<Arc<DirectMap>>,
}

/// Value of [`Token::quiesced_by`] in a token quiesced by [`Token::quiesce`]. Other values are
/// addresses, and this is none.
const ALONE: usize = 1;

/// Value of [`Token::quiesced_by`] in a [direct](Token::new_direct) token. This is no address
/// either.
const ALWAYS: usize = 2;

// SAFETY: A token owns references to spaces, which move with the token.
unsafe impl<T: Owner> Send for Token<T> {}
// SAFETY: All fields are atomic, and spaces are `Sync`.
unsafe impl<T: Owner> Sync for Token<T> {}

impl<T: Owner> Token<T> {
    /// Creates a token that points to `space`.
    pub(crate) fn new(space: Arc<Space<T>>) -> Self {
        // INVARIANT: The token owns the reference from now on.
        Self {
            space: Atomic::new(Arc::into_raw(space).cast_mut()),
            former: Atomic::new(ptr::null_mut()),
            quiesced_by: Atomic::new(0),
            direct: None,
        }
    }

    /// Creates a token for a virtqueue whose device is in the kernel itself: memory is mapped into
    /// `direct`, and nothing into `space`, to which the token points for ever.
    pub(crate) fn new_direct(space: Arc<Space<T>>, direct: Arc<DirectMap>) -> Self {
        let mut token = Self::new(space);
        token.quiesced_by = Atomic::new(ALWAYS);
        token.direct = Some(direct);

        token
    }

    /// Returns whether the token points to `space` now.
    pub(crate) fn points_to(&self, space: &Arc<Space<T>>) -> bool {
        ptr::eq(self.space.load(Relaxed), Arc::as_ptr(space))
    }

    /// Quiesces the token: nothing is mapped by the token until the return value is dropped.
    ///
    /// # Errors
    ///
    /// [`EBUSY`] if something is mapped into the token's space, or if the token is quiesced
    /// already.
    ///
    /// # Context
    ///
    /// May sleep, for an RCU grace period (some tens of milliseconds) unless the call fails at
    /// once. The grace period is not expedited: a process asks for this, and must not interrupt
    /// other CPUs.
    pub(crate) fn quiesce(&self) -> Result<Quiesced<'_, T>> {
        let quiescing = self.begin_to_quiesce(ALONE)?;
        rcu::synchronize();

        quiescing.finish()
    }

    /// Points those `tokens` to `space` that do not point there, except tokens by which something
    /// may be mapped.
    ///
    /// # Context
    ///
    /// May sleep, for as long as [`quiesce`](Self::quiesce), however many tokens there are.
    pub(crate) fn retarget_all(tokens: &[Self], space: &Arc<Space<T>>) {
        // No other call has this address until this call returns.
        let mark = 0u8;
        let call = ptr::from_ref(&mark) as usize;
        let mut any = false;

        for token in tokens {
            if !token.points_to(space) {
                if let Ok(quiescing) = token.begin_to_quiesce(call) {
                    any = true;
                    // The token stays quiesced; `call` in `quiesced_by` says that this call did so.
                    mem::forget(quiescing);
                }
            }
        }
        if !any {
            return;
        }

        rcu::synchronize();
        for token in tokens {
            if token.quiesced_by.load(Relaxed) == call {
                // INVARIANT: This call quiesced the token above.
                if let Ok(quiesced) = Quiescing(token).finish() {
                    quiesced.retarget(space.clone());
                }
            }
        }
    }

    /// Prevents new mappings by the token; mappings already in progress may still complete.
    /// `call`, which must not be 0, tells the caller from others that may quiesce the token.
    ///
    /// # Errors
    ///
    /// Those of [`quiesce`](Self::quiesce).
    fn begin_to_quiesce(&self, call: usize) -> Result<Quiescing<'_, T>> {
        if self.quiesced_by.cmpxchg(0, call, Full).is_err() {
            return Err(EBUSY);
        }
        // INVARIANT: This call has set `quiesced_by` just now.
        let quiescing = Quiescing(self);

        if self.is_in_use() {
            Err(EBUSY)
        } else {
            Ok(quiescing)
        }
    }

    /// Returns whether anything is mapped into the token's space.
    fn is_in_use(&self) -> bool {
        rcu::read(|rcu| {
            let space = self.enter(rcu);

            space.bounce.is_in_use() || space.owner.has_coherent()
        })
    }

    /// Returns the space that the token points to, for the time of an RCU read-side critical
    /// section.
    #[inline(always)]
    fn enter<'a>(&'a self, _rcu: rcu::Section<'a>) -> &'a Space<T> {
        // SAFETY: By the type invariants, the token's reference to this space is not released
        // before the read-side section ends, even if the token points to another space by then.
        unsafe { &*self.space.read_acquire() }
    }

    /// Returns the space that the token points to, for mapping, or [`None`] if the token is
    /// quiesced.
    #[inline(always)]
    fn enter_open<'a>(&'a self, rcu: rcu::Section<'a>) -> Option<&'a Space<T>> {
        (self.quiesced_by.read_acquire() == 0).then(|| self.enter(rcu))
    }

    /// Maps a buffer by [`Area::map`], or by [`DirectMap::map`] if the token is direct. Returns
    /// [`None`] also if the token is quiesced.
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

        space.bounce.map(buffer, dir, sync, rcu)
    }

    /// Maps a buffer by [`Area::map_fast`]. Returns the buffer also if the token is quiesced, or
    /// its space is not prepared.
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

    /// Ends a mapping, by [`Area::unmap`].
    ///
    /// # Safety
    ///
    /// The same as for [`Area::unmap`], of a mapping that was made by this token.
    #[inline(always)]
    unsafe fn unmap(
        &self,
        iova: u64,
        len: usize,
        dir: Direction,
        sync: bool,
        rcu: rcu::Section<'_>,
    ) {
        // SAFETY: By the safety requirements. The token points to the same space as long as
        // anything is mapped into that space.
        unsafe {
            if !self.enter(rcu).bounce.unmap_fast(iova, len, dir, sync, rcu) {
                self.unmap_slow(iova, len, dir, sync, rcu);
            }
        }
    }

    /// Slow path of [`unmap`](Self::unmap), out of line: the fast path keeps nothing for it.
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
        // SAFETY: As in `unmap`; what a direct token has mapped is not in the area.
        if unsafe { self.enter(rcu).bounce.unmap(iova, len, dir, sync, rcu) } {
            return;
        }
        if let Some(direct) = &self.direct {
            direct.unmap(iova, len);
        }
    }

    /// Copies a part of a mapped buffer in or out, by [`Area::sync`].
    ///
    /// # Safety
    ///
    /// The same as for [`Area::sync`], of a mapping that was made by this token.
    #[inline(always)]
    unsafe fn sync(&self, iova: u64, len: usize, to_device: bool, rcu: rcu::Section<'_>) {
        // SAFETY: As in `unmap`.
        unsafe { self.enter(rcu).bounce.sync(iova, len, to_device, rcu) }
    }

    /// Returns the token in the form in which C code passes it around.
    pub(super) fn as_raw(&self) -> bindings::virtio_map {
        bindings::virtio_map {
            group: ptr::from_ref(self).cast_mut().cast(),
        }
    }

    /// Converts what C code passes around to a token; null, as for a device whose queues are not
    /// set up yet, to [`None`].
    ///
    /// # Safety
    ///
    /// `map` must be null or come from [`as_raw`](Self::as_raw) of a token that lives for `'a`.
    unsafe fn from_raw<'a>(map: bindings::virtio_map) -> Option<&'a Self> {
        // SAFETY: By the safety requirements.
        unsafe { map.group.cast::<Self>().as_ref() }
    }
}

impl<T: Owner> Drop for Token<T> {
    fn drop(&mut self) {
        // SAFETY: By the type invariants, the token owns the reference, and the token has no users
        // any more.
        drop(unsafe { Arc::from_raw(*self.space.get_mut()) });
        let former = *self.former.get_mut();
        if !former.is_null() {
            // SAFETY: As above.
            drop(unsafe { Arc::from_raw(former) });
        }
    }
}

/// A quiesced [`Token`] by which some mappings may still be in progress. Dropping this opens the
/// token again.
///
/// # Invariants
///
/// The token's `quiesced_by` was set for this value.
struct Quiescing<'a, T: Owner>(&'a Token<T>);

impl<'a, T: Owner> Quiescing<'a, T> {
    /// Completes the quiescing. Must be called after a grace period, by which time callers that saw
    /// the token open have finished mapping.
    ///
    /// # Errors
    ///
    /// [`EBUSY`] if something is mapped into the token's space.
    fn finish(self) -> Result<Quiesced<'a, T>> {
        // Checked again, now that no new mapping can appear.
        if self.0.is_in_use() {
            Err(EBUSY)
        } else {
            Ok(Quiesced(self))
        }
    }
}

impl<T: Owner> Drop for Quiescing<'_, T> {
    fn drop(&mut self) {
        self.0.quiesced_by.store(0, Release);
    }
}

/// A quiesced [`Token`] by which nothing is mapped or can be mapped. Dropping this opens the token
/// again.
///
/// # Invariants
///
/// An RCU grace period has passed since the token was quiesced.
pub(crate) struct Quiesced<'a, T: Owner>(Quiescing<'a, T>);

impl<T: Owner> Quiesced<'_, T> {
    /// Points the token to another space. May sleep.
    pub(crate) fn retarget(self, space: Arc<Space<T>>) {
        let token = self.0 .0;
        // INVARIANT: This value has quiesced the token, a grace period has passed, and `self` is
        // consumed, so that this is done once.
        let old = token.space.xchg(Arc::into_raw(space).cast_mut(), Full);
        // `old` may have readers until after the next grace period: it is kept in `former` until
        // then.
        let former = token.former.xchg(old, Full);

        if !former.is_null() {
            // SAFETY: By the invariants of `Token`, the token owns the reference. The token has not
            // pointed to `former` since before it was quiesced, so that all of `former`'s readers
            // were waited for.
            drop(unsafe { Arc::from_raw(former) });
        }
    }
}

/// The map operations of devices whose spaces are owned by a `T`.
pub(super) struct VTable<T: Owner>(PhantomData<T>);

/// The address that virtio takes for a failed mapping, as `DMA_MAPPING_ERROR`.
const MAPPING_ERROR: bindings::dma_addr_t = bindings::dma_addr_t::MAX;

/// Returns whether a buffer's contents are to be copied when the buffer is mapped or unmapped.
fn syncs(attrs: c_ulong) -> bool {
    attrs & bindings::DMA_ATTR_SKIP_CPU_SYNC as c_ulong == 0
}

// The virtio core calls these functions with the token that a device's `get_vq_map` returned. The
// device is alive as long as its virtqueues are, and the token as long as the device: see
// `vdpa::Device`.
impl<T: Owner> VTable<T> {
    /// # Safety
    ///
    /// `map` must be null or a token that lives until this returns.
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
        // SAFETY: The virtio core maps this memory for a driver, which must not free the memory
        // before unmapping it by the same token. The token points to the same space as long as
        // anything is mapped.
        let buffer = unsafe { Buffer::new(page, offset, size) };
        let (dir, sync) = (Direction::from_raw(dir), syncs(attrs));

        // SAFETY: Whatever the caller has disabled stays disabled until this returns, as no code
        // here enables it.
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

    /// # Safety
    ///
    /// `map` must be null or a token that lives until this returns.
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

        // SAFETY: The virtio core ends a mapping that `map_page` made by the same token. Whatever
        // the caller has disabled stays disabled, as in `map_page`.
        unsafe {
            match rcu::Section::around() {
                Some(rcu) => token.unmap(iova, size, dir, sync, rcu),
                None => rcu::read(move |rcu| token.unmap(iova, size, dir, sync, rcu)),
            }
        }
    }

    /// # Safety
    ///
    /// `map` must be null or a token that lives until this returns.
    unsafe extern "C" fn sync_single_for_cpu(
        map: bindings::virtio_map,
        iova: bindings::dma_addr_t,
        size: usize,
        dir: bindings::dma_data_direction,
    ) {
        if Direction::from_raw(dir).device_writes() {
            // SAFETY: The virtio core passes a device's token, and a range within a mapping that
            // `map_page` made by the same token.
            unsafe { Self::sync(map, iova, size, false) }
        }
    }

    /// # Safety
    ///
    /// `map` must be null or a token that lives until this returns.
    unsafe extern "C" fn sync_single_for_device(
        map: bindings::virtio_map,
        iova: bindings::dma_addr_t,
        size: usize,
        dir: bindings::dma_data_direction,
    ) {
        if Direction::from_raw(dir).device_reads() {
            // SAFETY: The virtio core passes a device's token, and a range within a mapping that
            // `map_page` made by the same token.
            unsafe { Self::sync(map, iova, size, true) }
        }
    }

    /// Copies a part of a mapped buffer in or out.
    ///
    /// # Safety
    ///
    /// `map` must be null or a token that lives until this returns. The `size` bytes from `iova` on
    /// must be within a mapping that was made by that token and has not ended.
    #[inline(always)]
    unsafe fn sync(map: bindings::virtio_map, iova: u64, size: usize, to_device: bool) {
        // SAFETY: By the safety requirements.
        let Some(token) = (unsafe { Token::<T>::from_raw(map) }) else {
            return;
        };

        // SAFETY: By the safety requirements. Whatever the caller has disabled stays disabled, as
        // in `map_page`.
        unsafe {
            match rcu::Section::around() {
                Some(rcu) => token.sync(iova, size, to_device, rcu),
                None => rcu::read(move |rcu| token.sync(iova, size, to_device, rcu)),
            }
        }
    }

    /// # Safety
    ///
    /// `map` must be null or a token that lives until this returns.
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
                // SAFETY: As above, the virtio core passes a pointer to which the address can be
                // written.
                unsafe { iova.write(address) };
                memory
            }
            Err(_) => {
                // SAFETY: `memory` was allocated above, with this size, and no other code knows of
                // it.
                unsafe { bindings::free_pages_exact(memory, size) };
                ptr::null_mut()
            }
        }
    }

    /// # Safety
    ///
    /// `map` must be null or a token that lives until this returns.
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
            // SAFETY: The virtio core frees what `alloc` returned for the same size.
            unsafe { bindings::free_pages_exact(memory, size) }
        }
    }

    /// # Safety
    ///
    /// `map` must be null or a token that lives until this returns.
    unsafe extern "C" fn need_sync(map: bindings::virtio_map, iova: bindings::dma_addr_t) -> bool {
        // SAFETY: The virtio core passes a device's token.
        unsafe { Token::<T>::from_raw(map) }
            .is_some_and(|token| rcu::read(|rcu| token.enter(rcu).bounce.contains(iova)))
    }

    /// # Safety
    ///
    /// None: `map` is not used.
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

    /// # Safety
    ///
    /// `map` must be null or a token that lives until this returns.
    unsafe extern "C" fn max_mapping_size(map: bindings::virtio_map) -> usize {
        // SAFETY: The virtio core passes a device's token.
        unsafe { Token::<T>::from_raw(map) }.map_or(0, |token| {
            rcu::read(|rcu| token.enter(rcu).bounce.max_mapping())
        })
    }

    /// The operations, as a table for C code.
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
