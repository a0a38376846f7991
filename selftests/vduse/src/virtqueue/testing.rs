// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The driver side of a virtqueue, for tests. The virtqueue and its buffers are in the test's own
//! memory.

use std::sync::Arc;

use virtio_bindings::virtio_config::VIRTIO_F_RING_PACKED;
use vm_memory::{Bytes, GuestAddress};

use super::{Chain, Settings, Virtqueue};
use crate::device::Region;
use crate::iotlb::{AddressSpace, Source};
use crate::Mapping;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// IOVAs of the three parts of the virtqueue.
pub(crate) const DESCRIPTORS: u64 = 0x1000;
pub(crate) const DRIVER: u64 = 0x4000;
pub(crate) const DEVICE: u64 = 0x6000;
/// IOVA of the memory for tables and buffers.
pub(crate) const BUFFERS: u64 = 0x1_0000;
/// Size of the memory in bytes.
pub(crate) const SIZE: u64 = 0x10_0000;

/// A source without regions.
#[derive(Debug)]
struct Nothing;

impl Source for Nothing {
    fn find(&self, _iova: u64) -> std::io::Result<Region> {
        Err(std::io::ErrorKind::NotFound.into())
    }
}

/// A buffer of a request: the bytes that the device reads, or the number of bytes it may write.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Buffer<'a> {
    Read(&'a [u8]),
    Write(usize),
}

/// The driver side of a virtqueue.
#[derive(Debug)]
pub(crate) struct Driver {
    memory: Arc<AddressSpace>,
    settings: Settings,
    indirect: bool,
    /// IOVA of the memory that the next table or buffer gets.
    free: u64,
    /// Index of the next descriptor that is not used by a request. Descriptors are used in a circle.
    next: u16,
    /// Index of the next entry of the available ring.
    avail: u16,
    /// Index of the next entry of the used ring.
    used: u16,
    /// The wrap counters of a packed virtqueue.
    avail_wrap: bool,
    used_wrap: bool,
    /// The requests by id: their number of entries in the ring, and their writable buffers.
    requests: Vec<Option<Sent>>,
}

#[derive(Clone, Debug)]
struct Sent {
    entries: u16,
    writable: Vec<(u64, usize)>,
}

impl Driver {
    /// Creates a virtqueue of `size` descriptors. If `indirect` is set, each request has its
    /// descriptors in a table of its own.
    pub(crate) fn new(size: u16, features: u64, indirect: bool) -> Self {
        let mut memory = AddressSpace::new(Arc::new(Nothing));
        let mapping = Mapping::anonymous(SIZE as usize).unwrap();
        memory.map(0, SIZE - 1, Arc::new(mapping));
        Self {
            memory: Arc::new(memory),
            settings: Settings {
                size,
                descriptors: DESCRIPTORS,
                driver: DRIVER,
                device: DEVICE,
                features,
            },
            indirect,
            free: BUFFERS,
            next: 0,
            avail: 0,
            used: 0,
            avail_wrap: true,
            used_wrap: true,
            requests: vec![None; size.into()],
        }
    }

