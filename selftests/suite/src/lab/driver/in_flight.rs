// SPDX-License-Identifier: GPL-2.0

//! The driver side of a split virtqueue with many numbered requests in flight.

use std::os::fd::AsFd;
use std::sync::atomic::{fence, Ordering};

use vduse::eventfd::EventFd;
use vduse::Mapping;
use vm_memory::Bytes;

use crate::lab::driver::vhost::{access, RingAddress, Vhost};
use crate::lab::kernel::memory;

/// Maximum size of the virtqueue in descriptors. A request takes two descriptors.
const SIZE: u16 = 128;

/// Maximum number of requests in flight.
pub const REQUESTS: u16 = SIZE / 2;

/// IOVA of the virtqueue's memory.
const IOVA: u64 = 0x10_0000;

/// Offsets of the virtqueue's parts in its memory.
const DESC: usize = 0;
const AVAIL: usize = 0x1000;
const USED: usize = 0x2000;
const NUMBERS: usize = 0x3000;
const ANSWERS: usize = 0x4000;

/// Size of the virtqueue's memory in bytes.
const LEN: u64 = 0x5000;

/// Descriptor flag: another descriptor follows.
const NEXT: u16 = 1;
/// Descriptor flag: the device writes to the buffer.
const WRITE: u16 = 2;

/// A virtqueue with its memory, which can be used with several devices in succession.
#[derive(Debug)]
pub struct InFlight {
    memory: Mapping,
    kick: EventFd,
    call: EventFd,
    /// Number of the request in each slot, or `None` if the slot is free.
    slots: Vec<Option<u64>>,
    available: u16,
    used: u16,
    next: u64,
    /// The numbers of the completed requests, in the order in which the device completed them.
    pub completed: Vec<u64>,
}

impl InFlight {
    /// Creates a virtqueue.
    #[track_caller]
    pub fn new() -> Self {
        let file = memory::file(LEN);
        Self {
            memory: Mapping::of_file(file.as_fd(), 0, LEN, access::RW).expect("mapping memory"),
            kick: EventFd::new().expect("an eventfd"),
            call: EventFd::new().expect("an eventfd"),
            slots: vec![None; REQUESTS.into()],
            available: 0,
            used: 0,
            next: 0,
            completed: Vec::new(),
        }
    }

    /// Maps the virtqueue's memory for a device and sets up virtqueue 0. The device starts at
    /// position `base`.
    #[track_caller]
    pub fn set_up(&self, vhost: &Vhost, base: u16) {
        vhost.map(IOVA, &self.memory, access::RW).expect("mapping");
        vhost
            .set_queue_size(0, SIZE.into())
            .expect("the queue's size");
        let address = RingAddress {
            desc: IOVA + DESC as u64,
            avail: IOVA + AVAIL as u64,
            used: IOVA + USED as u64,
        };
        vhost
            .set_queue_address(0, address)
            .expect("the queue's addresses");
        vhost.set_queue_base(0, base.into()).expect("the base");
        vhost.set_kick(0, self.kick.as_fd()).expect("kick");
        vhost.set_call(0, Some(self.call.as_fd())).expect("call");
        vhost.enable_queue(0).expect("enabling the queue");
    }

    fn store<const N: usize>(&self, offset: usize, bytes: [u8; N]) {
        self.memory
            .bytes()
            .write_slice(&bytes, offset)
            .expect("inside the memory");
    }

    fn load<const N: usize>(&self, offset: usize) -> [u8; N] {
        let mut bytes = [0; N];
        self.memory
            .bytes()
            .read_slice(&mut bytes, offset)
            .expect("inside the memory");
        bytes
    }

    /// Makes requests available until `count` are in flight, and kicks the device.
    #[track_caller]
    pub fn submit_up_to(&mut self, count: usize) {
        while self.in_flight() < count {
            let slot = self.slots.iter().position(Option::is_none).expect("a slot");
            let number = self.next;
            self.next += 1;
            self.slots[slot] = Some(number);
            self.store(NUMBERS + slot * 8, number.to_le_bytes());
            self.store(ANSWERS + slot * 8, u64::MAX.to_le_bytes());
            let head = slot as u16 * 2;
            for (index, at, flags, next) in [
                (head, NUMBERS, NEXT, head + 1),
                (head + 1, ANSWERS, WRITE, 0),
            ] {
                let descriptor = DESC + usize::from(index) * 16;
                let address = IOVA + (at + slot * 8) as u64;
                self.store(descriptor, address.to_le_bytes());
                self.store(descriptor + 8, 8u32.to_le_bytes());
                self.store(descriptor + 12, flags.to_le_bytes());
                self.store(descriptor + 14, next.to_le_bytes());
            }
            let entry = AVAIL + 4 + usize::from(self.available % SIZE) * 2;
            self.store(entry, head.to_le_bytes());
            self.available = self.available.wrapping_add(1);
            fence(Ordering::SeqCst);
            self.store(AVAIL + 2, self.available.to_le_bytes());
        }
        self.kick();
    }

    /// Kicks the device.
    #[track_caller]
    pub fn kick(&self) {
        self.kick.signal().expect("kicking");
    }

    /// Takes the requests that the device has completed. Asserts that each request was in flight,
    /// and that the device has written the request's number.
    #[track_caller]
    pub fn reap(&mut self) {
        let index = u16::from_le_bytes(self.load(USED + 2));
        while self.used != index {
            let entry = USED + 4 + usize::from(self.used % SIZE) * 8;
            self.used = self.used.wrapping_add(1);
            let slot = u32::from_le_bytes(self.load(entry)) as usize / 2;
            let number = self.slots[slot].take();
            let answer = u64::from_le_bytes(self.load(ANSWERS + slot * 8));
            assert_eq!(number, Some(answer), "request {slot} was used");
            self.completed.push(answer);
        }
    }

    /// Returns the number of requests that the driver has made available and not reaped.
    pub fn in_flight(&self) -> usize {
        self.slots.iter().flatten().count()
    }

    /// Returns the index of the used ring. For a device that does not report its position, this
    /// index is the best guess at the position.
    pub fn used_index(&self) -> u16 {
        u16::from_le_bytes(self.load(USED + 2))
    }
}
