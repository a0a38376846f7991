// SPDX-License-Identifier: GPL-2.0

//! The allocator of a bounce area's slots. A slot is a page-sized range of I/O virtual addresses.
//!
//! Most mappings need one page or less: request headers, request status, descriptor tables, and all
//! data in units of 4 KiB. The slots for such mappings come from *blocks*. A block is a range of
//! slots, with one bit for each slot that says whether the slot is free. Each CPU owns one block,
//! and takes each slot from it with one atomic operation. When that block has no free slot left,
//! the CPU releases the block and takes another one. Blocks, and the slots of larger mappings, come
//! from an [`iova::Domain`].
//!
//! When the domain has no room left, the allocator returns to the domain each block in which all
//! slots are free. A block is no larger than the largest mapping (see [`Slots::new`]). So there is
//! always room for a new mapping beside `n` existing mappings if no other allocation is in progress
//! and the area has at least `n + 2` aligned ranges of the largest mapping's size. Of these ranges,
//! one is lost to slot 0, and one is for the new mapping.
//!
//! # Context
//!
//! Any, including interrupt handlers; on PREEMPT_RT, any in which sleeping locks may be taken. The
//! allocator takes no locks except those of the domain.

use super::{
    fast::{
        current_cpu,
        Inlined,
        InlinedBits, //
    },
    iova,
    page::{
        PAGE_SHIFT,
        PAGE_SIZE, //
    }, //
};
use core::ops::Range;
use kernel::{
    alloc::flags::GFP_KERNEL_ACCOUNT,
    cpu::nr_cpu_ids,
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Full,
            Relaxed,
            Release, //
        },
        Arc, //
    },
};

/// Binary logarithm of the maximum number of slots of a block. The lower half of a 64-bit word has
/// one bit for each slot.
const MAX_BLOCK_ORDER: u32 = u32::BITS.ilog2();

/// Binary logarithm of the minimum number of slots for which a block is worthwhile.
const MIN_BLOCK_ORDER: u32 = 3;

/// The bits of a word of [`Slots::blocks`] that mark the free slots of the block. The bit of a slot
/// is at the position of the slot's number modulo 32, and is set while the slot is free.
const FREE: u64 = u32::MAX as u64;

/// The bit of a word of [`Slots::blocks`] that is set while the block is *claimed*, which means
/// that the block is allocated from the domain.
const CLAIMED: u64 = 1 << 63;

/// The number of slots of a region, which can be [closed](Slots::close).
pub(super) const REGION_SLOTS: usize = 256;

/// The value in [`Slots::own`] for a CPU that owns no block.
const NONE: usize = usize::MAX;

/// An allocator of slots.
///
/// # Invariants
///
/// - A claimed block is allocated from the domain. Only the block's owner may return it to the
///   domain.
/// - Each claimed block is owned by exactly one CPU or one call in progress, unless its `open` bit
///   is set; atomically clearing that bit takes ownership.
/// - A slot is marked as free only if its block is claimed and the slot is not allocated.
/// - A bit of `closed` is set only while there is a [`Closed`] for that region.
#[pin_data]
pub(super) struct Slots {
    #[pin]
    iova: iova::Domain,
    /// For each block, a word with the [`FREE`] bits and the [`CLAIMED`] bit.
    blocks: KVVec<Atomic<u64>>,
    /// For each block, one bit, in words of 64 bits. The bit is set if the block is claimed, and no
    /// CPU and no call in progress owns the block.
    open: KVVec<Atomic<u64>>,
    /// For each region, one bit, in words of 64 bits. The bit is set while the region is closed.
    closed: KVVec<Atomic<u64>>,
    /// For each CPU, the index of the block that it owns, or [`NONE`].
    own: KVVec<Atomic<usize>>,
    /// Binary logarithm of the number of slots of a block.
    order: u32,
}

/// A slot that was allocated from a block. Dropping this value does not free the slot.
///
/// # Invariants
///
/// `word` is the word of the slot's block.
#[must_use]
pub(super) struct BlockSlot<'a> {
    slot: usize,
    word: &'a Atomic<u64>,
}

impl BlockSlot<'_> {
    /// Returns the slot's number.
    #[inline(always)]
    pub(super) fn index(&self) -> usize {
        self.slot
    }

    /// Returns the slot's I/O virtual address.
    #[inline(always)]
    pub(super) fn iova(&self) -> u64 {
        (self.slot << PAGE_SHIFT) as u64
    }

    /// Frees the slot.
    #[inline(always)]
    pub(super) fn free(self) {
        self.word.add_release(slot_bit(self.slot));
    }
}