    pub(crate) fn memory(&self) -> &Arc<AddressSpace> {
        &self.memory
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    fn packed(&self) -> bool {
        self.settings.features & 1 << VIRTIO_F_RING_PACKED != 0
    }

    /// Creates the device side.
    pub(crate) fn device(&self) -> Virtqueue {
        let state = vduse_uapi::VqStateUnion {
            words: if self.packed() { [1, 0, 1, 0] } else { [0; 4] },
        };
        Virtqueue::new(&self.settings, &state, self.memory.clone()).unwrap()
    }

    pub(crate) fn write<T: vm_memory::ByteValued>(&self, iova: u64, value: T) {
        self.memory.write_obj(value, GuestAddress(iova)).unwrap();
    }

    pub(crate) fn read<T: vm_memory::ByteValued>(&self, iova: u64) -> T {
        self.memory.read_obj(GuestAddress(iova)).unwrap()
    }

    /// Allocates memory for a table or a buffer.
    fn allocate(&mut self, len: usize) -> u64 {
        let at = self.free;
        self.free += (len as u64).next_multiple_of(16).max(16);
        assert!(self.free <= SIZE, "a test uses too much memory");
        at
    }

    /// Returns the address, length and flags of the descriptor of each buffer, without `NEXT`.
    fn place(&mut self, buffers: &[Buffer<'_>]) -> Vec<(u64, u32, u16)> {
        buffers
            .iter()
            .map(|buffer| match *buffer {
                Buffer::Read(bytes) => {
                    let at = self.allocate(bytes.len());
                    self.memory.write_slice(bytes, GuestAddress(at)).unwrap();
                    (at, bytes.len() as u32, 0)
                }
                Buffer::Write(len) => {
                    let at = self.allocate(len);
                    let bytes = vec![0xee; len];
                    self.memory.write_slice(&bytes, GuestAddress(at)).unwrap();
                    (at, len as u32, WRITE)
                }
            })
            .collect()
    }

    /// Makes a request available. Returns its id.
    pub(crate) fn send(&mut self, buffers: &[Buffer<'_>]) -> u16 {
        let mut descriptors = self.place(buffers);
        let writable = descriptors
            .iter()
            .filter(|(_, _, flags)| flags & WRITE != 0)
            .map(|&(at, len, _)| (at, len as usize))
            .collect();
        if self.indirect {
            let table = self.allocate(16 * descriptors.len());
            let last = descriptors.len() - 1;
            for (index, &(at, len, flags)) in descriptors.iter().enumerate() {
                let entry = table + 16 * index as u64;
                self.write(entry, at);
                self.write(entry + 8, len);
                if self.packed() {
                    self.write(entry + 14, flags);
                } else {
                    let next = if index == last { 0 } else { NEXT };
                    self.write(entry + 12, flags | next);
                    self.write(entry + 14, index as u16 + 1);
                }
            }
            descriptors = vec![(table, 16 * (last as u32 + 1), INDIRECT)];
        }
        let id = self.next;
        self.requests[usize::from(id)] = Some(Sent {
            entries: descriptors.len() as u16,
            writable,
        });
        self.next = (self.next + descriptors.len() as u16) % self.settings.size;
        self.publish(id, &descriptors);
        id
    }

    fn publish(&mut self, id: u16, descriptors: &[(u64, u32, u16)]) {
        let size = self.settings.size;
        let last = descriptors.len() - 1;
        for (index, &(at, len, flags)) in descriptors.iter().enumerate() {
            let next = if index == last { 0 } else { NEXT };
            if self.packed() {
                let wrap = match self.avail_wrap {
                    true => 1 << 7,
                    false => 1 << 15,
                };
                let entry = DESCRIPTORS + 16 * u64::from(self.avail);
                self.write(entry, at);
                self.write(entry + 8, len);
                self.write(entry + 12, id);
                self.write(entry + 14, flags | next | wrap);
                self.avail += 1;
                if self.avail == size {
                    self.avail = 0;
                    self.avail_wrap = !self.avail_wrap;
                }
            } else {
                let slot = (id + index as u16) % size;
                let entry = DESCRIPTORS + 16 * u64::from(slot);
                self.write(entry, at);
                self.write(entry + 8, len);
                self.write(entry + 12, flags | next);
                self.write(entry + 14, (slot + 1) % size);
            }
        }
        if !self.packed() {
            let slot = u64::from(self.avail % size);
            self.write(DRIVER + 4 + 2 * slot, id);
            self.avail = self.avail.wrapping_add(1);
            self.write(DRIVER + 2, self.avail);
        }
    }

    /// Returns the id of the next request that the device has used, the number of bytes that it has
    /// written, and the contents of the writable buffers.
    pub(crate) fn receive(&mut self) -> Option<(u16, u32, Vec<u8>)> {
        let size = self.settings.size;
        let (id, written) = if self.packed() {
            let entry = DESCRIPTORS + 16 * u64::from(self.used);
            let flags: u16 = self.read(entry + 14);
            let both = [flags >> 7 & 1, flags >> 15 & 1];
            if both != [u16::from(self.used_wrap); 2] {
                return None;
            }
            let written: u32 = self.read(entry + 8);
            (
                self.read(entry + 12),
                // Without `WRITE`, the length is not valid.
                if flags & WRITE != 0 { written } else { 0 },
            )
        } else {
            if self.read::<u16>(DEVICE + 2) == self.used {
                return None;
            }
            let entry = DEVICE + 4 + 8 * u64::from(self.used % size);
            let id: u32 = self.read(entry);
            (id as u16, self.read(entry + 4))
        };
        let sent = self.requests[usize::from(id)].take().expect("a request");
        if self.packed() {
            self.used += sent.entries;
            if self.used >= size {
                self.used -= size;
                self.used_wrap = !self.used_wrap;
            }
        } else {
            self.used = self.used.wrapping_add(1);
        }
        let mut found = Vec::new();
        for (at, len) in sent.writable {
            let mut bytes = vec![0; len];
            self.memory
                .read_slice(&mut bytes, GuestAddress(at))
                .unwrap();
            found.extend(bytes);
        }
        if self.requests.iter().all(Option::is_none) {
            self.free = BUFFERS;
        }
        Some((id, written, found))
    }
}

/// Sends one request to `serve`, which returns the number of bytes that it has written. Returns
/// that number, and the contents of the writable buffers, which initially contain 0xee.
pub(crate) fn ask(buffers: &[Buffer<'_>], serve: impl FnOnce(&mut Chain) -> u32) -> (u32, Vec<u8>) {
    let mut driver = Driver::new(16, 0, false);
    let mut device = driver.device();
    driver.send(buffers);
    let mut chain = Chain::new();
    assert!(device.pop(&mut chain).unwrap());
    let written = serve(&mut chain);
    device.push(&chain, written);
    device.publish();
    let (_, written, found) = driver.receive().unwrap();
    (written, found)
}
