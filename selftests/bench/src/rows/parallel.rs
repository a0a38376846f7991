// SPDX-License-Identifier: GPL-2.0

//! Measurements with several virtqueues at the same time. virtio_blk uses at most one virtqueue for
//! each CPU. These measurements are for two CPUs, so more than two virtqueues need several disks,
//! with two virtqueues each. virtio_net uses as many queue pairs as `ethtool` requests.

use std::sync::Barrier;

use vduse_selftests::lab::device::bus;
use vduse_selftests::lab::driver::block::Block;
use vduse_selftests::lab::kernel::{cpu, modules};

use crate::aio::{Direction, Flight};
use crate::measurement::{Bench, Row};
use crate::null::{ethernet, NullDisk, NullPairs, Shape, LAST, OTHER};
use crate::packet::Interface;
use crate::rows::disk;
use crate::{clock, profile};

/// Number of runs. The best run counts, because other load on the host can only make a run slower.
const TRIES: usize = 5;

/// Returns how many 4 KiB reads complete per second, with one thread for each virtqueue.
fn reads(row: &str, queues: usize, depth: usize, count: usize) -> f64 {
    let disks: Vec<_> = (0..queues.div_ceil(2))
        .map(|_| {
            NullDisk::new(Shape {
                queues: queues.min(2) as u16,
                ..Shape::default()
            })
        })
        .collect();
    let blocks: Vec<_> = disks.iter().map(|disk| disk::open(disk.name())).collect();
    let blocks: Vec<_> = (0..queues).map(|queue| &blocks[queue / 2]).collect();
    let what = || disk::random(Direction::Read, 4096);
    profile::watch(row, queues * count, || at_once(&blocks, depth, count, what))
}

/// Returns how many requests of at most 4 KiB complete per second, with one thread for each entry
/// of `blocks`, which sends `count` requests to that disk. The threads are on the CPUs in turn.
/// `what` returns a generator of requests.
pub fn at_once<W: FnMut() -> (Direction, u64, usize)>(
    blocks: &[&Block],
    depth: usize,
    count: usize,
    what: impl Fn() -> W + Sync,
) -> f64 {
    let cpus = cpu::online().len();
    let ready = Barrier::new(blocks.len() + 1);
    let done = Barrier::new(blocks.len() + 1);
    let took = std::thread::scope(|scope| {
        for (index, block) in blocks.iter().enumerate() {
            let (what, ready, done) = (&what, &ready, &done);
            scope.spawn(move || {
                cpu::run_on(index % cpus);
                let mut flight = Flight::new(depth, 4096).expect("asynchronous I/O");
                let mut what = what();
                flight.run(*block, 100, &mut what).expect("I/O");
                ready.wait();
                flight.run(*block, count, &mut what).expect("I/O");
                done.wait();
            });
        }
        ready.wait();
        clock::time(|| {
            done.wait();
        })
    });
    (blocks.len() * count) as f64 * 1e9 / took as f64
}

/// Number of frames that each CPU sends.
const FRAMES: u64 = 10_000;

/// Returns how many frames per second the driver sends through a card with this number of queue
/// pairs, with one thread on each CPU.
fn frames(row: &str, pairs: u16) -> f64 {
    let card = NullPairs::new(pairs);
    let name = card.name();
    let interfaces: Vec<_> = cpu::online()
        .into_iter()
        .map(|cpu| (cpu, Interface::of(name, LAST)))
        .collect();
    if pairs > 1 {
        let interface = bus::interface(name).expect("an interface");
        let pairs = pairs.to_string();
        // `ethtool` fails if the card has no control queue.
        let _ = modules::tool("ethtool", &["-L", &interface, "combined", &pairs]);
    }
    let mut frame = ethernet(OTHER).to_vec();
    frame.resize(64, 0);
    let count = interfaces.len() as u64 * FRAMES;
    card.expect(count);
    let took = clock::time(|| {
        profile::watch(row, count as usize, || {
            std::thread::scope(|scope| {
                for (cpu, interface) in &interfaces {
                    let frame = &frame;
                    scope.spawn(move || {
                        cpu::run_on(*cpu);
                        (0..FRAMES).for_each(|_| interface.send(frame));
                    });
                }
            });
            card.wait_sent();
        });
    });
    count as f64 * 1e9 / took as f64
}

/// Returns the measurements with several virtqueues at the same time.
pub fn benches() -> Vec<Bench> {
    let mut benches = Vec::new();
    for pairs in [1, 4] {
        let name = format!("virtio-net: 64 B sent by each CPU, {pairs} pairs");
        benches.push(Bench::new(
            vec![Row::higher(&name, "frames/s", 1.0)],
            move || {
                modules::tool("modprobe", &["virtio_net"]).expect("loading virtio_net");
                let best = (0..TRIES).map(|_| frames(&name, pairs));
                vec![best.fold(0.0, f64::max)]
            },
        ));
    }
    for (depth, count) in [(1, 400), (16, 2000)] {
        for queues in [1, 2, 4] {
            let name = format!("4 KiB random read, depth {depth}; {queues} queues at a time");
            benches.push(Bench::new(
                vec![Row::higher(&name, "IO/s", 1.3)],
                move || {
                    let best = (0..TRIES).map(|_| reads(&name, queues, depth, count / queues));
                    vec![best.fold(0.0, f64::max)]
                },
            ));
        }
    }
    benches
}
