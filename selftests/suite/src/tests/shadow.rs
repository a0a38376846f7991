// SPDX-License-Identifier: GPL-2.0

//! The shadow of a network card's control queue. The kernel's own driver, virtio_net, sends its
//! commands to the VDUSE driver, which passes them on to the daemon. virtio_net holds the lock of
//! all network configuration (RTNL) while it waits for an answer, so no daemon may make it wait for
//! long.

use std::collections::HashSet;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::sync::Arc;

use vduse::net::{Command as Set, Event, Groups, Net, Port, Shape, Tap, What};

use crate::lab::assert::timing::soon;
use crate::lab::daemon::card::{self, pairs_at_first, Example};
use crate::lab::daemon::control_ring::{ControlRing, Controller, ERR, OK};
use crate::lab::daemon::responder::Responder;
use crate::lab::daemon::serving::Serving;
use crate::lab::daemon::tap::{TapInterface, HERE};
use crate::lab::device::bus::{self, Driver, OnBus};
use crate::lab::device::test_device::{net_config, unique_name, TestDevice};
use crate::lab::device::virtio::feature;
use crate::lab::driver::hand_card::{accepted, ended, hand_config, HandCard, INDEX};
use crate::lab::driver::namespace::ip;
use crate::lab::driver::peer::{Peer, DISCARD};
use crate::lab::kernel::modules::tool;
use crate::lab::run::report::skip;

tests![
    virtio_net_uses_all_four_pairs => 60,
    the_number_of_pairs_is_changed,
    addresses_and_receive_modes_reach_the_daemon,
    one_pair_has_a_control_queue_too,
    a_new_daemon_is_told_what_was_set => 60,
    a_control_queue_of_a_group_of_its_own_works,
    the_next_driver_begins_anew,
    vlans_are_filtered_and_restored,
    what_is_offered_is_what_is_known,
    the_log_says_once_what_is_hidden_and_why,
    a_daemon_never_sees_where_the_drivers_own_queue_is,
    the_number_of_pairs_that_counts_is_the_first,
    a_number_of_pairs_that_does_not_fit_is_hidden,
    a_card_without_an_address_is_given_one_that_the_daemon_is_not_told_of,
    more_commands_than_the_queue_has_descriptors_work,
    short_control_queues_work_or_are_hidden => 60,
];

/// A port that uses a queue of a TAP interface, and counts the frames that it sends.
struct Counted {
    tap: Tap,
    sent: Arc<AtomicU64>,
}

impl Port for Counted {
    fn send(&mut self, frame: &[u8]) -> std::io::Result<()> {
        let _ = self.sent.fetch_add(1, Ordering::Relaxed);
        self.tap.send(frame)
    }

    fn receive(&mut self, buffer: &mut [u8]) -> std::io::Result<Option<usize>> {
        self.tap.receive(buffer)
    }

    fn descriptor(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        self.tap.descriptor()
    }

    fn enable(&mut self, on: bool) -> std::io::Result<()> {
        self.tap.enable(on)
    }
}

/// A card that the `vduse` library serves on a TAP interface, and that virtio_net drives in another
/// network namespace. The fields are dropped in this order.
struct Card {
    peer: Peer,
    served: Serving<Net<Counted>>,
    events: Receiver<Event>,
    /// The number of frames that each queue pair has sent.
    sent: Vec<Arc<AtomicU64>>,
    _device: TestDevice,
    tap: TapInterface,
}

fn shape(pairs: u16) -> Shape {
    let mut shape = card::shape(pairs);
    shape.control = true;
    shape
}

