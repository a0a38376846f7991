// SPDX-License-Identifier: GPL-2.0

//! Bounce areas: pages that a device accesses in place of a driver's buffers, because the device
//! must not see the buffers themselves.
//!
//! An area consists of the I/O virtual addresses from 0 to its size. Each page of the area is a
//! *slot*. Mapping a buffer allocates slots and copies the buffer into the slots' bounce pages.
//! Unmapping the buffer copies the bounce pages back and frees the slots. The device side maps only
//! bounce pages, so it sees only data that a driver has handed to the device. The kernel allocates
//! bounce pages on demand, and zeroes them. A process may register pages of its own (umem) to use
//! in place of the kernel's pages.
//!
//! An area can have a [reserve]: slots at its beginning whose pages are allocated beforehand. They
//! are used for mappings that fail otherwise, because memory is short. So such an area needs no
//! memory in order to map a request that needs no more slots than the reserve has. A request may be
//! what the kernel waits for in order to free memory: a page that is swapped out.
//!
//! This code is in `bindings/` because a slot keeps the physical address of a buffer between two
//! calls from C. All code that prevents stale addresses is here: the call that unmaps a buffer clears
//! the addresses in the buffer's slots.
//!
//! # Context
//!
//! Mapping, unmapping and copying work in any context, including interrupt handlers. Each CPU owns
//! a block of slots. A mapping of a page or less takes no lock that another CPU could hold, as long
//! as this CPU's block has a free slot. Other mappings take the locks of the address allocator. All
//! of these operations read the area's mode under RCU. A mapping of a slot of the reserve takes the
//! reserve's lock. While a process registers or deregisters pages, a copy also takes a lock, to find
//! out which of a slot's two pages is in use.
//!
//! # Lock order
//!
//! First the mutex `registered`, which serialises registering and deregistering, filling the reserve
//! and giving pages back. Then the spinlock `progress`, which protects the progress of the migration
//! between the kernel's and the user's pages.

pub(crate) mod give_back;
mod reserve;
mod slot;

use self::{
    reserve::Reserve,
    slot::{
        copy,
        Slot, //
    },
};
use super::{
    fast::{
        page_to_phys,
        Inlined, //
    },
    iova,
    lock::{
        new_spinlock_irqsave,
        SpinLockIrqSave, //
    },
    page::{
        Effort,
        Page,
        PAGE_SHIFT,
        PAGE_SIZE, //
    },
    pin::PinnedPages,
    raw as bindings,
    rcu,
    rcu_box::RcuBox,
    sched::cond_resched,
    slots::{
        BlockSlot,
        Slots,
        REGION_SLOTS, //
    }, //
};
use core::{
    marker::PhantomData,
    ops::Range,
    ptr, //
};
use kernel::{
    alloc::flags::{
        GFP_ATOMIC,
        GFP_KERNEL_ACCOUNT,
        __GFP_NOWARN, //
    },
    new_mutex,
    prelude::*,
    sync::{
        aref::ARef,
        atomic::{
            Atomic,
            Relaxed,
            Release, //
        },
        Arc,
        Mutex, //
    },
};
use pin_init::init_array_from_fn;

/// The direction in which a device uses a buffer: `enum dma_data_direction`.
#[derive(Clone, Copy)]
pub(super) struct Direction(bindings::dma_data_direction);

#[cfg(dma_data_direction_is_a_type)]
impl Direction {
    const BIDIRECTIONAL: bindings::dma_data_direction =
        bindings::dma_data_direction::DMA_BIDIRECTIONAL;
    const TO_DEVICE: bindings::dma_data_direction = bindings::dma_data_direction::DMA_TO_DEVICE;
    const FROM_DEVICE: bindings::dma_data_direction = bindings::dma_data_direction::DMA_FROM_DEVICE;
}

#[cfg(not(dma_data_direction_is_a_type))]
impl Direction {
    const BIDIRECTIONAL: bindings::dma_data_direction =
        bindings::dma_data_direction_DMA_BIDIRECTIONAL;
    const TO_DEVICE: bindings::dma_data_direction = bindings::dma_data_direction_DMA_TO_DEVICE;
    const FROM_DEVICE: bindings::dma_data_direction = bindings::dma_data_direction_DMA_FROM_DEVICE;
}

