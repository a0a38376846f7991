// SPDX-License-Identifier: GPL-2.0

//! The reserve of a bounce area: slots whose pages are always allocated, and which virtqueues use
//! in turns while memory is short.
//!
//! Each virtqueue adds one request at a time, so a virtqueue has at most one request that is mapped
//! in part. The reserve is used by one virtqueue at a time, its *holder*. If the holder's request
//! needs no more slots than the reserve has, it is mapped completely. Then it ends some time, and
//! gives its slots back. If others wait, a holder gets no more slots in one turn than the reserve
//! has, which is enough for the request with which its turn began. When all slots are free again,
//! the virtqueue that has waited for the longest time becomes the holder. So no virtqueue starves,
//! and requests that are mapped in part never block each other.
//!
//! A virtqueue does not wait in the literal sense: its mapping fails, the driver undoes the rest of
//! the request, and tries again some milliseconds later.

use super::{
    super::{
        lock::{
            new_spinlock_irqsave,
            SpinLockIrqSave, //
        },
        page::Effort,
        rcu,
        rcu_box::{
            RcuBox,
            Taken, //
        },
    },
    slot::Slot, //
};
use kernel::{
    alloc::flags::GFP_KERNEL_ACCOUNT,
    prelude::*,
    sync::atomic::{
        Atomic,
        Relaxed, //
    },
    time::{
        Delta,
        Instant,
        Monotonic, //
    },
};
use pin_init::init_array_from_fn;

/// The maximum number of slots of a reserve.
pub(super) const MAX_SLOTS: usize = u64::BITS as usize;

/// The time for which all slots are kept free for the virtqueue whose turn it is, counted from its
/// last attempt. The block layer tries a request again after 3 ms, plus at most a jiffy. The
/// virtqueue may also need the reserve no more, as its request was mapped elsewhere.
const PATIENCE: Delta = Delta::from_millis(50);

/// A virtqueue that did not get a slot.
struct Waiting {
    vq: u32,
    /// The time of its last attempt.
    last: Instant<Monotonic>,
}

/// The state of a reserve.
struct Turns {
    /// The free slots: bit 0 stands for the first slot.
    free: u64,
    /// The value of `free` when all slots are free; 0 until the reserve is filled.
    all: u64,
    /// The virtqueue that has used the reserve last. It is the holder if not all slots are free.
    holder: u32,
    /// The number of slots that the holder has got in this turn.
    got: u32,
    /// The time since which all slots have been free, if they are.
    since: Instant<Monotonic>,
    /// The virtqueues that did not get a slot, in the order in which they came. Its capacity is the
    /// number of virtqueues.
    waiting: KVVec<Waiting>,
}

impl Turns {
    /// Allocates a slot for the virtqueue `vq`. Returns the number of the slot's bit, or [`None`]
    /// if it is not the virtqueue's turn, or if no slot is free.
    fn take(&mut self, vq: u32, now: Instant<Monotonic>) -> Option<u32> {
        if self.all == 0 {
            return None;
        }

        if self.free == self.all {
            // Those that have not come for too long, and had the time to come, have lost their
            // turns.
            if now - self.since > PATIENCE {
                self.waiting
                    .retain(|waiting| now - waiting.last <= PATIENCE);
            }
            if self.waiting.first().is_some_and(|first| first.vq != vq) {
                return self.wait(vq, now);
            }
            self.holder = vq;
            self.got = 0;
        } else if self.holder != vq || self.others_wait() && self.got >= self.all.count_ones() {
            return self.wait(vq, now);
        }

        let bit = self.free.trailing_zeros();
        if self.free == 0 {
            return self.wait(vq, now);
        }
        self.free &= !(1 << bit);
        self.got = self.got.saturating_add(1);
        self.waiting.retain(|waiting| waiting.vq != vq);

        Some(bit)
    }

    /// Returns whether a virtqueue waits that is not the holder.
    fn others_wait(&self) -> bool {
        self.waiting.iter().any(|waiting| waiting.vq != self.holder)
    }

    /// Records that the virtqueue `vq` waits. Returns [`None`].
    fn wait(&mut self, vq: u32, now: Instant<Monotonic>) -> Option<u32> {
        match self.waiting.iter_mut().find(|waiting| waiting.vq == vq) {
            Some(waiting) => waiting.last = now,
            None => {
                // Has no effect if there is no room, which cannot happen, because there is room for
                // all virtqueues.
                let _ = self.waiting.push_within_capacity(Waiting { vq, last: now });
            }
        }

        None
    }

    /// Frees the slot of a bit.
    fn release(&mut self, bit: u32, now: Instant<Monotonic>) {
        self.free |= self.all & 1 << bit;
        if self.free == self.all {
            self.since = now;
        }
    }
}

/// The slots of a reserve, of which the first ones are used.
type ReservedSlots = [Slot; MAX_SLOTS];

