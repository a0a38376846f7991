// SPDX-License-Identifier: GPL-2.0

//! Repeated switches of virtqueue groups between address spaces: their duration, and their effects
//! under load.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::lab::assert::data::assert_same;
use crate::lab::assert::random::Random;
use crate::lab::daemon::groups::{GroupsDaemon, MARK};
use crate::lab::device::bus::{Driver, OnBus};
use crate::lab::device::test_device::{unique_name, TestDevice};
use crate::lab::device::virtio::status::RESET;
use crate::lab::driver::ring::{self, HandQueue, LEN};
use crate::lab::driver::vhost::{self, Vhost};
use crate::lab::kernel::memory::{page_of, PAGE};
use crate::lab::kernel::rcu::Expedited;
use crate::lab::run::report::note;
use crate::lab::run::settings::seed;

tests![
    a_switch_takes_a_short_time,
    switching_10_000_times_under_load_mixes_nothing_up => 150,
];

/// A device with two groups, two address spaces and a daemon. The fields are dropped in declaration
/// order.
struct Setup {
    _on_bus: OnBus,
    daemon: GroupsDaemon,
    device: TestDevice,
}

impl Setup {
    #[track_caller]
    fn new() -> Self {
        let name = unique_name();
        let device = TestDevice::adopt(&name);
        let daemon = GroupsDaemon::start(&name, 2, 2);
        let on_bus = OnBus::add(&name).expect("adding");
        on_bus.bind(Driver::Vhost).expect("binding");
        Self {
            _on_bus: on_bus,
            daemon,
            device,
        }
    }

    #[track_caller]
    fn vhost(&self) -> Vhost {
        vhost::open(&self.device)
    }
}

/// Switches a group repeatedly. Returns the mean time of a switch to the group's current address
/// space, and the mean time of a switch to another address space.
#[track_caller]
fn time(vhost: &Vhost, rounds: u32) -> [Duration; 2] {
    [0, 1].map(|step| {
        let begin = Instant::now();
        for round in 0..rounds {
            vhost.set_group_asid(1, round * step % 2).expect("a switch");
        }
        begin.elapsed() / rounds
    })
}

fn a_switch_takes_a_short_time() {
    let setup = Setup::new();
    let vhost = setup.vhost();
    let [same, other] = time(&vhost, 20);
    note(format_args!(
        "a switch takes {other:?}, one to the same address space {same:?}"
    ));
    let _expedited = Expedited::new();
    let [same, other] = time(&vhost, 200);
    note(format_args!(
        "with expedited grace periods {other:?} and {same:?}"
    ));
    // The notes record the times for the reader of the log. The test fails only if a switch is much
    // slower than usual.
    assert!(other < Duration::from_millis(500));
}

/// The total number of switches.
const SWITCHES: u64 = 10_000;
/// The number of switches that [`burst`] makes before it uses the rings.
const BURST: u64 = 200;

fn switching_10_000_times_under_load_mixes_nothing_up() {
    let _expedited = Expedited::new();
    let mut random = Random::new(seed());
    let mut setup = Setup::new();
    let vhost = setup.vhost();
    let stop = AtomicBool::new(false);
    let maps = AtomicU64::new(0);
    let mut switches = 0;
    let begin = Instant::now();
    std::thread::scope(|scope| {
        // These threads map and unmap a page in each address space. The page contains the number of
        // its address space, which the daemon checks.
        for asid in 0..2 {
            let (vhost, stop, maps) = (&vhost, &stop, &maps);
            scope.spawn(move || {
                let page = page_of(asid as u8);
                while !stop.load(Ordering::Relaxed) {
                    vhost.map_in(asid, MARK, &page, 1).expect("mapping");
                    vhost.unmap_in(asid, MARK, PAGE).expect("unmapping");
                    maps.fetch_add(1, Ordering::Relaxed);
                    // The mutex of the vhost client is not fair, so this thread pauses to let other
                    // threads take it.
                    std::thread::sleep(Duration::from_millis(5));
                }
            });
        }
        // The other threads must end even if this one fails.
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            while switches < SWITCHES {
                burst(&vhost, &mut random);
                switches += BURST;
                setup.daemon.check();
            }
        }));
        stop.store(true, Ordering::Relaxed);
        if let Err(panic) = result {
            std::panic::resume_unwind(panic);
        }
    });
    note(format_args!(
        "{switches} switches of {SWITCHES} and {} maps in {:?}",
        maps.load(Ordering::Relaxed),
        begin.elapsed()
    ));
    setup.daemon.check();
}

/// Switches groups at random, and then does I/O in both rings. Each ring is in the address space of
/// its group.
#[track_caller]
fn burst(vhost: &Vhost, random: &mut Random) {
    // The last reset has moved both groups back to address space 0.
    let mut asids = [0; 2];
    for _ in 0..BURST {
        let (group, asid) = (random.below(2) as u32, random.below(2) as u32);
        vhost.set_group_asid(group, asid).expect("a switch");
        asids[group as usize] = asid;
    }
    ring::agree(vhost);
    // Both rings have the same IOVA, unless the groups are in the same address space.
    let iovas = [0x10_0000, 0x10_0000 << u32::from(asids[0] == asids[1])];
    let mut queues =
        [0, 1].map(|n| HandQueue::prepare(vhost, n, asids[n as usize], iovas[n as usize]));
    for queue in &queues {
        queue.set_up(vhost);
    }
    ring::start(vhost);
    for _ in 0..4 {
        for queue in &mut queues {
            let sector = random.below(16);
            assert_same(&queue.read(sector), &[sector as u8 + 1; 512], "a sector");
        }
    }
    vhost.set_status(RESET).expect("a reset");
    for n in 0..2 {
        vhost.unmap_in(asids[n], iovas[n], LEN).expect("unmapping");
    }
}