/// Returns a slot's bit in the word of its block.
fn slot_bit(slot: usize) -> u64 {
    1_u32.wrapping_shl(slot as u32).into()
}

/// Allocates `count` words, all 0.
fn zeroes(count: usize) -> Result<KVVec<Atomic<u64>>> {
    let mut words = KVVec::with_capacity(count, GFP_KERNEL_ACCOUNT)?;
    for _ in 0..count {
        words.push(Atomic::new(0), GFP_KERNEL_ACCOUNT)?;
    }

    Ok(words)
}

impl Slots {
    /// Returns an initialiser for an allocator of the given slots. Slot 0 cannot be one of them.
    ///
    /// Without a `cache`, all allocations fail. Blocks have at most `1 << largest_order` slots.
    ///
    /// # Context
    ///
    /// May sleep.
    pub(super) fn new(
        cache: Option<&Arc<iova::Cache>>,
        slots: Range<usize>,
        largest_order: u32,
    ) -> impl PinInit<Self, Error> + use<'_> {
        let order = largest_order.min(MAX_BLOCK_ORDER);
        let whole = if cache.is_some() && order >= MIN_BLOCK_ORDER {
            slots.end >> order
        } else {
            0
        };

        try_pin_init!(Self {
            iova <- iova::Domain::new(
                cache,
                slots.start << PAGE_SHIFT,
                (slots.end << PAGE_SHIFT) - 1,
            ),
            blocks: zeroes(whole)?,
            open: zeroes(whole.div_ceil(64))?,
            closed: {
                let regions = if cache.is_some() {
                    slots.end.div_ceil(REGION_SLOTS)
                } else {
                    0
                };
                zeroes(regions.div_ceil(64))?
            },
            own: {
                let cpus = if whole == 0 { 0 } else { nr_cpu_ids() as usize };
                let mut own = KVVec::with_capacity(cpus, GFP_KERNEL_ACCOUNT)?;
                for _ in 0..cpus {
                    own.push(Atomic::new(NONE), GFP_KERNEL_ACCOUNT)?;
                }
                own
            },
            order,
        })
    }

    /// Returns the index of the block that contains a slot. There may be no block with that index.
    fn block(&self, slot: usize) -> usize {
        // `order` is always less than the number of bits in a word, so the shift does not wrap.
        slot.wrapping_shr(self.order)
    }

    /// Returns the first slot of a block.
    fn first(&self, block: usize) -> usize {
        block.wrapping_shl(self.order)
    }

    /// Returns the bits of all slots of a block.
    fn all(&self, block: usize) -> u64 {
        let count = 1 << self.order;

        (FREE >> (u32::BITS - count)) << (self.first(block) % 32)
    }

    /// Allocates slots for `size` bytes, aligned to `size` rounded up to a power of two.
    ///
    /// Returns the address of the first slot, or [`None`] if there is no room.
    pub(super) fn alloc(&self, size: usize) -> Option<u64> {
        if (1..=PAGE_SIZE).contains(&size) {
            if let Some(slot) = self.alloc_one() {
                return Some(slot.iova());
            }
        }

        self.alloc_from_domain(size)
    }

    /// Allocates a slot from this CPU's own block. Returns [`None`] if `size` is 0 or more than a
    /// page, or if the CPU has no block with a free slot.
    #[inline(always)]
    pub(super) fn alloc_own(&self, size: usize) -> Option<BlockSlot<'_>> {
        if !(1..=PAGE_SIZE).contains(&size) {
            return None;
        }

        self.take(self.own.get(current_cpu())?.read())
    }

    /// Allocates slots from the domain. If the domain has no room, the blocks in which all slots
    /// are free go back to the domain, and the allocation is tried again.
    #[inline(never)]
    fn alloc_from_domain(&self, size: usize) -> Option<u64> {
        if size == 0 {
            return None;
        }

        self.alloc_open(size, iova::Flush::No).or_else(|| {
            self.reclaim();

            // `reclaim` has taken the blocks away from other CPUs, so free slots of these blocks
            // can be found now.
            let one = (size <= PAGE_SIZE).then(|| self.alloc_one()).flatten();

            match one {
                Some(slot) => Some(slot.iova()),
                None => self.alloc_open(size, iova::Flush::Yes),
            }
        })
    }

    /// Allocates slots from the domain, except from closed regions.
    fn alloc_open(&self, size: usize, flush: iova::Flush) -> Option<u64> {
        let iova = self.iova.alloc(size, flush)?;

        if self.is_closed(iova, size) {
            self.alloc_around(iova, size)
        } else {
            Some(iova)
        }
    }

    /// Allocates slots from the domain, although the domain has just returned `iova`, which is in a
    /// closed region. Frees the slots at `iova`.
    ///
    /// What the domain returns is kept until an open region is found, as the domain would otherwise
    /// return the same again.
    #[cold]
    #[inline(never)]
    fn alloc_around(&self, iova: u64, size: usize) -> Option<u64> {
        let mut kept = [iova; 64];
        let mut count = 1;

        let found = loop {
            let Some(place) = kept.get_mut(count) else {
                break None;
            };
            match self.iova.alloc(size, iova::Flush::No) {
                Some(iova) if self.is_closed(iova, size) => *place = iova,
                found => break found,
            }
            count += 1;
        };

        for &iova in kept.iter().take(count) {
            self.iova.free(iova, size);
        }
        found
    }

    /// Returns whether some of the slots at `iova` are in a closed region.
    fn is_closed(&self, iova: u64, size: usize) -> bool {
        let first = iova as usize >> PAGE_SHIFT;
        let last = first + (size.max(1) - 1 >> PAGE_SHIFT);

        (first / REGION_SLOTS..=last / REGION_SLOTS).any(|region| {
            let word = self.closed.get(region / 64);

            word.is_some_and(|word| word.read() & 1 << (region % 64) != 0)
        })
    }

    /// Returns half the number of regions, not counting regions without blocks.
    pub(super) fn half(&self) -> usize {
        self.blocks.len() / self.block(REGION_SLOTS).max(1) / 2
    }

    /// Closes a region, if no slot of its blocks is allocated. Until the return value is dropped,
    /// no slot of the region can be allocated, except by calls that are in progress. Returns
    /// [`None`] if that is impossible.
    ///
    /// While a region is closed, the domain may return addresses in it, and an allocation may fail
    /// although there is room elsewhere. If `only_claimed`, this function closes only regions that
    /// consist of claimed blocks, whose addresses the domain does not return.
    ///
    /// # Context
    ///
    /// Any.
    pub(super) fn close(&self, region: usize, only_claimed: bool) -> Option<Closed<'_>> {
        let word = self.closed.get(region / 64)?;
        let bit = 1 << (region % 64);
        let mut bits = word.read();

        loop {
            if bits & bit != 0 {
                return None;
            }
            match word.cmpxchg(bits, bits | bit, Full) {
                Ok(_) => break,
                Err(now) => bits = now,
            }
        }
        // INVARIANT: The region's bit was set just now, and no slot has been taken so far.
        let mut closed = Closed {
            slots: self,
            region,
            taken: 0,
        };

        for (bit, block) in (0..).zip(self.blocks_of(region)) {
            let Some(word) = self.blocks.get(block) else {
                break;
            };
            let all = self.all(block);

            if word.load(Relaxed) & CLAIMED == 0 {
                if only_claimed {
                    return None;
                }
                continue;
            }
            if word.cmpxchg(CLAIMED | all, CLAIMED, Acquire).is_err() {
                return None;
            }
            // INVARIANT: All slots of this block were free, and have been allocated just now.
            closed.taken |= 1_u32.wrapping_shl(bit);
        }

        Some(closed)
    }

    /// Returns the blocks of a region.
    fn blocks_of(&self, region: usize) -> Range<usize> {
        let count = self.blocks.len();
        let first_from = |slot| self.block(slot).min(count);

        first_from(region * REGION_SLOTS)..first_from((region + 1) * REGION_SLOTS)
    }

    /// Allocates a slot from this CPU's block, or from another block, which this CPU then owns.
    #[inline]
    fn alloc_one(&self) -> Option<BlockSlot<'_>> {
        let own = self.own.get(current_cpu())?;

        self.take(own.read()).or_else(|| self.alloc_elsewhere(own))
    }

    /// Allocates a slot of a block. Returns [`None`] if the block does not exist or has no free
    /// slot.
    #[inline(always)]
    fn take(&self, block: usize) -> Option<BlockSlot<'_>> {
        let word = self.blocks.get(block)?;
        let mut bits = word.read();

        while bits & FREE != 0 {
            match word.replace_acquire(bits, bits & (bits - 1)) {
                Ok(_) => {
                    let slot = self.first(block) & !31 | bits.trailing_zeros() as usize;

                    // INVARIANT: `slot` is a slot of `block`, and `word` is that block's word.
                    return Some(BlockSlot { slot, word });
                }
                Err(now) => bits = now,
            }
        }

        None
    }

    /// Allocates a slot of a block without an owner, or of a newly claimed block. The CPU whose
    /// entry in `self.own` is `own` then owns the block.
    #[cold]
    #[inline(never)]
    fn alloc_elsewhere(&self, own: &Atomic<usize>) -> Option<BlockSlot<'_>> {
        // Requests mostly end in the order in which they began, so the block that was released the
        // longest time ago has the most free slots.
        let (block, slot) = self
            .open_blocks(own.read())
            .find_map(|block| {
                let has_free = |word: &Atomic<u64>| word.read() & FREE != 0;
                if !self.blocks.get(block).is_some_and(has_free) || !self.enter(block) {
                    return None;
                }

                let slot = self.take(block);
                if slot.is_none() {
                    self.leave(block);
                }
                Some((block, slot?))
            })
            .or_else(|| self.claim())?;

        // By now, `own` may hold another block, and this task may have moved to another CPU.
        // `Relaxed` is enough: if another task finds `block` in `own` and releases the block, that
        // task's `leave` (a release) sets the block's bit in `open` only after this task's `enter`
        // (an acquire) has cleared the bit.
        self.leave(own.xchg(block, Relaxed));

        Some(slot)
    }

    /// Returns the blocks without an owner. Begins with the blocks whose bits are in the same word
    /// as the bit of `last`: first those after `last`, then those before it. Continues with the
    /// blocks of the other words. Other CPUs may take or release blocks at any time.
    fn open_blocks(&self, last: usize) -> impl Iterator<Item = usize> + use<'_> {
        let words = self.open.len();
        let shift = last as u32 % 64 + 1;

        (0..words).flat_map(move |i| {
            let index = (last / 64 + i) % words;
            let bits = self.open.get(index).map_or(0, Inlined::read);
            let mut bits = bits.rotate_right(shift);

            core::iter::from_fn(move || {
                let bit = (bits != 0).then(|| bits.trailing_zeros())?;

                bits &= bits - 1;
                Some(index * 64 + ((bit + shift) % 64) as usize)
            })
        })
    }

    /// Takes ownership of a block that has no owner. Returns whether this succeeded.
    fn enter(&self, block: usize) -> bool {
        let Some(open) = self.open.get(block / 64) else {
            return false;
        };
        let bit = 1 << (block % 64);
        let mut bits = open.read();

        while bits & bit != 0 {
            match open.cmpxchg(bits, bits & !bit, Acquire) {
                Ok(_) => return true,
                Err(now) => bits = now,
            }
        }

        false
    }

    /// Releases a block that the caller owns. Does nothing for [`NONE`].
    fn leave(&self, block: usize) {
        if block == NONE {
            return;
        }
        if let Some(open) = self.open.get(block / 64) {
            // INVARIANT: The caller owns the block, so the block's bit in `open` is clear. The
            // addition sets that bit.
            let _ = open.fetch_add(1 << (block % 64), Release);
        }
    }

    /// Claims a block from the domain. The caller then owns the block. Returns the block's index,
    /// and the block's first slot, which is allocated.
    fn claim(&self) -> Option<(usize, BlockSlot<'_>)> {
        let size = PAGE_SIZE << self.order;
        let iova = self.alloc_open(size, iova::Flush::No)?;
        let first = iova as usize >> PAGE_SHIFT;
        let block = self.block(first);

        let Some(word) = self.blocks.get(block) else {
            // Unreachable: an aligned range of a block's size that lies in the domain is a whole
            // block.
            self.iova.free(iova, size);
            return None;
        };

        // INVARIANT: The domain allocated the block for this call, which owns the block. The
        // block's first slot is allocated here, so the slot's bit is clear.
        word.store(CLAIMED | self.all(block) & !slot_bit(first), Release);

        // INVARIANT: `first` is the first slot of the block, and `word` is the block's word.
        Some((block, BlockSlot { slot: first, word }))
    }

    /// Takes the blocks away from all CPUs, then returns to the domain each block in which all
    /// slots are free.
    #[cold]
    #[inline(never)]
    fn reclaim(&self) {
        for own in &self.own {
            self.leave(own.xchg(NONE, Relaxed));
        }

        for block in self.open_blocks(NONE) {
            let all = CLAIMED | self.all(block);
            let Some(word) = self.blocks.get(block) else {
                continue;
            };

            if word.read() != all || !self.enter(block) {
                continue;
            }
            // INVARIANT: This call owns the block. If all slots are still free, this call clears
            // the `CLAIMED` bit and returns the block to the domain.
            if word.cmpxchg(all, 0, Acquire).is_ok() {
                let first = self.first(block);
                self.iova
                    .free((first << PAGE_SHIFT) as u64, PAGE_SIZE << self.order);
            } else {
                self.leave(block);
            }
        }
    }

    /// Frees the slots at `iova`, which [`alloc`](Self::alloc) returned for `size` bytes.
    ///
    /// If `iova` and `size` do not match such an allocation, the allocator may allocate the same
    /// slot twice. The allocator's owner may rely on unique slots for memory safety only if no
    /// other code can call this function.
    pub(super) fn free(&self, iova: u64, size: usize) {
        match self.block_slot(iova, size) {
            Some(slot) => slot.free(),
            None => self.iova.free(iova, size),
        }
    }

    /// Returns the slot at `iova`, which [`alloc`](Self::alloc) returned for `size` bytes. Returns
    /// [`None`] if the slot does not belong to a block.
    ///
    /// If `iova` and `size` do not match such an allocation, freeing the returned slot may cause
    /// the same slot to be allocated twice, as for [`free`](Self::free).
    #[inline(always)]
    pub(super) fn block_slot(&self, iova: u64, size: usize) -> Option<BlockSlot<'_>> {
        let slot = iova as usize >> PAGE_SHIFT;
        let word = self.blocks.get(self.block(slot))?;

        // While a slot is allocated, the `CLAIMED` bit of its block does not change.
        if size <= PAGE_SIZE && word.read() & CLAIMED != 0 {
            // INVARIANT: `word` is the word of the block that contains `slot`.
            Some(BlockSlot { slot, word })
        } else {
            None
        }
    }
}