/// The reserve of a bounce area.
#[pin_data]
pub(super) struct Reserve {
    /// The number of slots, from slot 1 of the area on.
    len: usize,
    slots: RcuBox<ReservedSlots>,
    /// Whether the reserve is to be kept.
    is_wanted: Atomic<bool>,
    #[pin]
    turns: SpinLockIrqSave<Turns>,
}

impl Reserve {
    /// Returns an initialiser for a reserve of the slots from 1 to `len`. `len` is at most
    /// [`MAX_SLOTS`]. No slot can be allocated until the reserve is filled.
    pub(super) fn new(len: usize) -> impl PinInit<Self> {
        pin_init!(Self {
            len: len,
            slots: RcuBox::new(),
            is_wanted: Atomic::new(false),
            turns <- new_spinlock_irqsave!(Turns {
                free: 0,
                all: 0,
                holder: 0,
                got: 0,
                since: Instant::now(),
                waiting: KVVec::new(),
            }),
        })
    }

    /// Returns the number of slots.
    #[inline(always)]
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Returns whether the slot at `index` of the area belongs to the reserve.
    #[inline(always)]
    pub(super) fn contains(&self, index: usize) -> bool {
        (1..=self.len).contains(&index)
    }

    /// Returns the slot at `index` of the area, if it belongs to the reserve and the reserve is
    /// filled. Any context.
    pub(super) fn slot<'a>(&'a self, index: usize, rcu: rcu::Section<'a>) -> Option<&'a Slot> {
        self.slots.get(rcu)?.get(index.checked_sub(1)?)
    }

    /// Returns the slots, if the reserve is filled. Any context.
    pub(super) fn used_slots<'a>(
        &'a self,
        rcu: rcu::Section<'a>,
    ) -> impl Iterator<Item = &'a Slot> {
        self.slots.get(rcu).into_iter().flatten().take(self.len)
    }

    /// Records whether the reserve is to be kept. Any context.
    pub(super) fn set_wanted(&self, is_wanted: bool) {
        self.is_wanted.store(is_wanted, Relaxed);
    }

    /// Allocates the slots and their pages, for `vqs` virtqueues with the numbers from 0 to
    /// `vqs - 1`. Does nothing if that has been done, or if the reserve has no slots.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`] if memory is short.
    ///
    /// # Context
    ///
    /// May sleep. Calls of this method and of [`empty`](Self::empty) must not overlap.
    pub(super) fn fill(&self, vqs: usize) -> Result {
        if self.len == 0 || self.turns.lock().all != 0 {
            return Ok(());
        }

        let waiting = KVVec::with_capacity(vqs, GFP_KERNEL_ACCOUNT)?;
        self.slots
            .fill(init_array_from_fn(|_| Slot::new()), GFP_KERNEL_ACCOUNT)?;
        // If the reserve was emptied, some slots may still have pages.
        let slots = self.slots.take().ok_or(ENOMEM)?;
        for slot in slots.iter().take(self.len) {
            if slot.kernel_page().is_none() {
                slot.alloc_page(Effort::Sleeps).ok_or(ENOMEM)?;
            }
        }
        // Puts the slots back.
        drop(slots);

        let all = u64::MAX >> (MAX_SLOTS - self.len);
        let mut turns = self.turns.lock();
        turns.all = all;
        turns.free = all;
        turns.waiting = waiting;

        Ok(())
    }

    /// Takes the slots away if the reserve is not wanted and all slots are free. After that, no slot
    /// can be allocated until the reserve is filled again. Dropping the return value puts the slots
    /// back, which keeps their pages for the next call of [`fill`](Self::fill).
    ///
    /// # Context
    ///
    /// May sleep. Calls of this method and of [`fill`](Self::fill) must not overlap.
    pub(super) fn empty(&self) -> Option<Taken<'_, ReservedSlots>> {
        if self.is_wanted.load(Relaxed) {
            return None;
        }
        let mut turns = self.turns.lock();
        if turns.free != turns.all {
            return None;
        }
        turns.all = 0;
        turns.free = 0;
        let waiting = core::mem::take(&mut turns.waiting);
        drop(turns);
        drop(waiting);

        self.slots.take()
    }

    /// Allocates a slot for the virtqueue `vq`. Returns the slot's number, or [`None`] if it is not
    /// the virtqueue's turn, or if no slot is free.
    ///
    /// # Context
    ///
    /// Any. The calls for one virtqueue must not overlap, and the mappings of one request must not
    /// overlap with those of the virtqueue's next request.
    #[cold]
    #[inline(never)]
    pub(super) fn take(&self, vq: u32) -> Option<usize> {
        let bit = self.turns.lock().take(vq, Instant::now())?;

        Some(bit as usize + 1)
    }

    /// Frees a slot that [`take`](Self::take) returned. Any context.
    #[cold]
    #[inline(never)]
    pub(super) fn give_back(&self, slot: usize) {
        if self.contains(slot) {
            self.turns.lock().release(slot as u32 - 1, Instant::now());
        }
    }
}