impl Direction {
    pub(super) fn from_raw(raw: bindings::dma_data_direction) -> Self {
        Self(raw)
    }

    pub(super) fn device_reads(self) -> bool {
        self.0 == Self::TO_DEVICE || self.0 == Self::BIDIRECTIONAL
    }

    pub(super) fn device_writes(self) -> bool {
        self.0 == Self::FROM_DEVICE || self.0 == Self::BIDIRECTIONAL
    }
}

/// A driver's buffer, during the call that maps it.
///
/// # Invariants
///
/// The `len` bytes of physical memory from `phys` on have page structures. The driver owns these
/// bytes until it unmaps the buffer.
pub(super) struct Buffer<'a> {
    phys: u64,
    len: usize,
    _call: PhantomData<&'a ()>,
}

impl Buffer<'_> {
    /// Describes the `len` bytes that begin `offset` bytes after the start of `page`.
    ///
    /// # Safety
    ///
    /// The caller must be mapping these bytes to an area, for a driver. The driver must keep the
    /// bytes allocated, and must not access them, until the driver unmaps them from that area.
    pub(super) unsafe fn new(page: *mut bindings::page, offset: usize, len: usize) -> Self {
        // SAFETY: By the safety requirements, `page` points to a page structure.
        let phys = unsafe { page_to_phys(page) };

        // INVARIANT: By the safety requirements, the driver owns these bytes until it unmaps them.
        Self {
            phys: phys.wrapping_add(offset as u64),
            len,
            _call: PhantomData,
        }
    }

    /// Returns the buffer's physical address, and its length in bytes.
    pub(super) fn range(&self) -> (u64, usize) {
        (self.phys, self.len)
    }
}

/// The slots that are allocated together, in 4 KiB of memory.
type Chunk = [Slot; REGION_SLOTS];

/// The number of pages that belong to the slots of all areas, without those of reserves.
static ON_DEMAND: Atomic<usize> = Atomic::new(0);

/// Returns the number of pages that were allocated on demand for the slots of all areas, and that
/// have not been freed. Any context.
pub(crate) fn pages_on_demand() -> usize {
    ON_DEMAND.load(Relaxed)
}

/// The modes of an area. The mode determines which page of each slot is in use, and changes only
/// while [`Area::registered`] is locked.
mod mode {
    /// All slots use the kernel's pages.
    pub(super) const KERNEL: u32 = 0;
    /// Some slots use the kernel's pages and some the user's. [`Progress`](super::Progress) says
    /// which.
    pub(super) const MIGRATING: u32 = 1;
    /// All slots use the user's pages.
    pub(super) const USER: u32 = 2;
}

/// The progress of a migration between the kernel's pages and the user's.
struct Progress {
    /// Slots below this one use the user's pages; all others use the kernel's.
    user_below: usize,
}

/// Returns the binary logarithm of the number of slots that the largest mapping takes, in an area
/// of `slots` slots.
///
/// A virtqueue of 256 descriptors has room for a request of 254 parts. Even if each part is as
/// large as the largest mapping, such a request takes no more than half of an area of 512 or more
/// slots.
fn largest_order(slots: usize) -> u32 {
    (slots / 512).checked_ilog2().unwrap_or(0)
}

/// Returns the number of slots of the reserve of an area of `slots` slots: `wanted`, or less than
/// half of the area, or 0 if the reserve would not have room for a request of four parts.
fn reserve_slots(wanted: usize, slots: usize) -> usize {
    let most = wanted.min(reserve::MAX_SLOTS).min((slots - 1) / 2);

    if most < 4 {
        0
    } else {
        most
    }
}

/// A bounce area.
///
/// # Invariants
///
/// - `umem` is valid while `mode` is not [`mode::KERNEL`], and for an RCU grace period after that.
/// - Once an RCU grace period has passed since `mode` was set to [`mode::MIGRATING`], and until
///   `mode` changes again, the area accesses slots' pages only while `progress` is locked.
#[pin_data(PinnedDrop)]
pub(crate) struct Area {
    /// The allocator of the slots after the reserve. Slot 0 is never allocated, because its address
    /// would be 0.
    #[pin]
    allocator: Slots,
    /// The reserve, which begins with slot 1.
    #[pin]
    reserve: Reserve,
    /// The slots, by region.
    chunks: KVVec<RcuBox<Chunk>>,
    slots: usize,
    mode: Atomic<u32>,
    umem: Atomic<*const PinnedPages>,
    #[pin]
    progress: SpinLockIrqSave<Progress>,
    #[pin]
    registered: Mutex<Option<Arc<PinnedPages>>>,
}