/// A closed region. Dropping this value opens the region again.
///
/// # Invariants
///
/// The slots of the blocks in `taken` are allocated, and belong to this value. `taken` has one bit
/// for each block of the region.
pub(super) struct Closed<'a> {
    slots: &'a Slots,
    region: usize,
    taken: u32,
}

// A region has at most as many blocks as `taken` has bits.
const _: () = assert!(REGION_SLOTS >> MIN_BLOCK_ORDER <= u32::BITS as usize);

impl Closed<'_> {
    /// Returns the region's number.
    pub(super) fn region(&self) -> usize {
        self.region
    }

    /// Returns the region's blocks, each with whether its slots belong to this value.
    fn blocks(&self) -> impl Iterator<Item = (usize, bool)> + use<> {
        let taken = self.taken;

        (0..)
            .zip(self.slots.blocks_of(self.region))
            .map(move |(bit, block)| (block, taken & 1_u32.wrapping_shl(bit) != 0))
    }

    /// Returns whether no CPU can allocate a slot of the region any more. The caller must have
    /// waited for an RCU grace period since the region was closed, and all allocations must be made
    /// in read-side critical sections.
    pub(super) fn is_quiet(&self) -> bool {
        let is_claimed = |block: usize| {
            let word = self.slots.blocks.get(block);

            word.is_some_and(|word| word.load(Relaxed) & CLAIMED != 0)
        };

        // A call that was in progress may have claimed a block.
        self.blocks()
            .all(|(block, taken)| taken || !is_claimed(block))
    }
}

