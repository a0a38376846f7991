// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The rings of a split virtqueue (virtio 1.3, section 2.7).

use std::sync::atomic::{fence, Ordering};

use virtio_bindings::virtio_ring::{VRING_AVAIL_F_NO_INTERRUPT, VRING_USED_F_NO_NOTIFY};
use vm_memory::Permissions;

use crate::iotlb::AddressSpace;
use crate::virtqueue::area::Area;
use crate::virtqueue::chain::Chain;
use crate::virtqueue::error::Error;
use crate::virtqueue::event::crosses;
use crate::virtqueue::log::QueueLog;
use crate::virtqueue::settings::{Position, Settings, MAX_SIZE};
use crate::virtqueue::taken::{unless_unmapped, Taken};
use crate::virtqueue::walk::{Descriptor, Table, Walker, DESCRIPTOR};

/// Offset of the flags in the available ring and in the used ring, in bytes.
const FLAGS: usize = 0;
/// Offset of the index in the available ring and in the used ring, in bytes.
const INDEX: usize = 2;
/// Offset of the first entry in the available ring and in the used ring, in bytes.
const ENTRIES: usize = 4;
/// Size of an entry of the available ring, in bytes.
const AVAIL_ENTRY: usize = 2;
/// Size of an entry of the used ring, in bytes: an id and a length of 4 bytes each.
const USED_ENTRY: usize = 8;
/// Size of the event index after the last entry of either ring, in bytes.
const EVENT: usize = 2;

/// The three parts of a split virtqueue.
#[derive(Debug)]
struct Areas {
    table: Table,
    avail: Area,
    used: Area,
}

impl Areas {
    fn new(settings: &Settings, memory: &AddressSpace) -> Result<Self, Error> {
        let size = usize::from(settings.size);
        // Without `VIRTIO_RING_F_EVENT_IDX`, the driver need not map the event indices.
        let event = if settings.event_idx() { EVENT } else { 0 };
        let area = |iova, len, align, access| Area::new(memory, iova, len, align, access);
        let avail_len = ENTRIES + size * AVAIL_ENTRY + event;
        let used_len = ENTRIES + size * USED_ENTRY + event;
        Ok(Self {
            table: Table(area(
                settings.descriptors,
                size * DESCRIPTOR,
                DESCRIPTOR,
                Permissions::Read,
            )?),
            avail: area(settings.driver, avail_len, 2, Permissions::Read)?,
            used: area(settings.device, used_len, 4, Permissions::ReadWrite)?,
        })
    }
}

/// The device side of a split virtqueue.
#[derive(Debug)]
pub(super) struct Split {
    areas: Areas,
    /// Size in descriptors, a power of 2.
    size: u16,
    event_idx: bool,
    /// Index of the available entry that the device takes next.
    next_avail: u16,
    /// The driver's index of the available ring, as last read.
    avail: u16,
    /// Index of the used entry that the device writes next.
    next_used: u16,
    /// The index of the used ring that the driver sees.
    published: u16,
    log: Option<QueueLog>,
    /// The requests that an earlier program has taken, and that the device takes again.
    again: Vec<u16>,
}

impl Split {
    /// Creates the rings. `position` receives the index of the used ring that the driver sees, and
    /// returns `next_avail` and `next_used`.
    pub(super) fn new(
        settings: &Settings,
        position: impl FnOnce(u16) -> (u16, u16),
        memory: &AddressSpace,
    ) -> Result<Self, Error> {
        let size = settings.size;
        if !size.is_power_of_two() || size > MAX_SIZE {
            return Err(Error::Size(size));
        }
        let areas = Areas::new(settings, memory)?;
        let (next_avail, next_used) = position(areas.used.load_u16(INDEX, Ordering::Acquire));
        Ok(Self {
            areas,
            size,
            event_idx: settings.event_idx(),
            next_avail,
            avail: next_avail,
            next_used,
            published: next_used,
            log: None,
            again: Vec::new(),
        })
    }

    /// Keeps a log from now on. If `take_over` is set, the device first takes the requests that
    /// were in flight according to the log. Must be called before the first request is taken.
    pub(super) fn set_log(&mut self, mut log: QueueLog, settings: &Settings, take_over: bool) {
        let recovered = take_over.then(|| log.recover(settings, self.next_used));
        let outstanding = self
            .areas
            .avail
            .load_u16(INDEX, Ordering::Acquire)
            .wrapping_sub(self.next_used);
        match recovered.flatten() {
            Some(in_flight) if in_flight.len() <= outstanding.into() => {
                // CAST: There are at most as many as descriptors.
                self.next_avail = self.next_used.wrapping_add(in_flight.len() as u16);
                self.avail = self.next_avail;
                self.again = in_flight;
            }
            _ => log.begin(settings, self.next_used),
        }
        log.reserve(self.size);
        self.log = Some(log);
    }

    pub(super) fn remap(
        &mut self,
        settings: &Settings,
        memory: &AddressSpace,
    ) -> Result<(), Error> {
        self.areas = Areas::new(settings, memory)?;
        Ok(())
    }

