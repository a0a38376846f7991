// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The ring of a packed virtqueue (virtio 1.3, section 2.8).

use std::sync::atomic::{fence, Ordering};

use vduse_uapi::PackedState;
use virtio_bindings::virtio_ring::{
    VRING_PACKED_DESC_F_AVAIL, VRING_PACKED_DESC_F_USED, VRING_PACKED_EVENT_FLAG_DESC,
    VRING_PACKED_EVENT_FLAG_DISABLE, VRING_PACKED_EVENT_FLAG_ENABLE, VRING_PACKED_EVENT_F_WRAP_CTR,
};
use vm_memory::Permissions;

use crate::iotlb::AddressSpace;
use crate::virtqueue::area::Area;
use crate::virtqueue::chain::Chain;
use crate::virtqueue::error::Error;
use crate::virtqueue::event::crosses;
use crate::virtqueue::settings::{Settings, MAX_SIZE};
use crate::virtqueue::taken::{unless_unmapped, Taken};
use crate::virtqueue::walk::{Descriptor, Table, Walker, DESCRIPTOR, WRITE};

/// Flag of a descriptor: the driver's wrap counter when it made the descriptor available.
const AVAIL: u16 = 1 << VRING_PACKED_DESC_F_AVAIL;
/// Flag of a descriptor: the device's wrap counter when it used the descriptor. When the driver
/// makes a descriptor available, this flag is the inverse of [`AVAIL`].
const USED: u16 = 1 << VRING_PACKED_DESC_F_USED;

/// Offset of a descriptor's length, in bytes.
const LEN: usize = 8;
/// Offset of a descriptor's buffer id, in bytes.
const ID: usize = 12;
/// Offset of a descriptor's flags, in bytes.
const FLAGS: usize = 14;

/// Size of an event suppression structure, in bytes.
const SUPPRESSION: usize = 4;
/// Offset in an event suppression structure of the entry at which to notify, in bytes.
const EVENT_OFFSET: usize = 0;
/// Offset of the flags in an event suppression structure, in bytes.
const EVENT_FLAGS: usize = 2;
/// The bits of [`EVENT_FLAGS`] that are in use.
const EVENT_FLAGS_MASK: u16 = 3;

/// A position in the ring, with the wrap counter, which changes whenever the ring starts again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    index: u16,
    wrap: bool,
}

impl Place {
    fn new(index: u16, counter: u16, size: u16) -> Result<Self, Error> {
        if index >= size || counter > 1 {
            return Err(Error::Position);
        }
        Ok(Self {
            index,
            wrap: counter == 1,
        })
    }

    /// Returns the position `count` entries further, at most the size of the ring.
    #[inline]
    fn plus(self, count: u16, size: u16) -> Self {
        // A ring has at most 2^15 entries, so the sum is no overflow.
        match self.index + count {
            index if index < size => Self { index, ..self },
            index => Self {
                index: index - size,
                wrap: !self.wrap,
            },
        }
    }

    /// Returns how many entries this position is after `other`, at most the size of the ring. Returns
    /// `None` if that would be more.
    fn after(self, other: Self, size: u16) -> Option<u16> {
        if self.wrap == other.wrap {
            self.index.checked_sub(other.index)
        } else {
            (self.index <= other.index).then(|| size - (other.index - self.index))
        }
    }

    /// Returns the position as an event suppression structure has it.
    #[inline]
    fn event(self) -> u16 {
        self.index | u16::from(self.wrap) << VRING_PACKED_EVENT_F_WRAP_CTR
    }
}

/// The three parts of a packed virtqueue.
#[derive(Debug)]
struct Areas {
    ring: Table,
    driver: Area,
    device: Area,
}