impl Drop for Closed<'_> {
    fn drop(&mut self) {
        for (block, taken) in self.blocks() {
            if let (true, Some(word)) = (taken, self.slots.blocks.get(block)) {
                word.add_release(self.slots.all(block));
            }
        }
        if let Some(word) = self.slots.closed.get(self.region / 64) {
            let bit = 1_u64 << (self.region % 64);

            let _ = word.fetch_add(bit.wrapping_neg(), Full);
        }
    }
}

#[kunit_tests(vduse_rs_slots)]
mod tests {
    use super::*;
    use kernel::alloc::flags::GFP_KERNEL;

    /// An allocator, and a record of the slots that it has allocated.
    struct Area {
        slots: Pin<KBox<Slots>>,
        given: KVVec<bool>,
        order: u32,
    }

    impl Area {
        fn new(count: usize, order: u32) -> Result<Self> {
            let cache = iova::Cache::get()?;
            let slots = KBox::pin_init(Slots::new(Some(&cache), 1..count, order), GFP_KERNEL)?;
            let given = KVVec::from_elem(false, count, GFP_KERNEL)?;

            Ok(Self {
                slots,
                given,
                order,
            })
        }

        /// Allocates `count` slots. Returns [`None`] if there is no room, or [`EINVAL`] if the
        /// allocator returned slot 0, slots that are not aligned, or slots that were allocated
        /// already.
        fn alloc(&mut self, count: usize) -> Result<Option<usize>> {
            let Some(iova) = self.slots.alloc(count << PAGE_SHIFT) else {
                return Ok(None);
            };
            let first = iova as usize >> PAGE_SHIFT;

            if first == 0 || first % count.next_power_of_two() != 0 || iova % PAGE_SIZE as u64 != 0
            {
                return Err(EINVAL);
            }
            for slot in first..first + count {
                let given = self.given.get_mut(slot).ok_or(EINVAL)?;
                if core::mem::replace(given, true) {
                    return Err(EINVAL);
                }
            }

            Ok(Some(first))
        }

