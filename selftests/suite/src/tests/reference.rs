// SPDX-License-Identifier: GPL-2.0

//! Virtqueue groups and address spaces, compared with those of another vDPA driver: the kernel's
//! own simulator of a network card. Both devices get the same calls from a vhost client. The tests
//! are skipped if the kernel has no simulator.

use std::io;

use rustix::io::Errno;

use crate::lab::assert::data::assert_same;
use crate::lab::daemon::card::MAC;
use crate::lab::device::bus::{Driver, OnBus};
use crate::lab::device::test_device::unique_name;
use crate::lab::device::virtio::status::RESET;
use crate::lab::driver::card_driver::{frame, mac_set, CardDriver, RECEIVE, TRANSMIT};
use crate::lab::driver::isolated_card::IsolatedCard;
use crate::lab::driver::ring::{self, HandQueue};
use crate::lab::driver::vhost::{self, access, Vhost};
use crate::lab::kernel::memory::page_of;
use crate::lab::kernel::modules;
use crate::lab::run::report::{note, skip};

tests![
    a_control_queue_in_a_space_of_its_own_is_answered,
    a_reset_puts_the_control_queue_back_to_space_0,
    what_is_refused_is_refused_alike,
];

/// Runs `check` with a card of the simulator, and then with a VDUSE card. Returns both results.
///
/// Both cards have a pair of queues in group 0, a control queue in group 1, and two address spaces.
#[track_caller]
fn both<R>(check: impl Fn(&dyn Fn() -> Vhost) -> R) -> [R; 2] {
    if let Err(error) = modules::tool("modprobe", &["vdpa_sim_net"]) {
        skip(format!("no simulator here: {error}"));
    }
    let simulated = OnBus::add_by("vdpasim_net", &unique_name()).expect("a simulated card");
    simulated.bind(Driver::Vhost).expect("binding it");
    note("the simulator");
    let theirs = check(&|| vhost::open_by_name(simulated.name()));

    note("ours");
    let card = IsolatedCard::new(1);
    [theirs, check(&|| card.vhost())]
}

/// Sends a broadcast frame, and checks that the card returns the frame.
#[track_caller]
fn frame_comes_back(driver: &mut CardDriver, byte: u8) {
    let sent = frame([0xff; 6], byte);
    driver.receive.expect_frame();
    driver.transmit.send_frame(&sent);
    assert_same(&driver.receive.receive().1, &sent, "a frame");
}

fn a_control_queue_in_a_space_of_its_own_is_answered() {
    both(|open| {
        let mut driver = CardDriver::start(open(), 2);
        for byte in 1..4 {
            let mac = [2, 0, 0, 0, 0, byte];
            frame_comes_back(&mut driver, byte);
            assert_eq!(driver.control.command(&mac_set(mac)), Some(0));
            assert_eq!(driver.vhost.config(0, 6).unwrap(), mac);
        }
    });
}

fn a_reset_puts_the_control_queue_back_to_space_0() {
    both(|open| {
        let mut driver = CardDriver::start(open(), 2);
        assert_eq!(driver.control.command(&mac_set(MAC)), Some(0));
        let CardDriver { vhost, .. } = driver;
        vhost.set_status(RESET).unwrap();
        // The next driver uses address space 0 only.
        ring::agree(&vhost);
        let at = RECEIVE + (TRANSMIT - RECEIVE) * 2;
        let mut control = HandQueue::prepare(&vhost, 2, 0, at);
        control.set_up(&vhost);
        ring::start(&vhost);
        assert_eq!(control.command(&mac_set(MAC)), Some(0));
    });
}

fn what_is_refused_is_refused_alike() {
    let [theirs, ours] = both(|open| {
        let vhost = open();
        let mut answers = Vec::new();
        let mut say = |what: String, result: io::Result<u32>| {
            answers.push((what, result.map_err(|error| Errno::from_io_error(&error))));
        };
        say("groups".into(), vhost.groups());
        say("spaces".into(), vhost.address_spaces());
        for queue in [0, 1, 2, 3, u32::MAX] {
            say(format!("group of {queue}"), vhost.group_of(queue));
        }
        let page = page_of(1);
        let mut moves = |vhost: &Vhost, when: &str| {
            for (group, asid) in [(0, 1), (1, 1), (1, 0), (0, 0), (0, 2), (2, 0)] {
                let moved = vhost.set_group_asid(group, asid).map(|()| 0);
                say(format!("{when}: {group} to {asid}"), moved);
            }
            let beyond = vhost.set_group_asid(u32::MAX, 0).map(|()| 0);
            say(format!("{when}: no such group"), beyond);
            let beyond = vhost.set_group_asid(0, u32::MAX).map(|()| 0);
            say(format!("{when}: no such space"), beyond);
        };
        moves(&vhost, "at first");
        ring::agree(&vhost);
        moves(&vhost, "with features");
        ring::start(&vhost);
        moves(&vhost, "ready");
        vhost.set_status(RESET).unwrap();
        moves(&vhost, "reset");
        // In each of the two address spaces, this IOVA can be mapped once.
        for asid in [0, 1, 0, 2, u32::MAX] {
            let mapped = vhost.map_in(asid, 0x1_0000, &page, access::RW);
            say(format!("map in {asid}"), mapped.map(|()| 0));
        }
        for asid in [1, 1, 0, 2] {
            let unmapped = vhost.unmap_in(asid, 0x1_0000, page.len() as u64);
            say(format!("unmap in {asid}"), unmapped.map(|()| 0));
        }
        answers
    });
    assert!(theirs.iter().any(|(_, answer)| answer.is_err()));
    assert_eq!(theirs, ours);
}
