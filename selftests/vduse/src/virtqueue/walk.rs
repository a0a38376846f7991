// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The walk along a request's descriptors, which collects its buffers.

use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};

use crate::iotlb::AddressSpace;
use crate::virtqueue::area::Area;
use crate::virtqueue::chain::Chain;
use crate::virtqueue::error::Error;
use crate::virtqueue::settings::{Settings, MAX_SIZE};
use crate::virtqueue::window::Window;

/// Size of a descriptor in bytes, in either layout.
pub(super) const DESCRIPTOR: usize = 16;

pub(super) const NEXT: u16 = VRING_DESC_F_NEXT as u16;
pub(super) const WRITE: u16 = VRING_DESC_F_WRITE as u16;
const INDIRECT: u16 = VRING_DESC_F_INDIRECT as u16;

/// A descriptor as it was read, once. In both layouts, the first 12 bytes are the address and the
/// length. The other 4 bytes are the flags and the index of the next descriptor in a split
/// virtqueue, and the buffer id and the flags in a packed one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Descriptor {
    address: u64,
    len: u32,
    pub(super) flags: u16,
    /// The index of the next descriptor, or the buffer id.
    pub(super) next_or_id: u16,
}

impl Descriptor {
    /// Returns the descriptor of a split virtqueue that consists of these two words.
    #[inline]
    pub(super) fn split(address: u64, rest: u64) -> Self {
        Self {
            address,
            // CAST: Each cast takes the low bits, which are the field.
            len: rest as u32,
            flags: (rest >> 32) as u16,
            next_or_id: (rest >> 48) as u16,
        }
    }

    /// Returns the descriptor of a packed virtqueue that consists of these two words.
    #[inline]
    pub(super) fn packed(address: u64, rest: u64) -> Self {
        Self {
            address,
            // CAST: Each cast takes the low bits, which are the field.
            len: rest as u32,
            flags: (rest >> 48) as u16,
            next_or_id: (rest >> 32) as u16,
        }
    }

    #[inline]
    pub(super) fn has_next(&self) -> bool {
        self.flags & NEXT != 0
    }

    #[inline]
    pub(super) fn is_indirect(&self) -> bool {
        self.flags & INDIRECT != 0
    }
}

/// What all requests of a virtqueue need for the walk.
#[derive(Debug)]
pub(super) struct Walker {
    indirect: bool,
    /// Whether an indirect table is read in order (packed), or along the descriptors' indices.
    packed: bool,
    window: Window,
}

impl Walker {
    pub(super) fn new(settings: &Settings) -> Self {
        Self {
            indirect: settings.indirect(),
            packed: settings.is_packed(),
            window: Window::new(),
        }
    }

    /// Forgets the memory, after it has changed.
    pub(super) fn forget(&mut self) {
        self.window = Window::new();
    }

    /// Adds a descriptor to `chain`: its buffer or, for an indirect descriptor, all buffers of its
    /// table.
    #[inline]
    pub(super) fn add(
        &mut self,
        memory: &AddressSpace,
        descriptor: Descriptor,
        chain: &mut Chain,
    ) -> Result<(), Error> {
        if descriptor.is_indirect() {
            self.add_table(memory, descriptor, chain)
        } else {
            self.add_buffer(memory, descriptor, chain)
        }
    }

    #[inline]
    fn add_buffer(
        &mut self,
        memory: &AddressSpace,
        descriptor: Descriptor,
        chain: &mut Chain,
    ) -> Result<(), Error> {
        let writable = descriptor.flags & WRITE != 0;
        let mut iova = descriptor.address;
        let mut left = descriptor.len as usize;
        while left != 0 {
            let (address, room) = self.window.find(memory, iova, writable)?;
            let len = left.min(room);
            // SAFETY: The region has `room` bytes from `address` on, with these permissions. It
            // stays mapped as long as `memory`, with which the chain was cleared.
            unsafe { chain.add(writable, address, len) }?;
            left -= len;
            // At the end of the address space, a buffer that goes on is not mapped there.
            iova = iova.wrapping_add(len as u64);
        }
        Ok(())
    }

