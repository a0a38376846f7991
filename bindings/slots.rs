// SPDX-License-Identifier: GPL-2.0

//! Allocators of a bounce area's slots.
//!
//! Most mappings are of a page or less: requests' headers, their status, tables of descriptors, and
//! all data in blocks of 4 KiB. Their slots come from *blocks*, ranges of slots with one bit for each
//! that is free. Each CPU has a block of its own to take slots from, with one atomic operation each;
//! when that has none left, it leaves the block and takes another. Blocks, and the slots of larger
//! mappings, come from an [`iova::Domain`].
//!
//! When that has no room left, blocks all of whose slots are free go back to it. A block is no larger
//! than the largest mapping (see [`Slots::new`]). So where there are multiples of that in the area
//! for all mappings that there are, for one more and for slot 0, that one finds room, once nobody
//! else is allocating.
//!
//! # Context
//!
//! Any, interrupt handlers included; on PREEMPT_RT, where sleeping locks may be taken. Nothing is locked
//! but what the domain locks.

use super::{
    atomic::{
        Inlined,
        InlinedBits, //
    },
    iova,
    page::{
        PAGE_SHIFT,
        PAGE_SIZE, //
    },
    smp::current_cpu, //
};
use kernel::{
    alloc::flags::GFP_KERNEL_ACCOUNT,
    cpu::nr_cpu_ids,
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Relaxed,
            Release, //
        },
        Arc, //
    },
};

/// The most slots that a block can have, as a power of two: one for each bit of half a word.
const MAX_BLOCK_ORDER: u32 = u32::BITS.ilog2();

/// The fewest that are worth it.
const MIN_BLOCK_ORDER: u32 = 3;

/// In a word of [`Slots::blocks`]: the block's free slots, each by its number modulo 32.
const FREE: u64 = u32::MAX as u64;

/// In a word of [`Slots::blocks`]: the block is *claimed*, from the domain.
const CLAIMED: u64 = 1 << 63;

/// In [`Slots::own`]: the CPU has no block.
const NONE: usize = usize::MAX;

/// An allocator of slots.
///
/// # Invariants
///
/// - A block that is claimed was given out by the domain. Only whoever has the block changes that.
/// - A block is had by a CPU, by one call of a method here, or, if its bit in `open` is set, by
///   nobody. Whoever clears that bit has it.
/// - A slot is free only if its block is claimed and the slot is not given out.
#[pin_data]
pub(super) struct Slots {
    #[pin]
    iova: iova::Domain,
    /// For each block, [`FREE`] and [`CLAIMED`].
    blocks: KVVec<Atomic<u64>>,
    /// For each 64 blocks, those claimed ones that nobody has.
    open: KVVec<Atomic<u64>>,
    /// For each CPU, its block.
    own: KVVec<Atomic<usize>>,
    /// How many slots a block has, as a power of two.
    order: u32,
}

/// A slot of a block that is given out, and stays so if this is dropped.
///
/// # Invariants
///
/// `word` is that of the slot's block.
#[must_use]
pub(super) struct BlockSlot<'a> {
    slot: usize,
    word: &'a Atomic<u64>,
}

impl BlockSlot<'_> {
    /// Its number.
    #[inline(always)]
    pub(super) fn index(&self) -> usize {
        self.slot
    }

    /// Its address.
    #[inline(always)]
    pub(super) fn iova(&self) -> u64 {
        (self.slot << PAGE_SHIFT) as u64
    }

    /// Gives it back.
    #[inline(always)]
    pub(super) fn free(self) {
        self.word.add_release(slot_bit(self.slot));
    }
}

/// A slot's bit in its block.
fn slot_bit(slot: usize) -> u64 {
    1_u32.wrapping_shl(slot as u32).into()
}

/// So many words, all 0.
fn zeroes(count: usize) -> Result<KVVec<Atomic<u64>>> {
    let mut words = KVVec::with_capacity(count, GFP_KERNEL_ACCOUNT)?;
    for _ in 0..count {
        words.push(Atomic::new(0), GFP_KERNEL_ACCOUNT)?;
    }

    Ok(words)
}

