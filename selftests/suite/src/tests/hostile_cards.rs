// SPDX-License-Identifier: GPL-2.0

//! Daemons that answer the commands of a network card wrongly, late, or never. The kernel's own
//! driver, virtio_net, holds the lock of all network configuration (RTNL) while it waits for an
//! answer. The tests check that the VDUSE driver's shadow of the control queue answers in time,
//! whatever the daemon does.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use vm_memory::Bytes;

use crate::lab::assert::limit::{Limit, Pace};
use crate::lab::assert::random::Random;
use crate::lab::assert::timing::{soon, stays};
use crate::lab::daemon::card::{pairs_at_first, Example};
use crate::lab::daemon::control_ring::{ControlRing, Controller, ERR, OK};
use crate::lab::daemon::tap::TapInterface;
use crate::lab::device::bus::Driver;
use crate::lab::device::test_device::{unique_name, TestDevice};
use crate::lab::device::virtio::{feature, link};
use crate::lab::driver::hand_card::{address, ended, hand_config, next, HandCard, INDEX};
use crate::lab::driver::namespace::ip;
use crate::lab::driver::peer::Peer;
use crate::lab::driver::rtnl::{Watch, LIMIT, SLACK};
use crate::lab::kernel::modules::tool;
use crate::lab::run::settings::seed;

tests![
    malformed_answers_fail_a_command_and_no_more,
    commands_fail_at_once_until_a_late_answer_has_come,
    a_late_answer_brings_the_daemon_up_to_date,
    a_daemon_that_dies_with_a_command_is_replaced_by_one_that_answers,
    a_command_that_was_given_up_is_not_carried_out_by_the_next_daemon,
    without_a_daemon_commands_fail_at_once,
    a_silent_daemon_holds_the_lock_no_longer_than_the_limit => 60,
    a_slow_daemon_holds_the_lock_a_tenth_of_the_time => 90,
    a_daemon_that_wants_announcements_all_the_time_does_not_hold_the_lock => 60,
    a_daemon_that_scribbles_over_the_queue_harms_itself_only => 90,
    interrupts_without_end_do_no_harm => 60,
    a_stopped_daemon_holds_the_lock_no_longer_than_the_limit => 60,
    a_card_that_is_removed_while_a_command_waits_is_removed => 60,
    fewer_pairs_never_fail,
    a_program_that_is_killed_does_not_wait,
];

/// Asserts that less than `limit` has passed since `begin`. On a slow machine, the limit is
/// extended.
#[track_caller]
fn assert_quick(begin: Instant, limit: Duration) {
    let took = begin.elapsed();
    assert!(took < Pace::measured().stretch(limit), "{took:?}");
}

fn malformed_answers_fail_a_command_and_no_more() {
    let (card, mut ring) = HandCard::taken();
    // Asserts that a command fails if the daemon answers `OK` and then spoils the used ring.
    let fail = |ring: &mut ControlRing, last, spoil: &dyn Fn(&ControlRing, u16)| {
        let begin = Instant::now();
        let child = card.set_address(last);
        let taken = next(ring, &address(last));
        ring.write_answer(&taken, OK);
        spoil(ring, ring.available());
        ring.interrupt();
        assert!(!ended(child));
        // The command fails before its time limit.
        assert_quick(begin, LIMIT);
        // Once the daemon has answered properly, commands can succeed again.
        ring.answer(&taken, OK);
    };
    for (last, index) in (1..).zip([1_u16, 2, 0x7fff, 0x8000, 0xfffe]) {
        fail(&mut ring, last, &|ring, available| {
            ring.set_used(available.wrapping_add(index));
        });
    }
    for (last, id) in (11..).zip([1, 255, 256, 0x1_0000, u32::MAX]) {
        fail(&mut ring, last, &|ring, available| {
            ring.use_id(id);
            ring.set_used(available);
        });
    }
    for answer in [ERR, 2, 0x80, 0xff] {
        let child = card.set_address(30);
        let taken = next(&mut ring, &address(30));
        ring.answer(&taken, answer);
        assert!(!ended(child));
    }
    let child = card.set_address(31);
    let taken = next(&mut ring, &address(31));
    ring.answer(&taken, OK);
    assert!(ended(child));
}