    fn add_table(
        &mut self,
        memory: &AddressSpace,
        table: Descriptor,
        chain: &mut Chain,
    ) -> Result<(), Error> {
        let entries = table.len as usize / DESCRIPTOR;
        let is_whole = table.len as usize % DESCRIPTOR == 0;
        // `WRITE` says nothing here, and is to be ignored.
        if !self.indirect || table.has_next() || !is_whole || entries == 0 {
            return Err(Error::BadIndirect);
        }
        if entries > usize::from(MAX_SIZE) {
            return Err(Error::EndlessChain);
        }

        let (start, room) = self.window.find(memory, table.address, false)?;
        // A table that is in two regions is looked up entry by entry.
        let contiguous = (room >= table.len as usize).then_some(start);
        let mut index = 0;
        for _ in 0..entries {
            let descriptor = match contiguous {
                // SAFETY: `index` is below `entries`. The region has the whole table from `start`
                // on, and stays mapped, as `memory` holds it.
                Some(start) => self.parse(unsafe { read_words(start.cast::<Words>().add(index)) }),
                None => self.look_up(memory, table.address, index)?,
            };
            // In a packed virtqueue, `WRITE` is the only flag that counts in a table.
            if descriptor.is_indirect() && !self.packed {
                return Err(Error::BadIndirect);
            }
            self.add_buffer(memory, descriptor, chain)?;
            if self.packed {
                index += 1;
                continue;
            }
            if !descriptor.has_next() {
                return Ok(());
            }
            index = descriptor.next_or_id.into();
            if index >= entries {
                return Err(Error::BadIndex(descriptor.next_or_id));
            }
        }
        if self.packed {
            Ok(())
        } else {
            Err(Error::EndlessChain)
        }
    }

    /// Returns the descriptor of an indirect table that consists of these two words.
    #[inline]
    fn parse(&self, words: [u64; 2]) -> Descriptor {
        let [first, second] = words.map(u64::from_le);
        if self.packed {
            Descriptor::packed(first, second)
        } else {
            Descriptor::split(first, second)
        }
    }

    /// Reads the descriptor `index` of the table at the IOVA `table`, byte by byte.
    #[cold]
    fn look_up(
        &mut self,
        memory: &AddressSpace,
        table: u64,
        index: usize,
    ) -> Result<Descriptor, Error> {
        let mut words = [0; 2];
        for (word, at) in words.iter_mut().zip([0, 8]) {
            let mut bytes = [0; 8];
            for (offset, byte) in (at..).zip(&mut bytes) {
                let iova = table.wrapping_add((index * DESCRIPTOR) as u64 + offset);
                let (address, _) = self.window.find(memory, iova, false)?;
                // SAFETY: The region has at least one byte from `address` on, and stays mapped, as
                // `memory` holds it.
                *byte = unsafe { address.read_volatile() };
            }
            *word = u64::from_ne_bytes(bytes);
        }
        Ok(self.parse(words))
    }
}

/// The two words of a descriptor in an indirect table, which may be at any address.
#[derive(Clone, Copy)]
#[repr(C, packed)]
struct Words([u64; 2]);

/// Reads the two words of a descriptor, each once.
///
/// # Safety
///
/// The words must be mapped.
#[inline]
unsafe fn read_words(at: *const Words) -> [u64; 2] {
    let word = at.cast::<Word>();
    // SAFETY: By the requirements of this function. `Word` has no alignment.
    unsafe { [word.read_volatile().0, word.add(1).read_volatile().0] }
}

/// A word that may be at any address.
#[derive(Clone, Copy)]
#[repr(C, packed)]
struct Word(u64);

/// The table of descriptors of a virtqueue.
#[derive(Debug)]
pub(super) struct Table(pub(super) Area);

impl Table {
    /// Returns the two words of descriptor `index`.
    #[inline]
    pub(super) fn words(&self, index: u16) -> (u64, u64) {
        let at = usize::from(index) * DESCRIPTOR;
        (self.0.read_u64(at), self.0.read_u64(at + 8))
    }
}