impl Slots {
    /// Returns an initialiser for an allocator of the slots from 1 to `count - 1`.
    ///
    /// Without a `cache` it never gives anything out. Blocks have at most `1 << largest_order` slots.
    /// May sleep.
    pub(super) fn new(
        cache: Option<&Arc<iova::Cache>>,
        count: usize,
        largest_order: u32,
    ) -> impl PinInit<Self, Error> + use<'_> {
        let order = largest_order.min(MAX_BLOCK_ORDER);
        let whole = if cache.is_some() && order >= MIN_BLOCK_ORDER {
            count >> order
        } else {
            0
        };

        try_pin_init!(Self {
            iova <- iova::Domain::new(cache, PAGE_SIZE, (count << PAGE_SHIFT) - 1),
            blocks: zeroes(whole)?,
            open: zeroes(whole.div_ceil(64))?,
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

    /// The block that a slot would be of.
    fn block(&self, slot: usize) -> usize {
        // `order` is never as large as the number of a word's bits.
        slot.wrapping_shr(self.order)
    }

    /// The first slot of a block.
    fn first(&self, block: usize) -> usize {
        block.wrapping_shl(self.order)
    }

    /// The bits of all slots of a block.
    fn all(&self, block: usize) -> u64 {
        let count = 1 << self.order;

        (FREE >> (u32::BITS - count)) << (self.first(block) % 32)
    }

    /// Allocates slots for `size` bytes, aligned to the next power of two.
    ///
    /// Returns the address of the first, or [`None`] if there is no room.
    pub(super) fn alloc(&self, size: usize) -> Option<u64> {
        if (1..=PAGE_SIZE).contains(&size) {
            if let Some(slot) = self.alloc_one() {
                return Some(slot.iova());
            }
        }

        self.alloc_from_domain(size)
    }

    /// Allocates a slot for a page at most, if this CPU has a block with a free one.
    #[inline(always)]
    pub(super) fn alloc_own(&self, size: usize) -> Option<BlockSlot<'_>> {
        if !(1..=PAGE_SIZE).contains(&size) {
            return None;
        }

        self.take(self.own.get(current_cpu())?.read())
    }

    /// Allocates slots from the domain. If it has no room, free blocks go back there first.
    #[inline(never)]
    fn alloc_from_domain(&self, size: usize) -> Option<u64> {
        if size == 0 {
            return None;
        }

        self.iova.alloc_quick(size).or_else(|| {
            self.reclaim();

            // What was free in the blocks of other CPUs can be found now.
            let one = (size <= PAGE_SIZE).then(|| self.alloc_one()).flatten();

            match one {
                Some(slot) => Some(slot.iova()),
                None => self.iova.alloc(size),
            }
        })
    }

    /// Allocates a slot from a block.
    #[inline]
    fn alloc_one(&self) -> Option<BlockSlot<'_>> {
        let own = self.own.get(current_cpu())?;

        self.take(own.read()).or_else(|| self.alloc_elsewhere(own))
    }

    /// Allocates a slot of a block. [`None`] if it has none that is free, or if there is no such
    /// block.
    #[inline(always)]
    fn take(&self, block: usize) -> Option<BlockSlot<'_>> {
        let word = self.blocks.get(block)?;
        let mut bits = word.read();

        while bits & FREE != 0 {
            match word.replace_acquire(bits, bits & (bits - 1)) {
                Ok(_) => {
                    let slot = self.first(block) & !31 | bits.trailing_zeros() as usize;

                    // INVARIANT: It is a slot of `block`.
                    return Some(BlockSlot { slot, word });
                }
                Err(now) => bits = now,
            }
        }