fn commands_fail_at_once_until_a_late_answer_has_come() {
    let (card, mut ring) = HandCard::taken();
    let child = card.set_address(1);
    let taken = next(&mut ring, &address(1));
    assert!(!ended(child));
    let begin = Instant::now();
    for last in 2..12 {
        assert!(!ended(card.set_address(last)));
    }
    assert_quick(begin, 10 * LIMIT / 2);
    // The daemon has received no further command.
    assert_eq!(ring.take(), None);
    ring.answer(&taken, OK);
    // During this sleep, the VDUSE driver regains part of its time budget for commands. The VDUSE
    // driver may first restore the card's former address by a command of its own. In that case,
    // `next` answers this command.
    std::thread::sleep(3 * LIMIT);
    let child = card.set_address(12);
    let taken = next(&mut ring, &address(12));
    ring.answer(&taken, OK);
    assert!(ended(child));
}

fn a_late_answer_brings_the_daemon_up_to_date() {
    let (card, mut ring) = HandCard::taken();
    // virtio_net sends three commands in a row: promiscuous mode, all-multicast mode, and the MAC
    // filter tables.
    assert!(card.ip("promisc on"));
    let late = next(&mut ring, &[0, 0, 1]);
    std::thread::sleep(2 * LIMIT);
    ring.answer(&late, OK);
    // The VDUSE driver now resends at least the second and the third command, which failed
    // immediately. The first command failed immediately as well if the driver's time budget was
    // already used up. In that case, the driver has resent the first command, and the late answer
    // was to the resent command.
    let mut seen = Vec::new();
    soon("the others are sent", || {
        while let Some(taken) = ring.take() {
            ring.answer(&taken, OK);
            seen.push(taken.bytes[..2].to_vec());
        }
        [[0, 1], [1, 0]]
            .iter()
            .all(|wanted| seen.contains(&wanted.to_vec()))
    });
    stays("nothing else is sent", || ring.take().is_none());
}

fn a_daemon_that_dies_with_a_command_is_replaced_by_one_that_answers() {
    let (mut card, mut ring) = HandCard::taken();
    let child = card.set_address(1);
    let _ = next(&mut ring, &address(1));
    // The daemon leaves an invalid used index in the ring.
    ring.set_used(0x4321);
    let seen = Arc::new(Mutex::new(Vec::new()));
    let ours = seen.clone();
    drop(ring);
    card.replace();
    let used = card.counters().1;
    card.controller = Some(Controller::from(card.file(), INDEX, used, move |bytes| {
        ours.lock().expect("the commands").push(bytes.to_vec());
        Some(OK)
    }));
    let succeeded = ended(child);
    soon("all that was set is set again", || {
        let (available, used) = card.counters();
        available == used
    });
    let seen = seen.lock().expect("the commands");
    let times = seen.iter().filter(|bytes| **bytes == address(1)).count();
    // If the command succeeded, the new daemon has answered it. The command fails if the new daemon
    // was too slow. In both cases, the VDUSE driver must not send the command again and again.
    if succeeded {
        assert!(times >= 1, "{seen:?}");
    }
    assert!(times <= 2, "{seen:?}");
}

fn a_command_that_was_given_up_is_not_carried_out_by_the_next_daemon() {
    let (mut card, mut ring) = HandCard::taken();
    let child = card.set_address(1);
    let _ = next(&mut ring, &address(1));
    assert!(!ended(child));
    let before = card.counters().1;
    drop(ring);
    card.replace();
    let (available, used) = card.counters();
    assert_eq!(available, used, "nothing is left of it");
    assert_eq!(used, before.wrapping_add(1));
    // The new daemon continues at the used index of its predecessor. The new daemon must not find
    // the command that its predecessor left unanswered, because that command has been withdrawn.
    let mut ring = ControlRing::attach(card.file(), INDEX, before).expect("a control queue");
    let mut seen = Vec::new();
    soon("what was set is set again", || {
        while let Some(taken) = ring.take() {
            ring.answer(&taken, OK);
            seen.push(taken.bytes);
        }
        seen.len() > 1
    });
    assert!(seen.iter().all(|bytes| *bytes != address(1)), "{seen:?}");
}

