// SPDX-License-Identifier: GPL-2.0

//! Giving back the pages and slots of bounce areas that nothing uses.
//!
//! A page can be given back only while its slot cannot be allocated: from before it is known that
//! nobody uses the page until after the device side has lost its mapping of the page. So this is
//! done by region. A region whose slots were all idle since the previous call is closed. After a
//! grace period, no mapping is left that began before. Then the region's slots are taken away, and
//! their pages are unmapped from all processes and freed. Mapping a buffer takes no lock and makes
//! no check for this: it only finds that the region's slots are allocated.
//!
//! A page to which some other code has a reference stays, and its slot is put back: a fault may be
//! about to map the page, or the device side may be doing I/O with it.

use super::{
    super::{
        address_space::AddressSpace,
        page::PAGE_SHIFT,
        rcu,
        sched::cond_resched,
        slots::{
            Closed,
            REGION_SLOTS, //
        },
    },
    slot::{
        Age,
        Slot, //
    },
    Area,
    ON_DEMAND, //
};
use core::ops::Range;
use kernel::sync::atomic::Relaxed;

/// The maximum number of areas that are looked at together.
const GROUP: usize = 16;

/// The maximum number of regions that are given back together. Each batch takes two grace periods,
/// during which the slots of these regions cannot be allocated.
const BATCH: usize = 16;

/// A bounce area, and the address space of the file through which the device side maps the area.
#[derive(Clone, Copy)]
pub(crate) struct Mapped<'a> {
    pub(crate) area: &'a Area,
    pub(crate) mappings: &'a AddressSpace,
}

/// A closed region of an area.
struct ClosedRegion<'a> {
    of: Mapped<'a>,
    closed: Closed<'a>,
}

/// Gives back the pages that were allocated on demand for regions of which no slot was used since
/// the previous call, and the slots themselves. A region has 256 slots. Also gives back each reserve
/// that is not wanted any more.
///
/// Skips areas in which user pages are being registered or deregistered, and gives back nothing that
/// is in use. An area without a reserve keeps at least half of its room all the time, and the pages
/// of regions that are used for mappings of several pages. If it is so small that it has no blocks,
/// it keeps all of its pages.
///
/// # Context
///
/// May sleep. Takes two RCU grace periods for each 16 regions.
pub(crate) fn give_back<'a>(areas: impl Iterator<Item = Mapped<'a>>) {
    let mut areas = areas.fuse();

    loop {
        let group: [_; GROUP] = core::array::from_fn(|_| areas.next());
        if group.iter().all(Option::is_none) {
            return;
        }

        // For each area, the number of its next region.
        let mut next = [0; GROUP];
        while give_back_batch(&group, &mut next) {}
    }
}

