// SPDX-License-Identifier: GPL-2.0

//! Network cards, driven by the kernel's virtio_net, or by hand through vhost.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use vduse::net::{Command, Mac, Settings, What};
use vduse::server::Handle;

use crate::lab::assert::data::assert_same;
use crate::lab::assert::random::Random;
use crate::lab::daemon::card::{self, Example, MAC};
use crate::lab::daemon::tap::{TapInterface, HERE};
use crate::lab::device::bus::{Driver, OnBus};
use crate::lab::device::test_device::{unique_name, TestDevice};
use crate::lab::device::virtio::feature;
use crate::lab::device::virtio::status::RESET;
use crate::lab::driver::card_driver::{frame, mac_set, CardDriver, TRANSMIT};
use crate::lab::driver::isolated_card::IsolatedCard;
use crate::lab::driver::peer::{Peer, THERE};
use crate::lab::driver::ring::{self, HandQueue};
use crate::lab::driver::vhost;
use crate::lab::kernel::memlock::unlimited_memlock;

tests![
    pings_go_both_ways => 60,
    data_arrives_as_it_was_sent => 60,
    data_is_intact_when_memory_comes_and_goes_meanwhile => 60,
    a_driver_uses_one_pair_of_two_without_mq => 60,
    a_new_daemon_takes_a_running_card_over => 60,
    a_control_queue_in_a_space_of_its_own_is_answered,
    a_malformed_command_is_refused_and_changes_nothing,
    a_reset_undoes_what_was_set_and_moved,
    pairs_come_into_use_when_the_driver_says_so,
    without_mq_the_control_queue_is_at_2,
    frames_that_nobody_has_room_for_do_not_keep_the_daemon_busy,
    the_example_says_what_the_driver_does,
];

fn pings_go_both_ways() {
    let tap = TapInterface::new(1);
    let shape = card::shape(1);
    let device = TestDevice::new(&shape.config());
    let _served = card::serve(&shape, &device, &tap);
    let peer = Peer::new(device.name());
    peer.ping_both_ways(64);
    peer.ping_both_ways(1400);
}

/// Sends data to the peer over TCP, and receives other data from the peer. Checks both.
#[track_caller]
fn exchange(peer: &Peer, bytes: usize) {
    let data = move |seed| {
        let mut data = vec![0; bytes];
        Random::new(seed).fill(&mut data);
        data
    };
    let (sender, ready) = std::sync::mpsc::channel();
    let there = peer.namespace().spawn(move || {
        let listener = TcpListener::bind((THERE, 7000)).unwrap();
        sender.send(()).unwrap();
        let (mut stream, from) = listener.accept().unwrap();
        assert_eq!(from.ip().to_string(), HERE);
        let mut found = vec![0; bytes];
        stream.read_exact(&mut found).unwrap();
        assert_same(&found, &data(1), "what came there");
        stream.write_all(&data(2)).unwrap();
    });
    ready.recv().unwrap();
    let mut stream = TcpStream::connect((THERE, 7000)).unwrap();
    stream.write_all(&data(1)).unwrap();
    let mut found = vec![0; bytes];
    stream.read_exact(&mut found).unwrap();
    assert_same(&found, &data(2), "what came here");
    there.join().unwrap();
}

fn data_arrives_as_it_was_sent() {
    let tap = TapInterface::new(1);
    let shape = card::shape(1);
    let device = TestDevice::new(&shape.config());
    let _served = card::serve(&shape, &device, &tap);
    let peer = Peer::new(device.name());
    exchange(&peer, 4 << 20);
}