impl Card {
    #[track_caller]
    fn new(shape: &Shape) -> Self {
        let tap = TapInterface::new(shape.pairs);
        shape.create().expect("creating the card");
        let device = TestDevice::adopt(&shape.name);
        let (sender, events) = mpsc::channel();
        let sent: Vec<_> = (0..shape.pairs)
            .map(|_| Arc::new(AtomicU64::new(0)))
            .collect();
        let taps = Tap::open(tap.name(), shape.pairs).expect("opening the TAP interface");
        let ports = taps.into_iter().zip(&sent).map(|(tap, sent)| Counted {
            tap,
            sent: sent.clone(),
        });
        let card = Net::new(shape.mac, ports.collect())
            .expect("a card")
            .observed_by(move |event| drop(sender.send(event)));
        let server = shape.server(device.open_nonblocking(), card);
        let served = Serving::run(server.expect("serving the card"));
        let peer = Peer::new(device.name());
        Self {
            peer,
            served,
            events,
            sent,
            _device: device,
            tap,
        }
    }

    /// Waits until the daemon has executed the command `wanted`.
    #[track_caller]
    fn until(&self, wanted: &Set) {
        let mut seen = Vec::new();
        let wanted = What::Done(wanted.clone());
        soon(&format!("{wanted:?}"), || {
            seen.extend(self.events.try_iter().map(|event| event.what));
            seen.contains(&wanted)
        });
    }

    /// Runs `ip link set` on the interface.
    #[track_caller]
    fn set(&self, words: &str) {
        let interface = self.peer.interface();
        self.peer
            .namespace()
            .ip(&format!("link set {interface} {words}"));
    }

    /// Sends frames in many flows until each of the first `pairs` queue pairs has sent some.
    #[track_caller]
    fn send_on_all(&self, pairs: usize) {
        let before: Vec<_> = self
            .sent
            .iter()
            .map(|n| n.load(Ordering::Relaxed))
            .collect();
        soon("each pair sends frames", || {
            self.peer.send_flows(HERE, DISCARD, 64);
            let sent = self.sent.iter().zip(&before);
            let mut sent = sent.map(|(n, before)| n.load(Ordering::Relaxed) > *before);
            sent.by_ref().take(pairs).all(|sent| sent)
        });
    }
}

fn virtio_net_uses_all_four_pairs() {
    let shape = shape(4);
    let card = Card::new(&shape);
    card.until(&Set::Pairs(pairs_at_first(4)));
    card.peer.ping_both_ways(64);
    let ready = |queue| card.served.device().vq_info(queue).unwrap().ready;
    assert_eq!((0..9).map(ready).sum::<u8>(), 9);
    card.peer.ethtool("-L", "combined 4");
    card.until(&Set::Pairs(4));
    card.send_on_all(4);
    card.peer.ping_both_ways(1400);
}

fn the_number_of_pairs_is_changed() {
    let shape = shape(4);
    let card = Card::new(&shape);
    for pairs in [4, 1, 3, 2, 4] {
        card.peer.ethtool("-L", &format!("combined {pairs}"));
        card.until(&Set::Pairs(pairs));
        card.send_on_all(pairs.into());
        card.peer.ping_both_ways(64);
    }
    let said = card.peer.ethtool("-l", "");
    // Both the maximum number of pairs and the current number are 4.
    assert_eq!(said.matches("Combined:\t4").count(), 2, "{said}");
}

#[track_caller]
fn check_settings(card: &Card) {
    card.set("promisc on");
    card.until(&Set::Promiscuous(true));
    card.set("promisc off");
    card.until(&Set::Promiscuous(false));
    card.set("allmulticast on");
    card.until(&Set::AllMulticast(true));
    card.set("allmulticast off");
    card.until(&Set::AllMulticast(false));
    card.peer.ping_both_ways(64);
    card.set("address 02:00:00:00:00:77");
    card.until(&Set::MacAddress([2, 0, 0, 0, 0, 0x77]));
    // The host's neighbour table still has the old MAC address.
    ip(&format!("neighbour flush dev {}", card.tap.name()));
    card.peer.ping_both_ways(64);
    let interface = card.peer.interface();
    let join = format!("maddress add 01:00:5e:01:02:03 dev {interface}");
    card.peer.namespace().ip(&join);
    soon("a multicast address is added", || {
        card.events
            .try_iter()
            .any(|event| event.settings.multicast.contains(&[1, 0, 0x5e, 1, 2, 3]))
    });
}

fn addresses_and_receive_modes_reach_the_daemon() {
    check_settings(&Card::new(&shape(4)));
}