        fn free(&mut self, first: usize, count: usize) -> Result {
            for slot in first..first + count {
                *self.given.get_mut(slot).ok_or(EINVAL)? = false;
            }
            self.slots
                .free((first << PAGE_SHIFT) as u64, count << PAGE_SHIFT);

            Ok(())
        }

        /// Allocates single slots until there is no room. Returns the number of allocated slots.
        fn fill(&mut self) -> Result<usize> {
            let mut count = 0;
            while self.alloc(1)?.is_some() {
                count += 1;
            }

            Ok(count)
        }

        fn free_all(&mut self) -> Result {
            for slot in 0..self.given.len() {
                if self.given.get(slot).is_some_and(|&given| given) {
                    self.free(slot, 1)?;
                }
            }

            Ok(())
        }

        /// Allocates mappings of the largest size until there is no room, then frees them. Returns
        /// the number of these mappings.
        fn largest(&mut self) -> Result<usize> {
            let size = 1 << self.order;
            let mut firsts = KVVec::new();
            while let Some(first) = self.alloc(size)? {
                firsts.push(first, GFP_KERNEL)?;
            }
            for &first in &firsts {
                self.free(first, size)?;
            }

            Ok(firsts.len())
        }
    }

    #[test]
    fn all_slots_but_the_first_are_given_out_once() -> Result {
        // Some of these areas consist of whole blocks, some have a remainder that is smaller than a
        // block, and the last area has no blocks.
        for (count, order) in [(1024, 5), (1000, 6), (512, 3), (600, 4), (64, 0)] {
            let mut area = Area::new(count, order)?;
            for _ in 0..3 {
                assert_eq!(area.fill()?, count - 1);
                area.free_all()?;
            }
        }

        Ok(())
    }