/// Checks that data stays intact while the daemon registers and deregisters user memory. virtio_net
/// maps, unmaps and kicks in softirqs, which interrupt the daemon's ioctls.
fn data_is_intact_when_memory_comes_and_goes_meanwhile() {
    unlimited_memlock();
    let tap = TapInterface::new(1);
    let shape = card::shape(1);
    let device = TestDevice::new(&shape.config());
    // The bounce area has four times the 1,024 slots that the card's empty receive buffers take.
    device.set_bounce_size(16 << 20);
    let served = card::serve(&shape, &device, &tap);
    let peer = Peer::new(device.name());
    let handle = served.handle();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let traffic = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                exchange(&peer, 1 << 20);
            }
        });
        for _ in 0..10 {
            for change in [Handle::register_umem, Handle::deregister_umem] {
                let start = Instant::now();
                change(handle).unwrap();
                // The daemon forwarded no frames during the call of `change`. So the traffic now
                // gets as much time as that call took.
                std::thread::sleep(start.elapsed());
            }
            if traffic.is_finished() {
                break;
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
}

fn a_driver_uses_one_pair_of_two_without_mq() {
    let tap = TapInterface::new(2);
    let shape = card::shape(2);
    let device = TestDevice::new(&shape.config());
    let served = card::serve(&shape, &device, &tap);
    let peer = Peer::new(device.name());
    // If the daemon had enabled both queues of the TAP interface, the interface would spread these
    // flows over the queues.
    for _ in 0..4 {
        exchange(&peer, 64 << 10);
    }
    peer.ping_both_ways(64);
    let ready = |queue| served.device().vq_info(queue).unwrap().ready;
    assert_eq!([0, 1, 2, 3].map(ready), [1, 1, 0, 0]);
}

fn a_new_daemon_takes_a_running_card_over() {
    let tap = TapInterface::new(1);
    let shape = card::shape(1);
    let device = TestDevice::new(&shape.config());
    let daemon = Example::start(device.name(), &tap, &[]);
    let peer = Peer::new(device.name());
    daemon.says(&format!("Started({})", shape.features()));
    peer.ping_both_ways(64);
    daemon.kill();
    let daemon = Example::start(device.name(), &tap, &[]);
    daemon.says(&format!("Started({})", shape.features()));
    peer.ping_both_ways(1400);
    exchange(&peer, 64 << 10);
    // The peer is dropped first, because its removal needs a daemon that answers.
    drop(peer);
    drop(daemon);
}

const OTHER: Mac = [2, 0, 0, 0, 0, 2];
const GROUP: Mac = [1, 0, 0x5e, 0, 0, 1];

/// Starts a driver, and waits until the card's daemon reports the start.
#[track_caller]
fn start(card: &IsolatedCard, control: u32) -> CardDriver {
    let driver = CardDriver::start(card.vhost(), control);
    let features = driver.vhost.features().unwrap();
    card.until(&What::Started(features));
    driver
}

/// Sends a frame, and checks that the card's loopback port returns it.
#[track_caller]
fn frame_comes_back(driver: &mut CardDriver, to: Mac, byte: u8) {
    let frame = frame(to, byte);
    driver.transmit.send_frame(&frame);
    assert_same(&driver.receive.receive_frame(), &frame, "a frame");
}

fn a_control_queue_in_a_space_of_its_own_is_answered() {
    let card = IsolatedCard::new(1);
    let mut driver = start(&card, 2);
    let space = |group| card.served.handle().address_space(group);
    assert_eq!([space(0), space(1)], [0, 1]);

    let table = [&[1, 0, 0, 0, 0, 0][..], &[1, 0, 0, 0], &GROUP].concat();
    let commands = [
        (vec![0, 0, 0], Command::Promiscuous(false)),
        (mac_set(OTHER), Command::MacAddress(OTHER)),
        (
            table,
            Command::MacTable {
                unicast: vec![],
                multicast: vec![GROUP],
            },
        ),
    ];
    for (byte, (bytes, command)) in (0..).zip(commands) {
        // The transmit queue still works. Its memory has the same IOVAs as the control queue's
        // memory, in another address space.
        driver.receive.expect_frame();
        frame_comes_back(&mut driver, [0xff; 6], byte);
        assert_eq!(driver.control.command(&bytes), Some(0));
        assert_eq!(card.next().what, What::Done(command));
    }
    // The configuration space has the new address.
    assert_eq!(driver.vhost.config(0, 6).unwrap(), OTHER);
    // The settings take effect, so the driver receives only the second and the fourth of these
    // frames.
    driver.receive.expect_frame();
    driver.transmit.send_frame(&frame(MAC, 1));
    frame_comes_back(&mut driver, OTHER, 2);
    driver.receive.expect_frame();
    driver.transmit.send_frame(&frame([1, 0, 0x5e, 0, 0, 2], 3));
    frame_comes_back(&mut driver, GROUP, 4);
    card.is_quiet();
}

fn a_malformed_command_is_refused_and_changes_nothing() {
    let card = IsolatedCard::new(1);
    let mut driver = start(&card, 2);
    let group = mac_set(GROUP);
    let short = mac_set(OTHER)[..7].to_vec();
    let huge = [1, 0, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0];
    // The last two commands are of the classes MQ and VLAN, which the card does not offer.
    for bytes in [
        &[0][..],
        &[0, 0],
        &[0, 0, 0, 0],
        &[9, 9],
        &group,
        &short,
        &huge,
        &[4, 0, 1, 0],
        &[2, 0, 1, 0],
    ] {
        assert_eq!(driver.control.command(bytes), Some(1), "{bytes:?}");
        let event = card.next();
        let untouched = Settings::new(MAC);
        assert_eq!((event.what, event.settings), (What::Refused, untouched));
    }
    assert_eq!(driver.vhost.config(0, 6).unwrap(), MAC);
    assert_eq!(driver.control.command(&[0, 0, 0]), Some(0));
}

fn a_reset_undoes_what_was_set_and_moved() {
    let card = IsolatedCard::new(1);
    let mut driver = start(&card, 2);
    assert_eq!(driver.control.command(&mac_set(OTHER)), Some(0));
    assert_eq!(card.next().settings.mac, OTHER);
    assert_eq!(card.served.handle().address_space(1), 1);
    driver.vhost.set_status(RESET).unwrap();
    let event = card.until(&What::Reset);
    assert_eq!(event.settings, Settings::new(MAC));
    assert_eq!(card.served.handle().address_space(1), 0);
    assert_eq!(driver.vhost.config(0, 6).unwrap(), MAC);
    drop(driver);
    // The next driver finds a card in its initial state.
    let mut driver = start(&card, 2);
    driver.receive.expect_frame();
    frame_comes_back(&mut driver, OTHER, 7);
    assert_eq!(driver.control.command(&[0, 0, 1]), Some(0));
}

fn pairs_come_into_use_when_the_driver_says_so() {
    let card = IsolatedCard::new(2);
    let mut driver = start(&card, 4);
    for (pairs, answer) in [(0, 1), (3, 1), (2, 0), (1, 0)] {
        assert_eq!(driver.control.command(&[4, 0, pairs, 0]), Some(answer));
        let event = card.next();
        if answer == 0 {
            assert_eq!(event.what, What::Done(Command::Pairs(pairs.into())));
            assert_eq!(event.settings.pairs, u16::from(pairs));
        } else {
            assert_eq!((event.what, event.settings.pairs), (What::Refused, 1));
        }
    }
}

fn without_mq_the_control_queue_is_at_2() {
    let card = IsolatedCard::new(2);
    let vhost = card.vhost();
    let groups = [0, 1, 2, 3, 4].map(|queue| vhost.group_of(queue).unwrap());
    assert_eq!(groups, [0, 0, 0, 0, 1]);
    ring::agree_without(&vhost, feature::NET_MQ);
    vhost.set_group_asid(1, 1).unwrap();
    // Queue 2 is in group 0, and group 0 was not moved.
    let mut control = HandQueue::prepare(&vhost, 2, 0, TRANSMIT);
    control.set_up(&vhost);
    ring::start(&vhost);
    assert_eq!(control.command(&mac_set(OTHER)), Some(0));
    let event = card.until(&What::Done(Command::MacAddress(OTHER)));
    assert_eq!(event.settings.mac, OTHER);
    // The command that sets the number of pairs requires `NET_MQ`, so it fails.
    assert_eq!(control.command(&[4, 0, 2, 0]), Some(1));
}

fn frames_that_nobody_has_room_for_do_not_keep_the_daemon_busy() {
    let card = IsolatedCard::new(1);
    let mut driver = start(&card, 2);
    for byte in 0..3 {
        driver.transmit.send_frame(&frame(MAC, byte));
    }
    card.served.falls_asleep();
    for byte in 0..3 {
        driver.receive.expect_frame();
        let received = driver.receive.receive_frame();
        assert_same(&received, &frame(MAC, byte), "a frame");
    }
}

fn the_example_says_what_the_driver_does() {
    let tap = TapInterface::new(1);
    let name = unique_name();
    let options = ["--isolate", "--mac", "02:00:00:00:00:01"];
    let device = TestDevice::adopt(&name);
    let example = Example::start(&name, &tap, &options);
    let on_bus = OnBus::add_soon(&name);
    on_bus.bind(Driver::Vhost).unwrap();
    let vhost = vhost::open(&device);
    ring::agree(&vhost);
    vhost.set_group_asid(1, 1).unwrap();
    example.says("Moved { group: 1, asid: 1 }");
    let mut control = HandQueue::prepare(&vhost, 2, 1, TRANSMIT);
    control.set_up(&vhost);
    ring::start(&vhost);
    example.says(&format!("Started({})", 0x3_0087_0020u64));
    assert_eq!(control.command(&mac_set(OTHER)), Some(0));
    example.says("Done(MacAddress([2, 0, 0, 0, 0, 2]))");
    assert_eq!(control.command(&[7, 7, 7]), Some(1));
    example.says("Refused");
    vhost.set_status(RESET).unwrap();
    example.says("Reset");
    drop(vhost);
    drop(on_bus);
}