fn one_pair_has_a_control_queue_too() {
    let card = Card::new(&shape(1));
    check_settings(&card);
    let ready = |queue| card.served.device().vq_info(queue).unwrap().ready;
    assert_eq!([0, 1, 2].map(ready), [1, 1, 1]);
}

fn a_control_queue_of_a_group_of_its_own_works() {
    let mut shape = shape(2);
    shape.groups = Groups::Isolated;
    let card = Card::new(&shape);
    card.until(&Set::Pairs(pairs_at_first(2)));
    check_settings(&card);
}

fn a_new_daemon_is_told_what_was_set() {
    let tap = TapInterface::new(4);
    let name = unique_name();
    let device = TestDevice::adopt(&name);
    let options = ["--control", "--pairs", "4", "--mac", "02:00:00:00:00:01"];
    let mut daemon = Example::start(&name, &tap, &options);
    let peer = Peer::new(&name);
    peer.ethtool("-L", "combined 4");
    daemon.says("Done(Pairs(4))");
    let interface = peer.interface();
    for (words, said) in [
        ("promisc on", "Done(Promiscuous(true))"),
        ("promisc off", "Done(Promiscuous(false))"),
        ("allmulticast on", "Done(AllMulticast(true))"),
        (
            "address 02:00:00:00:00:77",
            "Done(MacAddress([2, 0, 0, 0, 0, 119]))",
        ),
    ] {
        peer.namespace()
            .ip(&format!("link set {interface} {words}"));
        daemon.says(said);
    }
    for _ in 0..3 {
        daemon.kill();
        daemon = Example::start(&name, &tap, &options);
        for said in [
            "Done(Promiscuous(false))",
            "Done(AllMulticast(true))",
            "Done(MacAddress([2, 0, 0, 0, 0, 119]))",
            "Done(Pairs(4))",
        ] {
            daemon.says(said);
        }
        ip(&format!("neighbour flush dev {}", tap.name()));
        peer.ping_both_ways(64);
    }
    drop(peer);
    drop(daemon);
    drop(device);
}

fn the_next_driver_begins_anew() {
    let shape = shape(2);
    let tap = TapInterface::new(2);
    shape.create().expect("creating the card");
    let device = TestDevice::adopt(&shape.name);
    let options = ["--control", "--pairs", "2", "--mac", "02:00:00:00:00:01"];
    let daemon = Example::start(&shape.name, &tap, &options);
    for _ in 0..5 {
        let peer = Peer::new(&shape.name);
        daemon.says(&format!("Done(Pairs({}))", pairs_at_first(2)));
        let interface = peer.interface();
        peer.namespace()
            .ip(&format!("link set {interface} address 02:00:00:00:00:77"));
        daemon.says("Done(MacAddress([2, 0, 0, 0, 0, 119]))");
        ip(&format!("neighbour flush dev {}", tap.name()));
        peer.ping_both_ways(64);
        drop(peer);
        daemon.says("Reset");
    }
    drop(daemon);
    drop(device);
}

fn vlans_are_filtered_and_restored() {
    if tool("modprobe", &["8021q"]).is_err() {
        skip("this kernel has no VLANs");
    }
    let (mut card, mut ring) = HandCard::taken();
    let interface = card.interface();
    let vlan = |id: u16| {
        let child = Command::new("ip")
            .args([
                "link",
                "add",
                "link",
                &interface,
                "name",
                &format!("{interface}.{id}"),
            ])
            .args(["type", "vlan", "id", &id.to_string()])
            .spawn();
        child.expect("starting ip")
    };
    for id in [7_u16, 4094] {
        let child = vlan(id);
        let mut seen = Vec::new();
        soon("a VLAN is added", || {
            while let Some(taken) = ring.take() {
                ring.answer(&taken, OK);
                seen.push(taken.bytes);
            }
            seen.contains(&[&[2, 0][..], &id.to_le_bytes()].concat())
        });
        assert!(ended(child));
    }
    drop(ring);
    card.replace();
    let (sender, commands) = mpsc::channel();
    card.controller = Some(Controller::answering(card.file(), INDEX, move |bytes| {
        let _ = sender.send(bytes.to_vec());
        Some(OK)
    }));
    let mut wanted = vec![vec![2, 0, 7, 0], vec![2, 0, 0xfe, 0xf]];
    soon("the VLANs are added again", || {
        commands
            .try_iter()
            .for_each(|bytes| wanted.retain(|w| *w != bytes));
        wanted.is_empty()
    });
}

