// SPDX-License-Identifier: GPL-2.0

//! Corruption of virtqueues. A daemon corrupts the virtqueues of kernel drivers, and a vhost-vdpa
//! client corrupts its own virtqueues.

use std::os::fd::AsFd;

use rustix::io::Errno;
use vduse::{Device, Mapping};
use vm_memory::Bytes;

use crate::fuzz::actor::Actor;
use crate::fuzz::records::Wait;
use crate::lab::device::virtio::descriptor;

/// Writes to a mapping. If the mapped memory no longer exists, the write raises `SIGBUS`, which may
/// kill this process. The supervisor permits that.
fn put(memory: &Mapping, at: u64, bytes: &[u8]) {
    // `write_slice` writes nothing beyond the end of the mapping.
    let _ = memory.bytes().write_slice(bytes, at as usize);
}

/// Reads a 16-bit number in little-endian order.
fn get(memory: &Mapping, at: u64) -> u16 {
    let mut bytes = [0; 2];
    let _ = memory.bytes().read_slice(&mut bytes, at as usize);
    u16::from_le_bytes(bytes)
}

/// Index of the virtqueue on which virtio_net receives packets.
const RECEIVE: u32 = 0;

/// Lengths in bytes of packets that take 18 pages.
const FULL: std::ops::RangeInclusive<u32> = 17 * 4096..=18 * 4096;

/// Adds wrong elements to a used ring. An element may name a buffer that the driver has not made
/// available, or a length that exceeds the buffer.
///
/// Corrupts only the receive queue of a network card. A driver that finds a wrong element marks the
/// virtqueue as broken, and any other broken virtqueue would cause a hang. On removal, virtio_blk
/// waits for requests that never end. virtio_net cleans up its transmit queue in an interrupt, in a
/// loop that never ends if that virtqueue is broken (`virtnet_poll_cleantx`).
pub fn corrupt_used_ring(actor: &mut Actor, device: &Device) {
    let index = RECEIVE;
    let errors = &[Errno::PERM, Errno::INVAL];
    let info = || device.vq_info(index);
    let Some(info) = actor.call("VQ_GET_INFO", Wait::Short, errors, info) else {
        return;
    };
    if info.ready == 0 || info.num == 0 {
        return;
    }
    let size = u64::from(info.num);
    let find = || device.iotlb_fd(info.device_addr, info.device_addr);
    let Some(region) = actor.call("find a ring", Wait::Short, errors, find) else {
        return;
    };
    let at = region.offset + (info.device_addr - region.first);
    let map = || Mapping::of_file(region.file.as_fd(), at, 4 + 8 * size + 2, region.access);
    let Some(ring) = actor.attempt("map a ring", Wait::Short, map) else {
        return;
    };
    let mut used = get(&ring, 2);
    for _ in 0..1 + actor.dice.below(8) {
        let slot = 4 + 8 * (u64::from(used) % size);
        let id = match actor.dice.below(8) {
            0 => actor.dice.next() as u32,
            1 => info.num,
            _ => actor.dice.below(size) as u32,
        };
        let len = match actor.dice.below(6) {
            0 => actor.dice.next() as u32,
            1 => 0,
            2 => u32::MAX,
            3 => actor.dice.below(12) as u32,
            _ => 12 + actor.dice.below(2000) as u32,
        };
        // Buffers for large packets have 18 pages, one more than a packet's array of fragments has
        // room for. If a packet takes all 18 pages, virtio_net writes beyond the end of that array
        // (`receive_big`, `page_to_skb`).
        let len = if FULL.contains(&len) { 0 } else { len };
        put(&ring, slot, &id.to_le_bytes());
        put(&ring, slot + 4, &len.to_le_bytes());
        used = used.wrapping_add(1);
    }
    match actor.dice.below(8) {
        0 => used = actor.dice.next() as u16,
        // Writes random flags, which may suppress kicks, or a random index at which the device
        // wants a kick.
        1 => put(&ring, 0, &(actor.dice.next() as u16).to_le_bytes()),
        2 => put(
            &ring,
            4 + 8 * size,
            &(actor.dice.next() as u16).to_le_bytes(),
        ),
        _ => {}
    }
    put(&ring, 2, &used.to_le_bytes());
    actor.call("interrupt", Wait::Short, errors, || {
        device.inject_vq_irq(index)
    });
}

/// Index of the control queue of a card with one queue pair.
const CONTROL: u32 = 2;