impl Areas {
    fn new(settings: &Settings, memory: &AddressSpace) -> Result<Self, Error> {
        let len = usize::from(settings.size) * DESCRIPTOR;
        let area = |iova, len, align, access| Area::new(memory, iova, len, align, access);
        let ring = settings.descriptors;
        Ok(Self {
            ring: Table(area(ring, len, DESCRIPTOR, Permissions::ReadWrite)?),
            driver: area(settings.driver, SUPPRESSION, 4, Permissions::Read)?,
            device: area(settings.device, SUPPRESSION, 4, Permissions::ReadWrite)?,
        })
    }
}

/// The device side of a packed virtqueue.
#[derive(Debug)]
pub(super) struct Packed {
    areas: Areas,
    /// Size in descriptors.
    size: u16,
    event_idx: bool,
    /// The descriptor that the device takes next.
    next_avail: Place,
    /// The descriptor that the device uses next.
    next_used: Place,
    /// The descriptor after those that the driver sees as used.
    published: Place,
    /// Number of descriptors of the requests that were taken but not published, whether they were
    /// pushed or not. At most `size`.
    taken: u16,
    /// Number of descriptors of the requests that were pushed but not published. At most `taken`.
    unpublished: u16,
    /// The flags of the first of these requests' descriptors. Writing them publishes all of them,
    /// as the driver looks at used descriptors in order.
    first_flags: u16,
}

impl Packed {
    pub(super) fn new(
        settings: &Settings,
        state: PackedState,
        memory: &AddressSpace,
    ) -> Result<Self, Error> {
        let size = settings.size;
        if !(1..=MAX_SIZE).contains(&size) {
            return Err(Error::Size(size));
        }
        let next_used = Place::new(state.last_used_idx, state.last_used_counter, size)?;
        let next_avail = Place::new(state.last_avail_idx, state.last_avail_counter, size)?;
        let taken = next_avail.after(next_used, size).ok_or(Error::Position)?;
        Ok(Self {
            areas: Areas::new(settings, memory)?,
            size,
            event_idx: settings.event_idx(),
            next_avail,
            next_used,
            published: next_used,
            taken,
            unpublished: 0,
            first_flags: 0,
        })
    }

    pub(super) fn remap(
        &mut self,
        settings: &Settings,
        memory: &AddressSpace,
    ) -> Result<(), Error> {
        self.areas = Areas::new(settings, memory)?;
        Ok(())
    }

    pub(super) fn position(&self) -> PackedState {
        PackedState {
            last_avail_counter: self.next_avail.wrap.into(),
            last_avail_idx: self.next_avail.index,
            last_used_counter: self.published.wrap.into(),
            last_used_idx: self.published.index,
        }
    }

    /// Returns the offset of a descriptor in the ring, in bytes.
    #[inline]
    fn offset(place: Place) -> usize {
        usize::from(place.index) * DESCRIPTOR
    }

    /// Returns whether the driver has made the next descriptor available.
    #[inline]
    fn is_available(&self) -> bool {
        let at = Self::offset(self.next_avail) + FLAGS;
        // The rest of the descriptor and the buffers must be read after the flags.
        let flags = self.areas.ring.0.load_u16(at, Ordering::Acquire);
        let avail = flags & AVAIL != 0;
        avail == self.next_avail.wrap && avail != (flags & USED != 0)
    }

    #[inline]
    pub(super) fn pop(
        &mut self,
        walker: &mut Walker,
        memory: &AddressSpace,
        chain: &mut Chain,
    ) -> Result<Taken, Error> {
        if !self.is_available() {
            return Ok(Taken::Nothing);
        }
        let mut place = self.next_avail;
        let mut taken = Taken::Request;
        for entries in 1..=self.size {
            let (first, second) = self.areas.ring.words(place.index);
            let descriptor = Descriptor::packed(first, second);
            // The id is in the last descriptor, so the walk goes on.
            if taken == Taken::Request {
                taken = unless_unmapped(walker.add(memory, descriptor, chain))?;
            }
            place = place.plus(1, self.size);
            if !descriptor.has_next() {
                // The driver can reuse a descriptor only after it has seen that it is used.
                if entries > self.size - self.taken {
                    return Err(Error::TooManyAvailable);
                }
                chain.set_id(descriptor.next_or_id, entries);
                self.next_avail = place;
                self.taken += entries;
                return Ok(taken);
            }
        }
        Err(Error::EndlessChain)
    }