/// Gives back a batch of regions of a group of areas, beginning with the regions `next`. Updates
/// `next`. Returns whether there may be more.
fn give_back_batch(group: &[Option<Mapped<'_>>; GROUP], next: &mut [usize; GROUP]) -> bool {
    // Prevents that user pages are registered or deregistered, and that a reserve is filled. An area
    // for which this is being done is left alone.
    let locked = group.map(|mapped| {
        let mapped = mapped?;

        Some((mapped, mapped.area.registered.try_lock()?))
    });
    let mut batch = [const { None }; BATCH];
    let mut places = batch.iter_mut();

    for (locked, next) in locked.iter().zip(next) {
        let Some(&(of, ref _guard)) = locked.as_ref() else {
            continue;
        };
        let area = of.area;
        // Without a reserve, a mapping must not fail as long as the area has room.
        let (most, only_claimed) = if area.has_reserve() {
            (BATCH, false)
        } else {
            (area.allocator.half(), true)
        };
        let mut count = 0;

        if *next == 0 {
            of.give_back_reserve();
        }
        while count < most && *next < area.chunks.len() && places.len() > 0 {
            let region = *next;
            *next += 1;
            if !area.is_idle(region) {
                continue;
            }
            if let Some(closed) = area.allocator.close(region, only_claimed) {
                if let Some(place) = places.next() {
                    *place = Some(ClosedRegion { of, closed });
                    count += 1;
                }
            }
        }
    }

    let is_empty = places.len() == BATCH;
    if !is_empty {
        give_back_regions(batch);
    }
    !is_empty
}

/// Gives back the pages and slots of closed regions, and opens the regions again. The areas'
/// `registered` must be locked.
fn give_back_regions(batch: [Option<ClosedRegion<'_>>; BATCH]) {
    rcu::synchronize();

    // From here on, no slot of these regions is allocated.
    let empty = batch.map(|region| {
        let ClosedRegion { of, closed } = region?;
        let area = of.area;
        let number = closed.region();
        if !closed.is_quiet() || !area.is_idle(number) {
            return None;
        }
        // From here on, no fault finds the pages.
        let slots = area.chunks.get(number)?.take()?;
        of.mappings.unmap(addresses(area.on_demand(number)));

        // SAFETY: The slots cannot be allocated, so no buffer is mapped to them, and no page is
        // allocated for them.
        let freed = unsafe { free_pages(slots.iter()) };
        let _ = ON_DEMAND.fetch_sub(freed.count, Relaxed);

        // If pages are left, the slots are put back when they are dropped.
        freed.is_all.then_some((slots, closed))
    });

    rcu::synchronize();
    for (slots, closed) in empty.into_iter().flatten() {
        // SAFETY: A grace period has passed since the slots were taken.
        unsafe { slots.free() };
        // Slots can be allocated for the region again.
        drop(closed);
    }
}

impl Area {
    /// Returns the slots of a region that are not in the reserve.
    fn on_demand(&self, region: usize) -> Range<usize> {
        let first = region * REGION_SLOTS;

        first.max(self.reserve.len() + 1)..(first + REGION_SLOTS).min(self.slots)
    }

    /// Returns whether a region has slots, and all of them were idle since the previous call.
    fn is_idle(&self, region: usize) -> bool {
        cond_resched();

        rcu::read(|rcu| {
            let Some(chunk) = self.chunks.get(region).and_then(|chunk| chunk.get(rcu)) else {
                return false;
            };

            // Every slot is asked, because that is what makes it idle for the next call.
            chunk
                .iter()
                .fold(true, |idle, slot| slot.age() == Age::Idle && idle)
        })
    }
}

impl Mapped<'_> {
    /// Gives back the pages of the reserve if it is not wanted and none of its slots is used. The
    /// slots stay, as they take hardly any memory. The area's `registered` must be locked.
    fn give_back_reserve(&self) {
        let reserve = &self.area.reserve;
        let Some(slots) = reserve.empty() else {
            return;
        };

        self.mappings.unmap(addresses(1..reserve.len() + 1));
        // SAFETY: The slots cannot be allocated until the reserve is filled again. Those that keep
        // their pages are used again then.
        let _ = unsafe { free_pages(slots.iter()) };
    }
}

/// Returns the range of I/O virtual addresses of a range of slots.
fn addresses(slots: Range<usize>) -> Range<u64> {
    (slots.start << PAGE_SHIFT) as u64..(slots.end << PAGE_SHIFT) as u64
}

/// What [`free_pages`] has freed.
struct Freed {
    count: usize,
    /// Whether no slot has a page any more.
    is_all: bool,
}

/// Frees the pages of slots, apart from those to which other code has references.
///
/// # Safety
///
/// The same as for [`Slot::free_page`], for each slot.
unsafe fn free_pages<'a>(slots: impl Iterator<Item = &'a Slot>) -> Freed {
    let mut freed = Freed {
        count: 0,
        is_all: true,
    };

    for slot in slots {
        if slot.kernel_page().is_none() {
            continue;
        }
        // SAFETY: The requirements are those of this function.
        if unsafe { slot.free_page() } {
            freed.count += 1;
        } else {
            freed.is_all = false;
        }
    }

    freed
}