    pub(super) fn position(&self) -> Position {
        Position::Split {
            next_avail: self.next_avail,
            next_used: self.published,
        }
    }

    /// Returns the position in either ring of the entry with this index.
    #[inline]
    fn slot(&self, index: u16) -> usize {
        usize::from(index & (self.size - 1))
    }

    /// Reads the driver's index of the available ring. Returns whether there is a request.
    #[inline]
    fn look(&mut self) -> Result<bool, Error> {
        // The entries, descriptors and buffers must be read after the index.
        let avail = self.areas.avail.load_u16(INDEX, Ordering::Acquire);
        // The driver can reuse a descriptor only after it has seen that it is used. So the requests
        // that are available or in flight never are more than the virtqueue has descriptors.
        if avail.wrapping_sub(self.published) > self.size {
            return Err(Error::TooManyAvailable);
        }
        self.avail = avail;
        Ok(avail != self.next_avail)
    }

    #[inline]
    pub(super) fn pop(
        &mut self,
        walker: &mut Walker,
        memory: &AddressSpace,
        chain: &mut Chain,
    ) -> Result<Taken, Error> {
        if let Some(head) = self.again.pop() {
            return unless_unmapped(self.walk(walker, memory, head, chain));
        }
        if self.next_avail == self.avail && !self.look()? {
            return Ok(Taken::Nothing);
        }
        let at = ENTRIES + self.slot(self.next_avail) * AVAIL_ENTRY;
        let head = self.areas.avail.load_u16(at, Ordering::Relaxed);
        let taken = unless_unmapped(self.walk(walker, memory, head, chain))?;
        if let Some(log) = &self.log {
            log.taken(head);
        }
        self.next_avail = self.next_avail.wrapping_add(1);
        Ok(taken)
    }

    /// Adds all buffers of the request that begins with the descriptor `head` to `chain`.
    #[inline]
    fn walk(
        &self,
        walker: &mut Walker,
        memory: &AddressSpace,
        head: u16,
        chain: &mut Chain,
    ) -> Result<(), Error> {
        chain.set_id(head, 1);
        let mut index = head;
        for _ in 0..self.size {
            if index >= self.size {
                return Err(Error::BadIndex(index));
            }
            let (first, second) = self.areas.table.words(index);
            let descriptor = Descriptor::split(first, second);
            walker.add(memory, descriptor, chain)?;
            if !descriptor.has_next() {
                return Ok(());
            }
            index = descriptor.next_or_id;
        }
        Err(Error::EndlessChain)
    }

    #[inline]
    pub(super) fn push(&mut self, chain: &Chain, written: u32) {
        let at = ENTRIES + self.slot(self.next_used) * USED_ENTRY;
        self.areas.used.store_u32(at, chain.id().into());
        self.areas.used.store_u32(at + 4, written);
        self.next_used = self.next_used.wrapping_add(1);
        if let Some(log) = &mut self.log {
            log.pushed(chain.id());
        }
    }

    #[inline]
    pub(super) fn publish(&mut self) -> bool {
        let (old, new) = (self.published, self.next_used);
        if old == new {
            return false;
        }
        if let Some(log) = &mut self.log {
            log.prepare(old, new);
        }
        // The driver must see the entries and the buffers before the index.
        self.areas.used.store_u16(INDEX, new, Ordering::Release);
        self.published = new;
        // The driver first says that it wants an interrupt, and then looks at the index again. So
        // the device must write the index before it reads what the driver wants.
        fence(Ordering::SeqCst);
        if let Some(log) = &mut self.log {
            log.published();
        }
        if self.event_idx {
            let at = ENTRIES + usize::from(self.size) * AVAIL_ENTRY;
            crosses(self.areas.avail.load_u16(at, Ordering::Relaxed), new, old)
        } else {
            let flags = self.areas.avail.load_u16(FLAGS, Ordering::Relaxed);
            u32::from(flags) & VRING_AVAIL_F_NO_INTERRUPT == 0
        }
    }

    #[inline]
    pub(super) fn disable_kicks(&mut self) {
        // With event indices, the driver kicks at one entry only, which is behind it now.
        if !self.event_idx {
            let flags = VRING_USED_F_NO_NOTIFY as u16;
            self.areas.used.store_u16(FLAGS, flags, Ordering::Relaxed);
        }
    }

    #[inline]
    pub(super) fn enable_kicks(&mut self) -> bool {
        if self.event_idx {
            let at = ENTRIES + usize::from(self.size) * USED_ENTRY;
            let event = self.next_avail;
            self.areas.used.store_u16(at, event, Ordering::Relaxed);
        } else {
            self.areas.used.store_u16(FLAGS, 0, Ordering::Relaxed);
        }
        // The driver first writes the index, and then looks whether the device wants a kick. So the
        // device must say that it does before it reads the index.
        fence(Ordering::SeqCst);
        // If the driver's index makes no sense, the next call of `pop` finds the error.
        self.look().unwrap_or(true)
    }
}
