// SPDX-License-Identifier: GPL-2.0

//! Measurements of the latency of a kick and of an interrupt.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc;

use rustix::event::{eventfd, EventfdFlags};
use vduse_selftests::lab::daemon::answered::Answered;
use vduse_selftests::lab::device::bus;
use vduse_selftests::lab::driver::block::Aligned;
use vduse_selftests::lab::driver::ring::HandDriver;
use vduse_selftests::lab::driver::vhost::Vhost;

use crate::measurement::{Bench, Row};
use crate::null::{NullDisk, Shape};
use crate::rows::disk;
use crate::{clock, profile};

/// A series of measured times, in ns.
struct Times(Vec<u64>);

impl Times {
    /// Returns the median and the 99th percentile.
    fn summary(mut self) -> [f64; 2] {
        self.0.sort_unstable();
        let at = |part: f64| self.0[(self.0.len() as f64 * part) as usize] as f64;
        [at(0.5), at(0.99)]
    }
}

/// Number of round trips that are timed, after `WARM_UP` untimed ones.
const ROUNDS: usize = 2000;
const WARM_UP: usize = 50;

const VHOST_KICK: &str = "vhost-vdpa: kick";
const VHOST_INTERRUPT: &str = "vhost-vdpa: interrupt";

/// Creates an eventfd whose reads block.
fn event() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC).expect("an eventfd")
}

fn signal(event: &OwnedFd) {
    rustix::io::write(event, &1u64.to_ne_bytes()).expect("writing to an eventfd");
}

fn wait(event: &OwnedFd) {
    rustix::io::read(event, &mut [0; 8]).expect("reading from an eventfd");
}

/// Measures the latency of a kick and of an interrupt through vhost-vdpa, from eventfd to eventfd.
fn through_vhost() -> Vec<f64> {
    let answered = Answered::version_0(1);
    let path = bus::vhost_path(answered.device.name()).expect("a node");
    let driver = HandDriver::prepare(Vhost::open(&path).expect("opening"), 0x10_0000);
    driver.set_queue_up();
    driver.start();
    // The reads of these eventfds block, unlike those of `HandDriver`'s own eventfds.
    let (kick, call, kicked) = (event(), event(), event());
    driver.vhost.set_kick(0, kick.as_fd()).expect("a kick");
    let to_driver = Some(call.as_fd());
    driver.vhost.set_call(0, to_driver).expect("an interrupt");
    answered.file.set_kick(0, kicked.as_fd()).expect("a kick");

    let (sender, receiver) = mpsc::channel();
    let mut kicks = Vec::new();
    let mut calls = Vec::new();
    std::thread::scope(|scope| {
        let device = &answered.file;
        scope.spawn(move || {
            for _ in 0..WARM_UP + ROUNDS {
                wait(&kicked);
                let woken = clock::now();
                profile::end(VHOST_KICK, 1);
                profile::begin(VHOST_INTERRUPT);
                let injecting = clock::now();
                device.inject_vq_irq(0).expect("interrupting");
                sender.send((woken, injecting)).expect("a receiver");
            }
        });
        for round in 0..WARM_UP + ROUNDS {
            profile::begin(VHOST_KICK);
            let kicking = clock::now();
            signal(&kick);
            wait(&call);
            let called = clock::now();
            profile::end(VHOST_INTERRUPT, 1);
            let (woken, injecting) = receiver.recv().expect("a sender");
            if round >= WARM_UP {
                kicks.push(woken - kicking);
                calls.push(called - injecting);
            }
        }
    });
    [Times(kicks).summary(), Times(calls).summary()].concat()
}

/// Measures two parts of reading a sector: from the read to the kick, and from the interrupt to the
/// data.
fn through_virtio_blk() -> Vec<f64> {
    let disk = NullDisk::new(Shape::default());
    let block = disk::open(disk.name());
    disk.stamps().want();
    let mut buffer = Aligned::new(512);
    let mut kicks = Vec::new();
    let mut interrupts = Vec::new();
    for round in 0..WARM_UP + ROUNDS {
        let begin = clock::now();
        rustix::io::pread(&block, &mut buffer[..], 0).expect("reading");
        let end = clock::now();
        if round >= WARM_UP {
            kicks.push(disk.stamps().woken() - begin);
            interrupts.push(end - disk.stamps().injecting());
        }
    }
    [Times(kicks).summary(), Times(interrupts).summary()].concat()
}

/// Returns the measurements of the latency of a kick and of an interrupt.
pub fn benches() -> Vec<Bench> {
    let rows = |kick: &str, interrupt: &str, target| {
        let mut rows = Vec::new();
        for (name, target) in [(kick, 1.0), (interrupt, target)] {
            for which in ["median", "99th percentile"] {
                rows.push(Row::lower(format!("{name}, {which}"), "ns", target));
            }
        }
        rows
    };
    vec![
        Bench::new(rows(VHOST_KICK, VHOST_INTERRUPT, 0.6), through_vhost),
        Bench::new(
            rows(
                "virtio-blk: read to kick",
                "virtio-blk: interrupt to data",
                0.6,
            ),
            through_virtio_blk,
        ),
    ]
}