    #[test]
    fn slots_before_the_first_are_not_given_out() -> Result {
        let cache = iova::Cache::get()?;
        for first in [1, 31, 32, 54] {
            let slots = KBox::pin_init(Slots::new(Some(&cache), first..1024, 5), GFP_KERNEL)?;
            let mut count = 0;
            while let Some(iova) = slots.alloc(PAGE_SIZE) {
                assert!(iova as usize >> PAGE_SHIFT >= first);
                count += 1;
            }
            assert_eq!(count, 1024 - first);
        }

        Ok(())
    }

    #[test]
    fn a_closed_region_gives_out_nothing() -> Result {
        // The area without blocks comes last.
        for order in [5, 3, 0] {
            let cache = iova::Cache::get()?;
            let count = 4 * REGION_SLOTS;
            let slots = KBox::pin_init(Slots::new(Some(&cache), 1..count, order), GFP_KERNEL)?;
            // Claims blocks of the region, and frees their slots.
            let mut firsts = KVVec::new();
            while let Some(iova) = slots.alloc(PAGE_SIZE) {
                firsts.push(iova, GFP_KERNEL)?;
            }
            for &iova in &firsts {
                slots.free(iova, PAGE_SIZE);
            }

            let held = slots.alloc(PAGE_SIZE).ok_or(ENOMEM)?;
            let used = held as usize >> PAGE_SHIFT >> REGION_SLOTS.ilog2();
            let mut closed = KVVec::new();
            for region in 0..4 {
                let is_closed = slots.close(region, false);
                if order > 0 {
                    assert_eq!(is_closed.is_none(), region == used);
                }
                if let (Some(is_closed), true) = (is_closed, region != used) {
                    assert!(is_closed.is_quiet());
                    assert!(slots.close(region, false).is_none());
                    closed.push(is_closed, GFP_KERNEL)?;
                }
            }
            assert_eq!(closed.len(), 3);

            let mut rest = KVVec::new();
            while let Some(iova) = slots.alloc(PAGE_SIZE) {
                assert_eq!(iova as usize >> PAGE_SHIFT >> REGION_SLOTS.ilog2(), used);
                rest.push(iova, GFP_KERNEL)?;
            }
            if order > 0 {
                let all = REGION_SLOTS - 1 - usize::from(used == 0);
                assert_eq!(rest.len(), all);
            }
            for &iova in &rest {
                slots.free(iova, PAGE_SIZE);
            }
            slots.free(held, PAGE_SIZE);

            drop(closed);
            let mut count = 0;
            while slots.alloc(PAGE_SIZE).is_some() {
                count += 1;
            }
            assert_eq!(count, 4 * REGION_SLOTS - 1);
        }

        Ok(())
    }