    #[inline]
    pub(super) fn push(&mut self, chain: &Chain, written: u32) {
        // A chain of another virtqueue, or one that was pushed before, would let the device get
        // ahead of the driver.
        assert!(chain.entries() <= self.taken - self.unpublished);
        let at = Self::offset(self.next_used);
        let ring = &self.areas.ring.0;
        ring.store_u16(at + ID, chain.id(), Ordering::Relaxed);
        ring.store_u32(at + LEN, written);
        let wrap = if self.next_used.wrap { AVAIL | USED } else { 0 };
        let flags = wrap | if written != 0 { WRITE } else { 0 };
        if self.unpublished == 0 {
            self.first_flags = flags;
        } else {
            ring.store_u16(at + FLAGS, flags, Ordering::Release);
        }
        self.next_used = self.next_used.plus(chain.entries(), self.size);
        self.unpublished += chain.entries();
    }

    #[inline]
    pub(super) fn publish(&mut self) -> bool {
        if self.unpublished == 0 {
            return false;
        }
        let at = Self::offset(self.published) + FLAGS;
        let ring = &self.areas.ring.0;
        // The driver must see all other descriptors and the buffers before these flags.
        ring.store_u16(at, self.first_flags, Ordering::Release);
        let count = std::mem::take(&mut self.unpublished);
        self.taken -= count;
        self.published = self.next_used;
        // The driver first says that it wants an interrupt, and then looks at the flags again. So
        // the device must write the flags before it reads what the driver wants.
        fence(Ordering::SeqCst);
        self.wants_interrupt(count)
    }

    /// Returns whether the driver wants an interrupt for the last `count` descriptors.
    #[inline]
    fn wants_interrupt(&self, count: u16) -> bool {
        let driver = &self.areas.driver;
        // The entry must be read after the flags, which the driver writes last.
        let flags = driver.load_u16(EVENT_FLAGS, Ordering::Acquire) & EVENT_FLAGS_MASK;
        match u32::from(flags) {
            VRING_PACKED_EVENT_FLAG_DISABLE => false,
            VRING_PACKED_EVENT_FLAG_DESC if self.event_idx => {
                let event = driver.load_u16(EVENT_OFFSET, Ordering::Relaxed);
                let mut index = event & !(1 << VRING_PACKED_EVENT_F_WRAP_CTR);
                if (event >> VRING_PACKED_EVENT_F_WRAP_CTR != 0) != self.published.wrap {
                    // The entry is in the previous round of the ring.
                    index = index.wrapping_sub(self.size);
                }
                let new = self.published.index;
                crosses(index, new, new.wrapping_sub(count))
            }
            _ => true,
        }
    }

    #[inline]
    pub(super) fn disable_kicks(&mut self) {
        let flags = VRING_PACKED_EVENT_FLAG_DISABLE as u16;
        let device = &self.areas.device;
        device.store_u16(EVENT_FLAGS, flags, Ordering::Relaxed);
    }

    #[inline]
    pub(super) fn enable_kicks(&mut self) -> bool {
        let device = &self.areas.device;
        let flags = if self.event_idx {
            let event = self.next_avail.event();
            device.store_u16(EVENT_OFFSET, event, Ordering::Relaxed);
            VRING_PACKED_EVENT_FLAG_DESC
        } else {
            VRING_PACKED_EVENT_FLAG_ENABLE
        };
        // The driver must see the entry before the flags.
        device.store_u16(EVENT_FLAGS, flags as u16, Ordering::Release);
        // The driver first makes a descriptor available, and then looks whether the device wants a
        // kick. So the device must say that it does before it reads the descriptor.
        fence(Ordering::SeqCst);
        self.is_available()
    }
}
