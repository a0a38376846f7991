// SPDX-License-Identifier: GPL-2.0

//! Migration: a driver with requests in flight continues on a second device, at the position where
//! the first device stopped.

use std::collections::HashMap;

use vduse_uapi::{extension, F_QUEUE_READY, F_SUSPEND};

use crate::lab::assert::random::Random;
use crate::lab::assert::timing::{soon, stays};
use crate::lab::daemon::out_of_order::{Done, OutOfOrder, SIZE};
use crate::lab::device::bus::{Driver, OnBus};
use crate::lab::device::negotiation::{create, Negotiation};
use crate::lab::device::test_device::{disk_config, TestDevice};
use crate::lab::device::virtio::status;
use crate::lab::driver::in_flight::InFlight;
use crate::lab::driver::ring;
use crate::lab::driver::vhost::{self, Vhost};
use crate::lab::run::report::note;
use crate::lab::run::settings::seed;

tests![
    a_suspended_device_hands_on_each_request_exactly_once => 120,
    a_device_that_is_reset_instead_loses_and_repeats_requests,
    a_migration_that_fails_goes_on_where_it_stopped => 120,
];

const NEGOTIATION: Negotiation = Negotiation {
    version: 0,
    features: F_SUSPEND | F_QUEUE_READY,
    extensions: 0,
};

/// The number of requests in flight.
const FLIGHT: usize = 32;

/// A device with its daemon and its vhost-vdpa client. The fields are dropped in declaration order.
struct Side {
    vhost: Vhost,
    _on_bus: OnBus,
    daemon: OutOfOrder,
    _device: TestDevice,
}

impl Side {
    #[track_caller]
    fn new(negotiation: Negotiation, done: &Done) -> Self {
        let device = create(&disk_config(), negotiation).expect("creating a device");
        let daemon = OutOfOrder::serve(device.open_nonblocking(), done, seed());
        let on_bus = OnBus::add(device.name()).expect("adding");
        on_bus.bind(Driver::Vhost).expect("binding");
        Self {
            vhost: vhost::open(&device),
            _on_bus: on_bus,
            daemon,
            _device: device,
        }
    }

    /// Starts the driver. The device begins at position `base` of the virtqueue.
    #[track_caller]
    fn start(&self, queue: &InFlight, base: u16) {
        ring::agree_without(&self.vhost, 1 << 29 | 1 << 34);
        queue.set_up(&self.vhost, base);
        ring::start(&self.vhost);
        // The driver does not kick again for requests that are already available, so this function
        // does.
        queue.kick();
    }

    /// Resets the device and unmaps all memory, so that the device is ready for the next driver.
    #[track_caller]
    fn reset(&self) {
        self.vhost.set_status(status::RESET).expect("a reset");
        self.vhost.unmap(0, u64::MAX).expect("unmapping");
    }
}

/// Makes the daemon complete some requests out of order while the driver submits more.
#[track_caller]
fn work(side: &Side, queue: &mut InFlight, random: &mut Random) {
    for _ in 0..random.below(20) {
        queue.submit_up_to(FLIGHT);
        side.daemon.complete_some(random.below(9) as usize);
        queue.reap();
    }
    queue.submit_up_to(FLIGHT);
}

/// Counts how often each number below `count` occurs in `list`. The returned map has the number of
/// occurrences as its key, and as its value how many numbers occur that often.
fn times(list: &[u64], count: u64) -> HashMap<usize, u64> {
    let mut times = HashMap::new();
    for number in 0..count {
        let found = list.iter().filter(|&&other| other == number).count();
        *times.entry(found).or_insert(0) += 1;
    }
    times
}

/// Completes all requests in flight, and asserts that each request was executed and came back
/// exactly once.
#[track_caller]
fn all_came_back_once(side: &Side, queue: &mut InFlight, done: &Done) {
    soon("all requests come back", || {
        side.daemon.complete_some(FLIGHT);
        queue.reap();
        queue.in_flight() == 0
    });
    let done = done.lock().expect("the list").clone();
    let count = queue.completed.len() as u64;
    assert_eq!(times(&queue.completed, count), HashMap::from([(1, count)]));
    assert_eq!(times(&done, count), HashMap::from([(1, count)]));
    assert_eq!(done.len() as u64, count);
}

fn a_suspended_device_hands_on_each_request_exactly_once() {
    let done = Done::default();
    let mut random = Random::new(seed());
    let sides = [0, 1].map(|_| Side::new(NEGOTIATION, &done));
    let mut queue = InFlight::new();
    sides[0].start(&queue, 0);
    const MOVES: usize = 40;
    for step in 0..MOVES {
        let (from, to) = (&sides[step % 2], &sides[(step + 1) % 2]);
        work(from, &mut queue, &mut random);
        from.vhost.suspend().expect("suspending");
        let base = from.vhost.queue_base(0).expect("the position");
        // The daemon has completed all requests that it had taken, so the device has no request in
        // flight.
        assert_eq!(base, u32::from(queue.used_index()), "move {step}");
        from.reset();
        queue.reap();
        to.start(&queue, base as u16);
    }
    all_came_back_once(&sides[MOVES % 2], &mut queue, &done);
    note(format_args!(
        "{} requests and {MOVES} moves, {FLIGHT} in flight",
        queue.completed.len()
    ));
}

fn a_device_that_is_reset_instead_loses_and_repeats_requests() {
    let done = Done::default();
    let sides = [0, 1].map(|_| Side::new(Negotiation::default(), &done));
    let mut queue = InFlight::new();
    sides[0].start(&queue, 0);
    queue.submit_up_to(FLIGHT);
    sides[0].daemon.holds(FLIGHT);
    // The daemon completes the last 8 of the 32 requests. Then the driver resets the device.
    sides[0].daemon.complete_last(8);
    sides[0].reset();
    queue.reap();
    // After the reset, the driver does not know which requests the first device has read. So the
    // second device begins at the index of the used ring, which is the driver's best guess.
    sides[1].start(&queue, queue.used_index());
    soon("what can come back comes back", || {
        sides[1].daemon.complete_some(FLIGHT);
        done.lock().expect("the list").len() == 8 + FLIGHT - 8
    });
    stays("no more", || done.lock().expect("the list").len() == FLIGHT);
    let done = done.lock().expect("the list").clone();
    let found = times(&done, FLIGHT as u64);
    note(format_args!(
        "of {FLIGHT} requests, {} were lost, and {} executed twice",
        found.get(&0).unwrap_or(&0),
        found.get(&2).unwrap_or(&0)
    ));
    // The first 8 requests were never executed, and the last 8 were executed twice.
    assert_eq!(found, HashMap::from([(0, 8), (1, 16), (2, 8)]));
}

fn a_migration_that_fails_goes_on_where_it_stopped() {
    let done = Done::default();
    let mut random = Random::new(seed());
    let negotiation = Negotiation {
        extensions: extension::F_RESUME,
        ..NEGOTIATION
    };
    let side = Side::new(negotiation, &done);
    let mut queue = InFlight::new();
    side.start(&queue, 0);
    for _ in 0..40 {
        work(&side, &mut queue, &mut random);
        side.vhost.suspend().expect("suspending");
        side.vhost.queue_base(0).expect("the position");
        // A guest's other CPUs may still run and submit requests. The suspended device must keep
        // these requests and their kick.
        queue.reap();
        queue.submit_up_to(FLIGHT);
        side.vhost.resume().expect("resuming");
        side.daemon.holds(FLIGHT);
    }
    all_came_back_once(&side, &mut queue, &done);
    const { assert!(SIZE as usize >= 2 * FLIGHT) };
}