fn what_is_offered_is_what_is_known() {
    let mut config = hand_config();
    let base = config.features;
    config.features |= feature::NET_CTRL_GUEST_OFFLOADS
        | feature::NET_GUEST_ANNOUNCE
        | feature::NET_RSS
        | feature::NET_HASH_REPORT
        | feature::NET_NOTF_COAL
        | feature::NET_VQ_NOTF_COAL
        | feature::NET_DEVICE_STATS
        | feature::NET_STANDBY
        | feature::RING_PACKED
        | feature::IN_ORDER
        | feature::RING_EVENT_IDX
        | feature::RING_INDIRECT_DESC;
    let card = HandCard::new(&config, |file| {
        Some(Controller::answering(file, INDEX, |_| Some(OK)))
    });
    let ring = feature::RING_EVENT_IDX | feature::RING_INDIRECT_DESC;
    assert_eq!(accepted(card.device.name()), base | ring);
    // Commands also work when the driver has accepted both ring features.
    assert!(card.ip("up"));
    for last in 1..20 {
        assert!(ended(card.set_address(last)));
    }
}

fn the_log_says_once_what_is_hidden_and_why() {
    let mut log = crate::kmsg::Log::open().expect("the log");
    let mut config = net_config();
    config.features |= feature::NET_CTRL_VQ | feature::NET_MQ | feature::NET_STANDBY;
    let device = TestDevice::new(&config);
    let file = Arc::new(device.open_ready(config.queues));
    let _responder = Responder::ok(&file);
    let mut lines = Vec::new();
    for _ in 0..2 {
        drop(OnBus::add(device.name()).expect("adding"));
        lines.extend(log.lines());
    }
    lines.retain(|line| line.contains(device.name()) && line.contains("hidden"));
    assert_eq!(lines.len(), 1, "{lines:?}");
    for part in ["0x400000 (", "0x20000 (", "0x4000000000000000 ("] {
        assert!(lines[0].contains(part), "{part}: {}", lines[0]);
    }
}

fn a_daemon_never_sees_where_the_drivers_own_queue_is() {
    let card = HandCard::answering(|_| Some(OK));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut seen = HashSet::new();
            while !stop.load(Ordering::Relaxed) {
                let info = card.file().vq_info(INDEX).expect("a queue");
                seen.extend([info.desc_addr, info.driver_addr, info.device_addr]);
            }
            seen
        });
        for _ in 0..40 {
            card.on_bus.unbind(Driver::Virtio).expect("unbinding");
            card.on_bus.bind(Driver::Virtio).expect("binding");
        }
        stop.store(true, Ordering::Relaxed);
        // The device's address space ends at 1 GiB + 128 MiB. If the daemon has seen a higher
        // address, a kernel address has leaked to the daemon.
        let seen = watch.join().expect("a thread");
        assert!(seen.len() > 1, "{seen:x?}");
        assert!(
            seen.iter().all(|address| *address < 0x4800_0000),
            "{seen:x?}"
        );
    });
}

fn the_number_of_pairs_that_counts_is_the_first() {
    let config = hand_config();
    tool("modprobe", &["virtio_net"]).expect("loading virtio_net");
    let device = TestDevice::new(&config);
    let file = Arc::new(device.open_ready(config.queues));
    let _responder = Responder::ok(&file);
    // With this new number of pairs, virtio_net would take queue 2 for the control queue, and wait
    // for an answer there.
    file.set_config(8, &1_u16.to_le_bytes()).expect("one pair");
    let _controller = Controller::answering(&file, INDEX, |_| Some(OK));
    let on_bus = OnBus::add(device.name()).expect("adding");
    on_bus.bind(Driver::Virtio).expect("binding");
    let ready = |queue| file.vq_info(queue).expect("a queue").ready;
    assert_eq!([0, 1, 2, 3, 4].map(ready), [1; 5]);
}