#[kunit_tests(vduse_rs_reserve)]
mod tests {
    use super::*;
    use kernel::alloc::flags::GFP_KERNEL;

    /// The state of a filled reserve of `slots` slots, for four virtqueues.
    fn turns(slots: usize, since: Instant<Monotonic>) -> Result<Turns> {
        let all = u64::MAX >> (MAX_SLOTS - slots);

        Ok(Turns {
            free: all,
            all,
            holder: 0,
            got: 0,
            since,
            waiting: KVVec::with_capacity(4, GFP_KERNEL)?,
        })
    }

    #[test]
    fn one_virtqueue_at_a_time_gets_all_slots() -> Result {
        let now = Instant::now();
        let mut turns = turns(3, now)?;

        assert_eq!(turns.take(7, now), Some(0));
        assert_eq!(turns.take(8, now), None);
        assert_eq!(turns.take(7, now), Some(1));
        assert_eq!(turns.take(7, now), Some(2));
        assert_eq!(turns.take(7, now), None);

        Ok(())
    }

    #[test]
    fn virtqueues_get_their_turns_in_the_order_in_which_they_came() -> Result {
        let now = Instant::now();
        let mut turns = turns(2, now)?;

        assert_eq!(turns.take(0, now), Some(0));
        for vq in [2, 1, 3, 2] {
            assert_eq!(turns.take(vq, now), None);
        }
        turns.release(0, now);
        for (vq, others) in [(2, [0, 1, 3]), (1, [3, 0, 2]), (3, [0, 2, 1])] {
            for other in others {
                assert_eq!(turns.take(other, now), None);
            }
            assert_eq!(turns.take(vq, now), Some(0));
            turns.release(0, now);
        }
        // The holder of the first turn has asked again after 2, 1 and 3.
        assert_eq!(turns.take(2, now), None);
        assert_eq!(turns.take(0, now), Some(0));

        Ok(())
    }

    #[test]
    fn a_turn_is_as_long_as_the_reserve_if_others_wait() -> Result {
        let now = Instant::now();
        let mut turns = turns(3, now)?;

        // Nobody waits, so the turn may last.
        assert_eq!(turns.take(0, now), Some(0));
        for _ in 0..5 {
            assert_eq!(turns.take(0, now), Some(1));
            turns.release(1, now);
        }
        assert_eq!(turns.take(1, now), None);
        assert_eq!(turns.take(0, now), None);
        turns.release(0, now);

        // In this turn, the holder gets all slots although another virtqueue waits.
        assert_eq!(turns.take(0, now), None);
        for bit in 0..3 {
            assert_eq!(turns.take(1, now), Some(bit));
        }
        turns.release(2, now);
        assert_eq!(turns.take(1, now), None);
        for bit in 0..2 {
            turns.release(bit, now);
        }
        assert_eq!(turns.take(1, now), None);
        assert_eq!(turns.take(0, now), Some(0));

        Ok(())
    }

    #[test]
    fn virtqueues_that_do_not_come_lose_their_turns() -> Result {
        let now = Instant::now();
        let late = now + PATIENCE + Delta::from_nanos(1);
        let mut turns = turns(2, now)?;

        assert_eq!(turns.take(0, now), Some(0));
        for vq in 1..4 {
            assert_eq!(turns.take(vq, now), None);
        }
        // Those that wait had no chance so far, however late it is.
        turns.release(0, late);
        assert_eq!(turns.take(0, late), None);
        assert_eq!(turns.take(3, late + PATIENCE), None);
        // 1 and 2 do not come.
        let later = late + PATIENCE + Delta::from_nanos(1);
        assert_eq!(turns.take(0, later), None);
        assert_eq!(turns.take(3, later), Some(0));
        turns.release(0, later);
        assert_eq!(turns.take(0, later), Some(0));

        Ok(())
    }

    #[test]
    fn only_a_filled_reserve_has_slots() -> Result {
        let reserve = KBox::pin_init(Reserve::new(2), GFP_KERNEL)?;
        let has_slot = |index| {
            let has_page = |slot: &Slot| slot.kernel_page().is_some();

            rcu::read(|rcu| reserve.slot(index, rcu).is_some_and(has_page))
        };

        for _ in 0..2 {
            assert_eq!(reserve.take(0), None);
            assert!(!has_slot(1));

            reserve.fill(1)?;
            assert_eq!(reserve.take(0), Some(1));
            // Filling again changes nothing.
            reserve.fill(1)?;
            assert_eq!(reserve.take(0), Some(2));
            assert_eq!(reserve.take(0), None);
            assert!(!has_slot(0) && has_slot(1) && has_slot(2) && !has_slot(3));

            reserve.give_back(1);
            assert!(reserve.empty().is_none());
            reserve.give_back(2);
            let slots = reserve.empty().ok_or(EINVAL)?;
            rcu::synchronize();
            // SAFETY: A grace period has passed since the slots were taken.
            unsafe { slots.free() }
        }

        Ok(())
    }
}