fn without_a_daemon_commands_fail_at_once() {
    let (mut card, ring) = HandCard::taken();
    drop(ring);
    card.end_daemon();
    for last in 1..6 {
        let begin = Instant::now();
        assert!(!ended(card.set_address(last)));
        assert_quick(begin, LIMIT * 3 / 5);
    }
    assert!(card.ip("promisc on"));
    card.begin_daemon();
    let used = card.counters().1;
    let (sender, commands) = mpsc::channel();
    card.controller = Some(Controller::from(card.file(), INDEX, used, move |bytes| {
        let _ = sender.send(bytes.to_vec());
        Some(OK)
    }));
    soon("the receive mode is set", || {
        commands.try_iter().any(|bytes| bytes == [0, 0, 1])
    });
}

fn a_silent_daemon_holds_the_lock_no_longer_than_the_limit() {
    let watch = Watch::start();
    // The daemon does not even answer the first command, which virtio_net sends when the card is
    // bound.
    let card = HandCard::answering(|_| None);
    for words in [
        "up",
        "promisc on",
        "address 02:00:00:00:00:77",
        "allmulticast on",
    ] {
        card.ip(words);
    }
    for pairs in ["1", "2"] {
        let _ = tool("ethtool", &["-L", &card.interface(), "combined", pairs]);
    }
    card.ip("down");
    drop(card);
    watch
        .end()
        .assert("a silent daemon", LIMIT + SLACK, 3 * LIMIT);
}

fn a_slow_daemon_holds_the_lock_a_tenth_of_the_time() {
    let card = HandCard::answering(|_| {
        std::thread::sleep(LIMIT / 3);
        Some(OK)
    });
    card.ip("up");
    std::thread::sleep(2 * LIMIT);
    let watch = Watch::start();
    let begin = Instant::now();
    let mut count = 0;
    while begin.elapsed() < 10 * LIMIT {
        card.ip(["promisc on", "promisc off"][count % 2]);
        count += 1;
        std::thread::sleep(Duration::from_millis(20));
    }
    let held = watch.end();
    // The lock may be held for the full time budget (`LIMIT`) plus a tenth of the elapsed time.
    // Another tenth of the elapsed time is allowed for `ip` itself and for the commands that fail
    // immediately.
    let most = LIMIT + begin.elapsed() / 10 + begin.elapsed() / 10;
    held.assert("a slow daemon", LIMIT + SLACK, most);
}

fn a_daemon_that_wants_announcements_all_the_time_does_not_hold_the_lock() {
    let mut config = hand_config();
    config.features |= feature::NET_GUEST_ANNOUNCE;
    let card = HandCard::new(&config, |file| {
        Some(Controller::answering(file, INDEX, |bytes| {
            (bytes != [3, 0]).then_some(OK)
        }))
    });
    card.ip("up");
    let watch = Watch::start();
    let begin = Instant::now();
    let status = (link::UP | link::ANNOUNCE).to_le_bytes();
    while begin.elapsed() < 5 * LIMIT {
        card.file().set_config(6, &status).expect("the status");
        card.file().inject_config_irq().expect("telling of it");
    }
    let held = watch.end();
    let most = SLACK;
    held.assert("announcements without end", SLACK, most);
    drop(card);
}

fn a_daemon_that_scribbles_over_the_queue_harms_itself_only() {
    let mut random = Random::new(seed());
    let card = HandCard::new(&hand_config(), |file| {
        Some(Controller::new(file, INDEX, move |ring| {
            let len = ring.memory().len();
            for _ in 0..64 {
                let mut bytes = vec![0; 1 + random.below(64) as usize];
                random.fill(&mut bytes);
                if random.one_in(4) {
                    // If the used index is near the available index, the driver is likely to
                    // believe that the daemon has answered.
                    let available = ring.available();
                    ring.set_used(available.wrapping_add(random.below(3) as u16));
                } else {
                    let at = random.below((len - bytes.len()) as u64) as usize;
                    let written = ring.memory().bytes().write_slice(&bytes, at);
                    written.expect("inside the memory");
                }
            }
            ring.interrupt();
            true
        }))
    });
    let watch = Watch::start();
    let mut limit = Limit::new(6 * LIMIT);
    let mut last = 0;
    while !limit.is_over() {
        card.ip(["up", "promisc on", "promisc off", "down"][usize::from(last % 4)]);
        let _ = ended(card.set_address(last));
        last = last.wrapping_add(1);
    }
    let held = watch.end();
    held.assert("a scribbling daemon", LIMIT + SLACK, 30 * LIMIT);
}