/// Checks that virtio_net can use a card without a MAC address whose daemon refuses every command.
/// virtio_net chooses an address itself. If it had to send that address to the daemon, its probe
/// would fail.
fn a_card_without_an_address_is_given_one_that_the_daemon_is_not_told_of() {
    let mut config = hand_config();
    config.features &= !feature::NET_MAC;
    let card = HandCard::new(&config, |file| {
        Some(Controller::answering(file, INDEX, |_| Some(ERR)))
    });
    assert_eq!(accepted(card.device.name()) & feature::NET_CTRL_MAC_ADDR, 0);
    assert!(card.ip("up"));
}

fn a_number_of_pairs_that_does_not_fit_is_hidden() {
    for pairs in [0, 3, 0xffff_u16] {
        let mut config = hand_config();
        config.space[8..10].copy_from_slice(&pairs.to_le_bytes());
        // Without `NET_MQ`, the control queue has index 2.
        let card = HandCard::new(&config, |file| {
            Some(Controller::answering(file, 2, |_| Some(OK)))
        });
        let accepted = accepted(card.device.name());
        assert_eq!(
            accepted & (feature::NET_MQ | feature::NET_CTRL_VQ),
            feature::NET_CTRL_VQ
        );
        assert!(ended(card.set_address(9)));
    }
}

fn more_commands_than_the_queue_has_descriptors_work() {
    let card = HandCard::answering(|_| Some(OK));
    card.ip("up");
    // The daemon's control queue has 256 descriptors.
    for _ in 0..50 {
        assert!(card.ip("promisc on"));
        assert!(card.ip("promisc off"));
    }
    soon("all commands were carried out", || {
        let (available, used) = card.counters();
        available == used && available > 256
    });
    // On a busy machine, so many commands may use up the time that virtio_net is ready to wait in
    // all. Some of that time comes back every second.
    soon("another command is carried out", || {
        ended(card.set_address(1))
    });
}

/// Checks control queues of various sizes. A control queue of one descriptor is hidden. Of a size
/// that is not a power of two or is above 1,024, the VDUSE driver uses only a part. A size of 2 is
/// enough, although a command of virtio_net takes up to five descriptors.
fn short_control_queues_work_or_are_hidden() {
    for size in [1, 2, 3, 4, 8, 1000, 0x8000] {
        for indirect in [0, feature::RING_INDIRECT_DESC] {
            let mut config = hand_config();
            config.features |= indirect;
            let device = TestDevice::new(&config);
            let file = Arc::new(device.open_ready(config.queues - 1));
            file.vq_setup(INDEX as u16, size).expect("a size");
            file.vq_setup(2, 256.min(size.next_power_of_two()))
                .expect("a size");
            let _responder = Responder::ok(&file);
            let _controller = Controller::answering(&file, INDEX, |_| Some(OK));
            let on_bus = OnBus::add(device.name()).expect("adding");
            on_bus.bind(Driver::Virtio).expect("binding");
            let has_queue = accepted(device.name()) & feature::NET_CTRL_VQ != 0;
            assert_eq!(has_queue, size > 1, "{size}");
            let interface = bus::interface(device.name()).expect("an interface");
            for words in ["up", "promisc on", "address 02:00:00:00:77:01"] {
                let arguments = format!("link set dev {interface} {words}");
                let arguments: Vec<_> = arguments.split(' ').collect();
                tool("ip", &arguments).expect("ip");
            }
            if has_queue {
                let num = file.vq_info(INDEX).expect("a queue").num;
                assert_eq!(num, 1 << size.min(1024).ilog2());
                soon("the commands are carried out", || {
                    let ring = ControlRing::look(&file, INDEX).expect("a queue");
                    ring.available() == ring.used() && ring.used() > 3
                });
            }
        }
    }
}