    #[test]
    fn a_slot_that_is_freed_is_found_when_there_is_no_other() -> Result {
        let mut area = Area::new(1024, 5)?;
        area.fill()?;

        for slot in [1, 31, 32, 500, 1023] {
            area.free(slot, 1)?;
            assert_eq!(area.alloc(1)?, Some(slot));
            assert_eq!(area.alloc(1)?, None);
        }

        Ok(())
    }

    #[test]
    fn the_largest_mappings_find_room_after_single_slots() -> Result {
        // In the first area, blocks are as large as the largest mapping. In the other areas, blocks
        // are smaller.
        for (count, order) in [(1024, 5), (2048, 6), (4096, 7)] {
            let mut area = Area::new(count, order)?;
            let room = (count >> order) - 1;

            assert_eq!(area.largest()?, room);
            area.fill()?;
            area.free_all()?;
            assert_eq!(area.largest()?, room);

            // One allocated slot takes away the room for at most one mapping of the largest size.
            let slot = area.alloc(1)?.ok_or(ENOMEM)?;
            assert!(area.largest()? >= room - 1);
            area.free(slot, 1)?;
            assert_eq!(area.largest()?, room);
        }

        Ok(())
    }

    #[test]
    fn sizes_that_come_and_go_do_not_overlap() -> Result {
        let mut area = Area::new(2048, 6)?;
        let mut held = KVVec::new();
        let mut state = 1u32;

        for _ in 0..20_000 {
            // The random number generator of the book "Numerical Recipes". The upper bits of a
            // number are random enough.
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let random = (state >> 8) as usize;
            // Most mappings take one slot, like most mappings of real requests.
            let size = if random & 3 != 0 { 1 } else { random % 64 + 1 };

            match area.alloc(size)? {
                Some(first) if held.len() < 256 => held.push((first, size), GFP_KERNEL)?,
                Some(first) => area.free(first, size)?,
                None => {}
            }
            if random & 4 != 0 || held.len() == 256 {
                if let Ok((first, size)) = held.remove((random >> 3) % held.len().max(1)) {
                    area.free(first, size)?;
                }
            }
        }
        for &(first, size) in &held {
            area.free(first, size)?;
        }
        assert_eq!(area.fill()?, 2047);

        Ok(())
    }

    #[test]
    fn without_a_cache_nothing_is_given_out() -> Result {
        let slots = KBox::pin_init(Slots::new(None, 1..1024, 5), GFP_KERNEL)?;

        assert_eq!(slots.alloc(PAGE_SIZE), None);
        assert_eq!(slots.alloc(32 * PAGE_SIZE), None);

        Ok(())
    }
}
