// SPDX-License-Identifier: GPL-2.0

//! The driver side of a split virtqueue with many numbered requests in flight.

use std::os::fd::AsFd;
use std::sync::atomic::{fence, Ordering};

use vduse::eventfd::EventFd;
use vduse::Mapping;
use vm_memory::Bytes;

use crate::lab::driver::vhost::{access, RingAddress, Vhost};
use crate::lab::kernel::memory;

/// The size of the queue in descriptors, of which a request takes two.
const SIZE: u16 = 128;

/// Number of requests that can be in flight.
pub const REQUESTS: u16 = SIZE / 2;

/// IOVA of the queue's memory.
const IOVA: u64 = 0x10_0000;

/// Offsets in the queue's memory.
const DESC: usize = 0;
const AVAIL: usize = 0x1000;
const USED: usize = 0x2000;
const NUMBERS: usize = 0x3000;
const ANSWERS: usize = 0x4000;

/// Size of the queue's memory in bytes.
const LEN: u64 = 0x5000;

/// Descriptor flag: another descriptor follows.
const NEXT: u16 = 1;
/// Descriptor flag: the device writes to the buffer.
const WRITE: u16 = 2;

/// A virtqueue, whose memory outlives the device that it is used with.
#[derive(Debug)]
pub struct InFlight {
    memory: Mapping,
    kick: EventFd,
    call: EventFd,
    /// The number of the request in each slot.
    slots: Vec<Option<u64>>,
    available: u16,
    used: u16,
    next: u64,
    /// The numbers of the requests that came back, in the order in which they came back.
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

    /// Maps the virtqueue in a device, and sets it up there with `base` as the device's first
    /// position.
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

    /// Takes the requests that the device has used. Asserts that each was in flight and has its
    /// answer.
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

    /// Returns the number of requests in flight, as the driver knows it.
    pub fn in_flight(&self) -> usize {
        self.slots.iter().flatten().count()
    }

    /// Returns the index of the used ring: the best guess at the position of a device that does not
    /// report its position.
    pub fn used_index(&self) -> u16 {
        u16::from_le_bytes(self.load(USED + 2))
    }
}