fn interrupts_without_end_do_no_harm() {
    let card = HandCard::answering(|_| Some(OK));
    card.ip("up");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let _ = card.file().inject_vq_irq(INDEX);
                }
            });
        }
        for last in 0..50 {
            assert!(ended(card.set_address(last)));
        }
        stop.store(true, Ordering::Relaxed);
    });
}

fn a_stopped_daemon_holds_the_lock_no_longer_than_the_limit() {
    let tap = TapInterface::new(2);
    let name = unique_name();
    let device = TestDevice::adopt(&name);
    let options = ["--control", "--pairs", "2", "--mac", "02:00:00:00:00:01"];
    let daemon = Example::start(&name, &tap, &options);
    let peer = Peer::new(&name);
    daemon.says(&format!("Done(Pairs({}))", pairs_at_first(2)));
    let interface = peer.interface();
    let set = |words: &str| {
        // The command may fail, because the daemon is stopped.
        let words = format!(
            "-n {} link set {interface} {words}",
            peer.namespace().name()
        );
        let words: Vec<_> = words.split(' ').collect();
        let _ = tool("ip", &words);
    };
    for round in 0..3 {
        let watch = Watch::start();
        daemon.signal(rustix::process::Signal::STOP);
        set("promisc on");
        set(&format!("address 02:00:00:00:00:1{round}"));
        set("allmulticast on");
        set("promisc off");
        let held = watch.end();
        daemon.signal(rustix::process::Signal::CONT);
        held.assert("a stopped daemon", LIMIT + SLACK, 2 * LIMIT);
        // The VDUSE driver sends the daemon the settings that the daemon has missed.
        daemon.says("Done(Promiscuous(false))");
        ip(&format!("neighbour flush dev {}", tap.name()));
        peer.ping_both_ways(64);
        set("allmulticast off");
        // During this sleep, the VDUSE driver regains part of its time budget for commands.
        std::thread::sleep(Duration::from_secs(3));
    }
    drop(peer);
    drop(daemon);
    drop(device);
}

fn a_card_that_is_removed_while_a_command_waits_is_removed() {
    for _ in 0..5 {
        let (card, mut ring) = HandCard::taken();
        let child = card.set_address(1);
        let _ = next(&mut ring, &address(1));
        let begin = Instant::now();
        card.on_bus.unbind(Driver::Virtio).expect("unbinding");
        assert!(!ended(child));
        assert_quick(begin, 5 * LIMIT);
    }
}

/// Checks that virtio_net can always reduce its number of queue pairs. The kernel warns if the
/// reduction fails when an XDP program is removed.
fn fewer_pairs_never_fail() {
    let mut card = HandCard::answering(|_| Some(OK));
    let interface = card.interface();
    let pairs = |pairs: &str| tool("ethtool", &["-L", &interface, "combined", pairs]);
    pairs("2").expect("two pairs");
    card.end_daemon();
    pairs("1").expect("one pair");
    pairs("2").expect_err("two pairs without a daemon");
    card.begin_daemon();
    let (sender, commands) = mpsc::channel();
    let used = card.counters().1;
    card.controller = Some(Controller::from(card.file(), INDEX, used, move |bytes| {
        let _ = sender.send(bytes.to_vec());
        Some(if bytes == [4, 0, 1, 0] { ERR } else { OK })
    }));
    soon("the new daemon is told of one pair", || {
        commands.try_iter().any(|bytes| bytes == [4, 0, 1, 0])
    });
    pairs("2").expect("two pairs");
    pairs("1").expect("one pair, which the daemon refuses");
}

fn a_program_that_is_killed_does_not_wait() {
    let (card, mut ring) = HandCard::taken();
    let begin = Instant::now();
    let mut child = card.set_address(1);
    let _ = next(&mut ring, &address(1));
    child.kill().expect("killing");
    child.wait().expect("waiting");
    assert_quick(begin, LIMIT * 3 / 4);
}