/// The pages that an area's slots use, during one copy.
enum View<'a> {
    Kernel,
    User(&'a PinnedPages),
    Migrating(&'a PinnedPages),
}

impl Area {
    /// Returns an initialiser for an area of `size` bytes, a multiple of the page size.
    ///
    /// Without a `cache`, nothing can be mapped into the area, and the area takes hardly any
    /// memory. If `wanted` is not 0, the area has a reserve of that many slots (at most 64, and
    /// fewer in a small area), and no mapping is larger than a page.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if `size` is not a multiple of the page size, or is less than two pages.
    ///
    /// # Context
    ///
    /// May sleep.
    pub(crate) fn new(
        cache: Option<&Arc<iova::Cache>>,
        size: usize,
        wanted: usize,
    ) -> impl PinInit<Self, Error> + use<'_> {
        try_pin_init!(Self {
            slots: {
                if size < 2 * PAGE_SIZE || size % PAGE_SIZE != 0 {
                    return Err(EINVAL);
                }
                size >> PAGE_SHIFT
            },
            chunks: {
                let used = if cache.is_some() { size >> PAGE_SHIFT } else { 0 };
                let count = used.div_ceil(REGION_SLOTS);
                let mut chunks = KVVec::with_capacity(count, GFP_KERNEL_ACCOUNT)?;
                for _ in 0..count {
                    chunks.push(RcuBox::new(), GFP_KERNEL_ACCOUNT)?;
                }
                chunks
            },
            reserve <- Reserve::new(reserve_slots(wanted, *slots)),
            allocator <- Slots::new(
                cache,
                reserve_slots(wanted, *slots) + 1..*slots,
                largest_order(*slots),
            ),
            mode: Atomic::new(mode::KERNEL),
            umem: Atomic::new(ptr::null()),
            progress <- new_spinlock_irqsave!(Progress { user_below: 0 }),
            registered <- new_mutex!(None),
        })
    }

    /// Returns the area's size in bytes.
    pub(crate) fn size(&self) -> usize {
        self.slots << PAGE_SHIFT
    }

    /// Returns whether an I/O virtual address is in the area.
    pub(crate) fn contains(&self, iova: u64) -> bool {
        iova < self.size() as u64
    }

    /// Returns the maximum size of one mapping in bytes, a power of two.
    pub(crate) fn max_mapping(&self) -> usize {
        if self.has_reserve() {
            PAGE_SIZE
        } else {
            PAGE_SIZE << largest_order(self.slots)
        }
    }

    /// Returns whether the area has a reserve.
    pub(crate) fn has_reserve(&self) -> bool {
        self.reserve.len() > 0
    }

    /// Allocates the pages of the reserve, if the area has one. From then on, the reserve is used,
    /// and kept until [`let_reserve_go`](Self::let_reserve_go) is called. `vqs` is the number of
    /// the virtqueues whose buffers are mapped into the area.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`] if memory is short.
    ///
    /// # Context
    ///
    /// May sleep.
    pub(crate) fn fill_reserve(&self, vqs: usize) -> Result {
        // Set first, so that the reserve is not given back once it is filled.
        self.reserve.set_wanted(true);
        let _registered = self.registered.lock();

        self.reserve
            .fill(vqs)
            .inspect_err(|_| self.reserve.set_wanted(false))
    }

    /// Returns the number of mappings for which there is always room, whatever the sizes of these
    /// mappings, and whatever was mapped before. If the area has a reserve, there is also enough
    /// memory for them, whatever else takes memory.
    ///
    /// Without a reserve, this is the number of aligned ranges that are as large as the largest
    /// mapping, except the one that contains slot 0, which is never allocated. The reason is that
    /// each mapping lies within one range, because each mapping is aligned to its size, rounded up
    /// to a power of two.
    pub(crate) fn sure_mappings(&self) -> usize {
        if self.has_reserve() {
            self.reserve.len()
        } else {
            (self.slots >> largest_order(self.slots)) - 1
        }
    }

    /// Allows the reserve to be given back when none of its slots is used any more. Any context.
    pub(crate) fn let_reserve_go(&self) {
        self.reserve.set_wanted(false);
    }

    /// Returns the slot at `index`, which is not in the reserve. Returns [`None`] if the slot's
    /// chunk has not been allocated.
    #[inline(always)]
    fn slot<'a>(&'a self, index: usize, rcu: rcu::Section<'a>) -> Option<&'a Slot> {
        self.chunks
            .get(index / REGION_SLOTS)?
            .get(rcu)?
            .get(index % REGION_SLOTS)
    }

    /// Returns the slot at `index`, which may be in the reserve. Returns [`None`] if it has not
    /// been allocated.
    #[inline]
    fn any_slot<'a>(&'a self, index: usize, rcu: rcu::Section<'a>) -> Option<&'a Slot> {
        if self.reserve.contains(index) {
            self.reserve.slot(index, rcu)
        } else {
            self.slot(index, rcu)
        }
    }

    /// Returns all slots that have been allocated.
    fn used_slots<'a>(&'a self, rcu: rcu::Section<'a>) -> impl Iterator<Item = &'a Slot> {
        let on_demand = self.chunks.iter().filter_map(move |chunk| chunk.get(rcu));

        Iterator::chain(on_demand.flatten(), self.reserve.used_slots(rcu))
    }

    /// Returns the slot at `index`, after allocating its chunk and its kernel page if they are
    /// missing. Returns [`None`] if no memory is available.
    #[inline]
    fn slot_with_page<'a>(&'a self, index: usize, rcu: rcu::Section<'a>) -> Option<&'a Slot> {
        // With a reserve, a failure does no harm. So a task that frees memory, which could use up all
        // memory that there is, leaves the last part of it to others, for example to the daemon.
        let effort = if self.has_reserve() {
            Effort::Spares
        } else {
            Effort::Atomic
        };
        let slot = self
            .slot(index, rcu)
            .or_else(|| self.alloc_slot(index, rcu))?;
        if slot.kernel_page().is_none() && slot.alloc_page(effort)? {
            let _ = ON_DEMAND.fetch_add(1, Relaxed);
        }

        Some(slot)
    }

    /// Allocates the chunk of the slot at `index`, unless another CPU has allocated it in the
    /// meantime. Returns the slot, or [`None`] if no memory is available. Any context.
    #[cold]
    #[inline(never)]
    fn alloc_slot<'a>(&'a self, index: usize, rcu: rcu::Section<'a>) -> Option<&'a Slot> {
        self.chunks
            .get(index / REGION_SLOTS)?
            .fill(
                init_array_from_fn(|_| Slot::new()),
                GFP_ATOMIC | __GFP_NOWARN,
            )
            .ok()?;

        self.slot(index, rcu)
    }

    /// Returns which pages the slots use. The return value is valid until the RCU read-side
    /// critical section `_rcu` ends.
    #[inline]
    fn view<'a>(&'a self, _rcu: rcu::Section<'a>) -> View<'a> {
        let mode = self.mode.read_acquire();
        if mode == mode::KERNEL {
            return View::Kernel;
        }

        // SAFETY: `mode` is not `KERNEL`. So by the type invariants, `umem` is valid until this RCU
        // read-side critical section ends, which lasts at least as long as `'a`.
        let umem = unsafe { &*self.umem.read_acquire() };

        if mode == mode::USER {
            View::User(umem)
        } else {
            View::Migrating(umem)
        }
    }

    /// Copies the `len` bytes that begin at `iova`. If `to_device`, copies them from the mapped
    /// buffer to the bounce pages; otherwise copies them from the bounce pages to the buffer.
    ///
    /// Skips slots to which no buffer is mapped, and addresses outside the area.
    ///
    /// # Context
    ///
    /// Any.
    ///
    /// # Safety
    ///
    /// The `len` bytes from `iova` on must be within one mapping of this area that has not ended.
    pub(super) unsafe fn sync(
        &self,
        iova: u64,
        len: usize,
        to_device: bool,
        rcu: rcu::Section<'_>,
    ) {
        if !self.contains(iova) {
            return;
        }

        let mut at = iova as usize;
        let mut left = len.min(self.size() - at);

        while left > 0 {
            let offset = at % PAGE_SIZE;
            let part = left.min(PAGE_SIZE - offset);
            let index = at >> PAGE_SHIFT;

            if let Some(slot) = self.any_slot(index, rcu) {
                // SAFETY: `slot` is the slot at `index`. By the safety requirements, these bytes
                // are in the part of the mapping that belongs to `slot`.
                unsafe { self.copy_slot(index, slot, offset..offset + part, to_device, rcu) }
            }

            at += part;
            left -= part;
        }
    }

    /// Copies between the page that is in use for `slot` and the part of a buffer that is mapped to
    /// `slot`. `range` has the offsets of the bytes to copy, in the page and in the part. If
    /// `to_device`, copies to the page; otherwise copies to the buffer.
    ///
    /// # Safety
    ///
    /// `slot` must be the slot at `index`. The requirements of [`Slot::copy`] for the range and the
    /// mapping apply as well.
    #[inline(always)]
    unsafe fn copy_slot(
        &self,
        index: usize,
        slot: &Slot,
        range: Range<usize>,
        to_device: bool,
        rcu: rcu::Section<'_>,
    ) {
        // SAFETY: The view says which page is in use. That page stays in use and allocated until
        // the RCU section ends. The safety requirements cover the slot, the range and the mapping.
        unsafe {
            match self.view(rcu) {
                View::Kernel => slot.copy(slot.kernel_page(), range, to_device),
                _ => self.copy_slot_slow(index, slot, range, to_device, rcu),
            }
        }
    }

    /// Slow path of [`copy_slot`](Self::copy_slot). Not inlined, because few processes register
    /// pages.
    ///
    /// # Safety
    ///
    /// `slot` must be the slot at `index`. The requirements of [`Slot::copy`] for the range and the
    /// mapping apply as well.
    #[inline(never)]
    unsafe fn copy_slot_slow(
        &self,
        index: usize,
        slot: &Slot,
        range: Range<usize>,
        to_device: bool,
        rcu: rcu::Section<'_>,
    ) {
        // SAFETY: The view says which page is in use. That page stays in use and allocated until
        // the RCU section ends. The safety requirements cover the slot, the range and the mapping.
        unsafe {
            match self.view(rcu) {
                View::Kernel => slot.copy(slot.kernel_page(), range, to_device),
                View::User(umem) => slot.copy(umem.page(index), range, to_device),
                View::Migrating(umem) => self.copy_migrating(umem, index, slot, range, to_device),
            }
        }
    }

    /// Variant of [`copy_slot`](Self::copy_slot) for use during a migration. Locks `progress`, so
    /// that the migration cannot copy this slot's contents at the same time.
    ///
    /// # Safety
    ///
    /// `slot` must be the slot at `index`. The requirements of [`Slot::copy`] for the range and the
    /// mapping apply as well.
    #[cold]
    #[inline(never)]
    unsafe fn copy_migrating(
        &self,
        umem: &PinnedPages,
        index: usize,
        slot: &Slot,
        range: Range<usize>,
        to_device: bool,
    ) {
        let progress = self.progress.lock();
        let page = if index < progress.user_below {
            umem.page(index)
        } else {
            slot.kernel_page()
        };

        // SAFETY: `page` stays in use while `progress` is locked. Both of the slot's pages stay
        // allocated for longer than that. The safety requirements cover the slot, the range and the
        // mapping.
        unsafe { slot.copy(page, range, to_device) }
    }

    /// Maps a buffer of the virtqueue `vq`. If the device reads the buffer and `sync` is set,
    /// copies the buffer's contents to the bounce pages.
    ///
    /// Returns the mapping's I/O virtual address, a multiple of the page size, or [`None`] if there
    /// is no room or no memory.
    ///
    /// # Context
    ///
    /// Any.
    pub(super) fn map(
        &self,
        buffer: Buffer<'_>,
        dir: Direction,
        sync: bool,
        vq: u32,
        rcu: rcu::Section<'_>,
    ) -> Option<u64> {
        self.map_on_demand(&buffer, dir, sync, rcu)
            .or_else(|| self.map_reserved(&buffer, dir, sync, vq, rcu))
    }

    /// Maps a buffer to a slot of the reserve. Otherwise the same as [`map`](Self::map).
    #[cold]
    #[inline(never)]
    fn map_reserved(
        &self,
        buffer: &Buffer<'_>,
        dir: Direction,
        sync: bool,
        vq: u32,
        rcu: rcu::Section<'_>,
    ) -> Option<u64> {
        if !(1..=PAGE_SIZE).contains(&buffer.len) {
            return None;
        }
        let index = self.reserve.take(vq)?;
        let Some(slot) = self.reserve.slot(index, rcu) else {
            // Unreachable: the reserve is filled, so its slots are allocated.
            self.reserve.give_back(index);
            return None;
        };

        // SAFETY: The buffer is mapped to the slot until it is unmapped, which clears the address.
        unsafe { slot.set_buffer(buffer.phys) };
        if sync && dir.device_reads() {
            // SAFETY: `slot` is the slot at `index`. The buffer has `buffer.len` bytes, a page at
            // most. The mapping cannot end before this function returns its address.
            unsafe { self.copy_slot(index, slot, 0..buffer.len, true, rcu) }
        }

        Some((index << PAGE_SHIFT) as u64)
    }

    /// Maps a buffer to slots after the reserve, whose pages are allocated if they are missing.
    /// Otherwise the same as [`map`](Self::map).
    #[inline]
    fn map_on_demand(
        &self,
        buffer: &Buffer<'_>,
        dir: Direction,
        sync: bool,
        rcu: rcu::Section<'_>,
    ) -> Option<u64> {
        let iova = self.allocator.alloc(buffer.len)?;
        let first = iova as usize >> PAGE_SHIFT;
        let (mut index, mut phys, mut left) = (first, buffer.phys, buffer.len);

        while left > 0 {
            let part = left.min(PAGE_SIZE);

            let Some(slot) = self.slot_with_page(index, rcu) else {
                self.forget(first, index - first, rcu);
                self.allocator.free(iova, buffer.len);
                return None;
            };
            // SAFETY: This part of the buffer is mapped to the slot until the buffer is unmapped, or
            // until this function undoes the mapping. Both clear the address.
            unsafe { slot.set_buffer(phys) };
            if sync && dir.device_reads() {
                // SAFETY: `slot` is the slot at `index`. The slot's part of the buffer has `part`
                // bytes, a page at most. The mapping cannot end before this function returns its
                // address.
                unsafe { self.copy_slot(index, slot, 0..part, true, rcu) }
            }

            index += 1;
            phys += part as u64;
            left -= part;
        }

        Some(iova)
    }

    /// Fast path of [`map`](Self::map). Maps a buffer of a page or less to a slot from the block
    /// that this CPU owns in [`Slots`], if the slot's kernel page is allocated. Otherwise maps
    /// nothing and returns the buffer.
    ///
    /// This function calls another function only to copy, so it saves hardly any registers.
    /// Otherwise, saving registers would make up a quarter of its cost.
    #[inline(always)]
    pub(super) fn map_fast<'a>(
        &self,
        buffer: Buffer<'a>,
        dir: Direction,
        sync: bool,
        rcu: rcu::Section<'_>,
    ) -> Result<u64, Buffer<'a>> {
        let Some(given) = self.allocator.alloc_own(buffer.len) else {
            return Err(buffer);
        };
        let index = given.index();
        let slot_and_page = self
            .slot(index, rcu)
            .and_then(|slot| Some((slot, slot.kernel_page()?)));
        let Some((slot, page)) = slot_and_page else {
            given.free();
            return Err(buffer);
        };

        // SAFETY: The buffer is mapped to the slot until it is unmapped, which clears the address.
        unsafe { slot.set_buffer(buffer.phys) };
        if sync && dir.device_reads() {
            let range = 0..buffer.len;

            // SAFETY: The buffer has `buffer.len` bytes, a page at most, because `alloc_own` has
            // returned a slot for them. `slot` is the slot at `index`, and `page` is the slot's
            // page. The buffer and the page stay allocated as long as the buffer is mapped.
            unsafe {
                match self.view(rcu) {
                    View::Kernel => copy(page, buffer.phys, range, true),
                    _ => self.copy_slot_slow(index, slot, range, true, rcu),
                }
            }
        }

        Ok(given.iova())
    }

    /// Clears the buffer addresses of `count` slots from `first` on.
    fn forget(&self, first: usize, count: usize, rcu: rcu::Section<'_>) {
        for index in first..first + count {
            if let Some(slot) = self.slot(index, rcu) {
                slot.clear_buffer();
            }
        }
    }

    /// Fast path of [`unmap`](Self::unmap), for a mapping to a slot that comes from a block of
    /// [`Slots`]. For any other mapping, and for an address outside the area, does nothing and
    /// returns `false`.
    ///
    /// # Safety
    ///
    /// The same as for [`unmap`](Self::unmap).
    #[inline(always)]
    pub(super) unsafe fn unmap_fast(
        &self,
        iova: u64,
        len: usize,
        dir: Direction,
        sync: bool,
        rcu: rcu::Section<'_>,
    ) -> bool {
        let Some(given) = self.allocator.block_slot(iova, len) else {
            return false;
        };
        let Some(slot) = self.slot(given.index(), rcu) else {
            given.free();
            return true;
        };

        // As in `map_fast`, this path calls no function if nothing has to be copied.
        if sync && dir.device_writes() {
            // SAFETY: By the safety requirements, the mapping has `len` bytes and ends with this
            // call. A slot of a block holds a page at most.
            unsafe { self.copy_and_empty(given, slot, len, rcu) }
        } else {
            slot.clear_buffer();
            given.free();
        }

        true
    }

    /// Copies `len` bytes from a slot's page to the buffer, clears the slot's buffer address, and
    /// frees the slot.
    ///
    /// # Safety
    ///
    /// `slot` must be the slot at `given.index()`. The buffer that is mapped to `slot` must have
    /// `len` bytes, a page at most, and its mapping must end with this call.
    #[inline(never)]
    unsafe fn copy_and_empty(
        &self,
        given: BlockSlot<'_>,
        slot: &Slot,
        len: usize,
        rcu: rcu::Section<'_>,
    ) {
        // SAFETY: By the safety requirements, `slot` is the slot at this index, and its buffer has
        // `len` bytes.
        unsafe { self.copy_slot(given.index(), slot, 0..len, false, rcu) }
        slot.clear_buffer();
        given.free();
    }

    /// Ends a mapping. If the device writes to the buffer and `sync` is set, first copies the
    /// bounce pages to the buffer. Returns `false` and does nothing if `iova` is outside the area.
    ///
    /// # Context
    ///
    /// Any.
    ///
    /// # Safety
    ///
    /// `iova` and `len` must be those of a mapping of this area that has not ended, or `iova` must
    /// be outside the area.
    #[inline(never)]
    pub(super) unsafe fn unmap(
        &self,
        iova: u64,
        len: usize,
        dir: Direction,
        sync: bool,
        rcu: rcu::Section<'_>,
    ) -> bool {
        if !self.contains(iova) {
            return false;
        }
        // SAFETY: The requirements are those of this function.
        if unsafe { self.unmap_fast(iova, len, dir, sync, rcu) } {
            return true;
        }
        let (mut index, mut left) = (iova as usize >> PAGE_SHIFT, len);

        while left > 0 {
            let part = left.min(PAGE_SIZE);

            if let Some(slot) = self.any_slot(index, rcu) {
                if sync && dir.device_writes() {
                    // SAFETY: `slot` is the slot at `index`. By the safety requirements, the slot's
                    // part of the buffer has `part` bytes, a page at most.
                    unsafe { self.copy_slot(index, slot, 0..part, false, rcu) }
                }
                slot.clear_buffer();
            }
            index += 1;
            left -= part;
        }

        let first = iova as usize >> PAGE_SHIFT;
        if self.reserve.contains(first) {
            self.reserve.give_back(first);
        } else {
            self.allocator.free(iova, len);
        }
        true
    }

    /// Returns the kernel's page at an address of the area, for the device side to map.
    ///
    /// Returns [`None`] if no mapping has used that page, or if the page was [given
    /// back](give_back::give_back) since then. Also returns [`None`] while user pages are registered, or
    /// are being registered or deregistered, because the process that registers the user pages can
    /// already access them.
    ///
    /// # Context
    ///
    /// Any.
    pub(crate) fn page(&self, iova: u64) -> Option<ARef<Page>> {
        rcu::read(|rcu| {
            let View::Kernel = self.view(rcu) else {
                return None;
            };
            self.any_slot(iova as usize >> PAGE_SHIFT, rcu)?.get_page()
        })
    }

    /// Copies the contents of all slots to which a buffer is mapped.
    ///
    /// If `to_user`, copies from the kernel's pages to the user's, and goes from the first slot to
    /// the last. Otherwise copies from the user's pages to the kernel's, and goes from the last
    /// slot to the first.
    ///
    /// `mode` must be [`mode::MIGRATING`], and an RCU grace period must have passed since `mode`
    /// was set to that value, so that every copy takes the lock of `progress`. `registered` must be
    /// locked.
    fn migrate(&self, umem: &PinnedPages, to_user: bool) {
        for i in 0..self.slots {
            let index = if to_user { i } else { self.slots - 1 - i };
            let mut progress = self.progress.lock();

            rcu::read(|rcu| {
                let Some(slot) = self.any_slot(index, rcu) else {
                    return;
                };
                let kernel = slot.kernel_page();

                if let (true, Some(kernel), Some(umem)) =
                    (slot.has_buffer(), kernel, umem.page(index))
                {
                    // SAFETY: Both are whole pages that stay allocated during the call: `kernel`
                    // because `registered` is locked, so that no page is given back, and `umem`
                    // because the user's pages are pinned.
                    unsafe { copy(umem, page_to_phys(kernel.as_ptr()), 0..PAGE_SIZE, to_user) }
                }
            });

            progress.user_below = if to_user { index + 1 } else { index };
            drop(progress);

            if i % REGION_SLOTS == 0 {
                cond_resched();
            }
        }
    }

    /// Switches the area to the pages of a process (umem), and copies the contents of mapped
    /// buffers from the kernel's pages to the process's pages.
    ///
    /// # Errors
    ///
    /// [`EEXIST`] if pages are registered already, [`EINVAL`] if `pages` and the area differ in
    /// their number of pages, [`ENOMEM`] if there is no memory.
    ///
    /// # Context
    ///
    /// May sleep.
    pub(crate) fn register_umem(&self, pages: PinnedPages) -> Result {
        let mut registered = self.registered.lock();
        if registered.is_some() {
            return Err(EEXIST);
        }
        if pages.len() != self.slots {
            return Err(EINVAL);
        }

        let pages = Arc::new(pages, GFP_KERNEL_ACCOUNT)?;
        self.umem.store(Arc::as_ptr(&pages), Release);
        // INVARIANT: `umem` was set just now. `pages` keeps `umem` valid now, and `registered`
        // keeps `umem` valid once `pages` has moved there.
        self.mode.store(mode::MIGRATING, Release);
        rcu::synchronize();
        self.migrate(&pages, true);
        // INVARIANT: All slots use the user's pages.
        self.mode.store(mode::USER, Release);
        *registered = Some(pages);

        Ok(())
    }

    /// Copies the contents of mapped buffers from the user's pages to the kernel's pages, and
    /// switches the area back to the kernel's pages. Returns the user's pages.
    ///
    /// # Errors
    ///
    /// [`ENOENT`] if no pages are registered.
    ///
    /// # Context
    ///
    /// May sleep.
    pub(crate) fn deregister_umem(&self) -> Result<Arc<PinnedPages>> {
        let mut registered = self.registered.lock();
        let pages = registered.take().ok_or(ENOENT)?;

        self.mode.store(mode::MIGRATING, Release);
        rcu::synchronize();
        self.migrate(&pages, false);
        // INVARIANT: Readers that find `KERNEL` do not use `umem`. `synchronize` below waits for
        // the readers that found an earlier mode.
        self.mode.store(mode::KERNEL, Release);
        rcu::synchronize();

        Ok(pages)
    }

    /// Returns whether any buffer is mapped. Any context.
    pub(super) fn is_in_use(&self) -> bool {
        rcu::read(|rcu| self.used_slots(rcu).any(Slot::has_buffer))
    }

    /// Returns whether user pages are registered. May sleep.
    pub(crate) fn has_umem(&self) -> bool {
        self.registered.lock().is_some()
    }
}

#[pinned_drop]
impl PinnedDrop for Area {
    fn drop(self: Pin<&mut Self>) {
        let count = rcu::read(|rcu| {
            let chunks = self.chunks.iter().filter_map(|chunk| chunk.get(rcu));

            chunks
                .flatten()
                .filter(|slot| slot.kernel_page().is_some())
                .count()
        });

        // The pages are freed with the slots.
        let _ = ON_DEMAND.fetch_sub(count, Relaxed);
    }
}