        None
    }

    /// Allocates a slot of a block that nobody has, or of a new one, and makes it this CPU's.
    #[cold]
    #[inline(never)]
    fn alloc_elsewhere(&self, own: &Atomic<usize>) -> Option<BlockSlot<'_>> {
        // Requests mostly end in the order in which they began: what has been left for longest has
        // the most free slots.
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

        // The CPU may have got another one meanwhile, or it may be another CPU's by now. Whoever
        // finds the block there and leaves it does so after it was entered: `leave` is a release.
        self.leave(own.xchg(block, Relaxed));

        Some(slot)
    }

    /// The blocks that nobody has, at about this time, from the one behind `last` on: first the 64 of
    /// its word, then those of the other words.
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

    /// Gets a block that nobody has. Returns whether that is so.
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

    /// Gives up a block that we have, if it is one.
    fn leave(&self, block: usize) {
        if block == NONE {
            return;
        }
        if let Some(open) = self.open.get(block / 64) {
            // INVARIANT: The block was not open, as we had it.
            let _ = open.fetch_add(1 << (block % 64), Release);
        }
    }

    /// Claims a block, which we have then. Returns its index and a slot of it.
    fn claim(&self) -> Option<(usize, BlockSlot<'_>)> {
        let size = PAGE_SIZE << self.order;
        let iova = self.iova.alloc_quick(size)?;
        let first = iova as usize >> PAGE_SHIFT;
        let block = self.block(first);

        let Some(word) = self.blocks.get(block) else {
            // There is none behind the last whole one, so the domain gives none out.
            self.iova.free(iova, size);
            return None;
        };

        // INVARIANT: The domain has given it out to us; its first slot is given out just now.
        word.store(CLAIMED | self.all(block) & !slot_bit(first), Release);

        // INVARIANT: It is the first slot of the block.
        Some((block, BlockSlot { slot: first, word }))
    }

    /// Gives blocks back to the domain all of whose slots are free. Every CPU loses its block.
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
            // INVARIANT: We have the block, and it goes back to the domain.
            if word.cmpxchg(all, 0, Acquire).is_ok() {
                let first = self.first(block);
                self.iova
                    .free((first << PAGE_SHIFT) as u64, PAGE_SIZE << self.order);
            } else {
                self.leave(block);
            }
        }
    }

    /// Frees what [`alloc`](Self::alloc) returned for the same size.
    ///
    /// If it did not, slots may be given out twice: whoever owns the allocator must not rely on them
    /// being unique for memory safety unless nobody else can call this.
    pub(super) fn free(&self, iova: u64, size: usize) {
        match self.block_slot(iova, size) {
            Some(slot) => slot.free(),
            None => self.iova.free(iova, size),
        }
    }

    /// What [`alloc`](Self::alloc) returned for the same size, if it is a slot of a block.
    ///
    /// If it did not, what holds for [`free`](Self::free) does for this.
    #[inline(always)]
    pub(super) fn block_slot(&self, iova: u64, size: usize) -> Option<BlockSlot<'_>> {
        let slot = iova as usize >> PAGE_SHIFT;
        let word = self.blocks.get(self.block(slot))?;

        // As long as the slot is given out, its block stays claimed, or stays not.
        if size <= PAGE_SIZE && word.read() & CLAIMED != 0 {
            // INVARIANT: The word was found by the slot.
            Some(BlockSlot { slot, word })
        } else {
            None
        }
    }
}

#[kunit_tests(vduse_rs_slots)]
mod tests {
    use super::*;
    use kernel::alloc::flags::GFP_KERNEL;

    /// Some slots, and which of them are given out.
    struct Area {
        slots: Pin<KBox<Slots>>,
        given: KVVec<bool>,
        order: u32,
    }

    impl Area {
        fn new(count: usize, order: u32) -> Result<Self> {
            let cache = iova::Cache::get()?;
            let slots = KBox::pin_init(Slots::new(Some(&cache), count, order), GFP_KERNEL)?;
            let given = KVVec::from_elem(false, count, GFP_KERNEL)?;

            Ok(Self {
                slots,
                given,
                order,
            })
        }

        /// Allocates so many slots. [`None`] if there is no room; [`EINVAL`] if they are not to be
        /// given out, are not aligned, or are given out already.
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

        /// Allocates single slots until there are none. Returns how many there were.
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

        /// Allocates mappings of the largest size until there is no room, and frees them.
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
        // With blocks, with a rest that is none, and without blocks.
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
        // With blocks as long as that, and with shorter ones.
        for (count, order) in [(1024, 5), (2048, 6), (4096, 7)] {
            let mut area = Area::new(count, order)?;
            let room = (count >> order) - 1;

            assert_eq!(area.largest()?, room);
            area.fill()?;
            area.free_all()?;
            assert_eq!(area.largest()?, room);

            // A slot that is given out takes the room of one of them.
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
            // Numerical Recipes' generator; its upper bits are good enough.
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let random = (state >> 8) as usize;
            // Mostly single slots, as of requests.
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
        let slots = KBox::pin_init(Slots::new(None, 1024, 5), GFP_KERNEL)?;

        assert_eq!(slots.alloc(PAGE_SIZE), None);
        assert_eq!(slots.alloc(32 * PAGE_SIZE), None);

        Ok(())
    }
}
