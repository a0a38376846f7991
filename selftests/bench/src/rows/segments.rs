// SPDX-License-Identifier: GPL-2.0

//! What it costs to map a buffer and to unmap it.
//!
//! Both happen inside the driver, out of sight. But a request of many pieces that do not lie
//! together in memory has each of them mapped, so what each further piece adds to a request's cost
//! is what mapping and unmapping it costs, and what the block layer does with it. The latter is
//! measured with the same requests on the kernel's `null_blk`, and taken off. What virtio does with
//! a piece, a descriptor of an indirect table, is left in: less than 100 instructions. So is the copy to or
//! from the bounce pages: 11 instructions for 32 bytes where instructions are counted (see
//! `qemu-test/bench`), so that 512 bytes say most about the driver itself.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::AsFd;
use std::sync::OnceLock;

use vduse_selftests::lab::block::Block;
use vduse_selftests::lab::memory::HugePage;
use vduse_selftests::modules;

use crate::clock;
use crate::null::{NullDisk, Shape};
use crate::rows::{disk, Bench, Row};

/// How many pieces a request has, at most.
const PIECES: usize = 15;

/// How far one piece is from the next: they never touch.
const STRIDE: usize = 128 << 10;

/// How many requests of each kind are timed.
const REQUESTS: u64 = 400;

/// What a further piece adds to a request, in ns: to a read, and to a write.
fn slopes(file: &impl AsFd, bytes: usize) -> [f64; 2] {
    // Each piece is in one piece physically.
    let mut memory = HugePage::new();
    let per_request = |write: bool, pieces: usize, memory: &mut HugePage| {
        let parts = memory.bytes().chunks_mut(STRIDE).take(pieces);
        let parts: Vec<&mut [u8]> = parts.map(|part| &mut part[..bytes]).collect();
        let total = pieces * bytes;
        let once: &mut dyn FnMut() = if write {
            let parts: Vec<_> = parts.iter().map(|part| IoSlice::new(part)).collect();
            &mut move || {
                assert_eq!(rustix::io::pwritev(file, &parts, 0), Ok(total), "writing");
            }
        } else {
            let mut parts: Vec<_> = parts.into_iter().map(IoSliceMut::new).collect();
            &mut move || {
                let done = rustix::io::preadv(file, &mut parts, 0);
                assert_eq!(done, Ok(total), "reading");
            }
        };
        (0..20).for_each(|_| once());
        clock::time(|| (0..REQUESTS).for_each(|_| once())) as f64 / REQUESTS as f64
    };
    [false, true].map(|write| {
        let one = per_request(write, 1, &mut memory);
        let many = per_request(write, PIECES, &mut memory);
        (many - one) / (PIECES - 1) as f64
    })
}

/// The same on a disk that maps nothing.
fn slopes_without_mapping(bytes: usize) -> [f64; 2] {
    static DISK: OnceLock<Block> = OnceLock::new();
    let disk = DISK.get_or_init(|| {
        // One queue, which completes requests at once.
        let parameters = ["null_blk", "nr_devices=1", "queue_mode=2", "irqmode=0"];
        modules::tool("modprobe", &parameters).expect("the kernel's null_blk");
        Block::open("nullb0").expect("null_blk's disk")
    });
    slopes(disk, bytes)
}

/// The measurements.
pub fn benches() -> Vec<Bench> {
    let bench = |bytes: usize| {
        let row = |what| {
            let name = format!("map and unmap {bytes} B, {what}");
            Row::lower(name, "ns", 0.7)
        };
        let rows = vec![row("device writes"), row("device reads")];
        Bench::new(rows, move || {
            let plain = slopes_without_mapping(bytes);
            let disk = NullDisk::new(Shape::default());
            let mapped = slopes(&disk::open(disk.name()), bytes);
            (0..2).map(|i| mapped[i] - plain[i]).collect()
        })
    };
    [512, 4 << 10, 64 << 10].map(bench).into()
}