/// Corrupts the memory region that contains a control queue. The region also contains the queue's
/// commands and answers. If virtio_net drives the card, the region is the VDUSE driver's shadow of
/// the control queue.
pub fn corrupt_control_queue(actor: &mut Actor, device: &Device) {
    let errors = &[Errno::PERM, Errno::INVAL];
    let info = || device.vq_info(CONTROL);
    let Some(info) = actor.call("VQ_GET_INFO", Wait::Short, errors, info) else {
        return;
    };
    if info.ready == 0 || info.num == 0 {
        return;
    }
    let find = || device.iotlb_fd(info.desc_addr, info.desc_addr);
    let Some(region) = actor.call("find a ring", Wait::Short, errors, find) else {
        return;
    };
    let len = region.last - region.first + 1;
    let map = || Mapping::of_file(region.file.as_fd(), region.offset, len, region.access);
    let Some(memory) = actor.attempt("map a ring", Wait::Short, map) else {
        return;
    };
    let available = get(&memory, info.driver_addr.wrapping_sub(region.first) + 2);
    let used = info.device_addr.wrapping_sub(region.first) + 2;
    for _ in 0..1 + actor.dice.below(32) {
        match actor.dice.below(3) {
            // The driver is likely to take this used index for the completion of a command.
            0 => {
                let index = available.wrapping_sub(actor.dice.below(3) as u16);
                put(&memory, used, &index.to_le_bytes());
            }
            1 => put(&memory, actor.dice.below(len), &[0; 8]),
            _ => {
                let word = actor.dice.next().to_le_bytes();
                put(&memory, actor.dice.below(len), &word);
            }
        }
    }
    actor.call("interrupt", Wait::Short, errors, || {
        device.inject_vq_irq(CONTROL)
    });
}

/// Offset of the descriptor table in the memory of a client's virtqueue.
pub const DESC: u64 = 0;
/// Offset of the available ring in the memory of a client's virtqueue.
pub const AVAIL: u64 = 0x1000;
/// Offset of the used ring in the memory of a client's virtqueue.
pub const USED: u64 = 0x2000;
/// Offset of the requests in the memory of a client's virtqueue.
const DATA: u64 = 0x3000;
/// Size in bytes of the memory of a client's virtqueue.
pub const LEN: u64 = 0x8000;

/// Fills a client's virtqueue with random chains of descriptors. Some chains are too long, contain
/// a loop, or point outside the memory, and some are valid. `iova` is the IOVA of the memory, and
/// `size` is the number of descriptors.
pub fn fill_with_bad_chains(actor: &mut Actor, memory: &Mapping, iova: u64, size: u64) {
    for index in 0..size {
        if actor.dice.one_in(3) {
            continue;
        }
        let address = match actor.dice.below(8) {
            0 => actor.dice.next(),
            1 => u64::MAX - actor.dice.below(64),
            2 => iova + LEN - actor.dice.below(16),
            // An address that may be inside the rings.
            3 => iova + actor.dice.below(LEN),
            _ => iova + DATA + actor.dice.below(64) * 16,
        };
        let len = match actor.dice.below(6) {
            0 => actor.dice.next() as u32,
            1 => 0,
            _ => actor.dice.pick(&[1, 16, 512]),
        };
        let flags = match actor.dice.below(8) {
            0 => actor.dice.next() as u16,
            1 => descriptor::INDIRECT,
            _ => actor.dice.below(4) as u16,
        };
        let next = match actor.dice.below(4) {
            0 => actor.dice.next() as u16,
            1 => index as u16,
            _ => actor.dice.below(size) as u16,
        };
        let at = DESC + 16 * index;
        put(memory, at, &address.to_le_bytes());
        put(memory, at + 8, &len.to_le_bytes());
        put(memory, at + 12, &flags.to_le_bytes());
        put(memory, at + 14, &next.to_le_bytes());
    }
    for slot in 0..size {
        let head = match actor.dice.below(8) {
            0 => actor.dice.next() as u16,
            _ => actor.dice.below(size) as u16,
        };
        put(memory, AVAIL + 4 + 2 * slot, &head.to_le_bytes());
    }
    let index = match actor.dice.below(8) {
        0 => actor.dice.next() as u16,
        _ => get(memory, AVAIL + 2).wrapping_add(actor.dice.below(size + 1) as u16),
    };
    put(memory, AVAIL + 2, &index.to_le_bytes());
}
