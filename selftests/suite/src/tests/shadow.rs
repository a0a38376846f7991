// SPDX-License-Identifier: GPL-2.0

//! The shadow of a network card's control queue: the kernel's own driver, virtio_net, sends its
//! commands to this kernel's VDUSE driver, which hands them on. virtio_net waits for the answers
//! with the lock of all network configuration held, so that no daemon may make it wait for long.

use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use vduse::net::{Command as Set, Event, Groups, Net, Port, Shape, Tap, What};
use vduse::{Device, DeviceConfig};
use vm_memory::Bytes;

use crate::lab::assert::limit::Limit;
use crate::lab::assert::random::Random;
use crate::lab::assert::timing::{soon, stays};
use crate::lab::daemon::card::{self, Example};
use crate::lab::daemon::control_ring::{ControlRing, Controller, Taken, ERR, OK};
use crate::lab::daemon::responder::Responder;
use crate::lab::daemon::serving::Serving;
use crate::lab::daemon::tap::{TapInterface, HERE};
use crate::lab::device::bus::{self, Driver, OnBus};
use crate::lab::device::test_device::{net_config, unique_name, TestDevice};
use crate::lab::device::virtio::{feature, link};
use crate::lab::driver::namespace::ip;
use crate::lab::driver::peer::{Peer, DISCARD};
use crate::lab::driver::rtnl::Watch;
use crate::lab::kernel::modules::tool;
use crate::lab::kernel::sysfs;
use crate::lab::run::report::skip;
use crate::lab::run::settings::seed;

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
    the_number_of_pairs_that_counts_is_the_first,
    a_number_of_pairs_that_does_not_fit_is_hidden,
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
    more_commands_than_the_queue_has_descriptors_work,
    short_control_queues_work_or_are_hidden => 60,
    fewer_pairs_never_fail,
    a_program_that_is_killed_does_not_wait,
];

/// How long a command waits for its answer at most: the default of the module's parameter.
const LIMIT: Duration = Duration::from_secs(1);

/// What an idle machine needs in addition, at most.
const SLACK: Duration = Duration::from_millis(500);

/// A TAP interface's queue that counts frames.
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

/// A card of our library on a TAP interface, which virtio_net drives in another namespace. The
/// fields are dropped in this order.
struct Card {
    peer: Peer,
    served: Serving<Net<Counted>>,
    events: Receiver<Event>,
    /// The number of frames that each pair has sent.
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

    /// Waits until the daemon has carried out a command.
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

    /// Sends frames in many flows until each of the first `pairs` pairs has sent some.
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

/// Returns the number of pairs that virtio_net uses at first.
fn pairs_at_first(pairs: u16) -> u16 {
    let cpus = std::thread::available_parallelism().expect("the CPUs");
    pairs.min(cpus.get() as u16)
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
    // The maximum, and what is in use.
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
    // The other side still knows the old address.
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

/// The features of a card whose control queue is operated by hand.
const CONTROL: u64 = feature::NET_STATUS
    | feature::NET_CTRL_VQ
    | feature::NET_CTRL_RX
    | feature::NET_CTRL_VLAN
    | feature::NET_MQ
    | feature::NET_CTRL_MAC_ADDR;

/// The number of pairs of such a card, and the index of its control queue.
const PAIRS: u16 = 2;
const INDEX: u32 = 2 * PAIRS as u32;

fn hand_config() -> DeviceConfig {
    let mut config = net_config();
    config.features |= CONTROL;
    config.queues = 2 * PAIRS + 1;
    config.space[6..8].copy_from_slice(&link::UP.to_le_bytes());
    config.space[8..10].copy_from_slice(&PAIRS.to_le_bytes());
    config
}

/// A card whose control queue is operated by hand. The fields are dropped in this order.
struct HandCard {
    on_bus: OnBus,
    controller: Option<Controller>,
    responder: Option<Responder>,
    file: Option<Arc<Device>>,
    device: TestDevice,
}

impl HandCard {
    /// Creates a card, has `controller` operate its control queue, and binds it to virtio_net.
    #[track_caller]
    fn new(
        config: &DeviceConfig,
        controller: impl FnOnce(&Arc<Device>) -> Option<Controller>,
    ) -> Self {
        tool("modprobe", &["virtio_net"]).expect("loading virtio_net");
        let device = TestDevice::new(config);
        let file = Arc::new(device.open_ready(config.queues));
        let responder = Responder::ok(&file);
        let controller = controller(&file);
        let on_bus = OnBus::add(device.name()).expect("adding");
        on_bus.bind(Driver::Virtio).expect("binding");
        Self {
            on_bus,
            controller,
            responder: Some(responder),
            file: Some(file),
            device,
        }
    }

    /// A card whose commands are answered by `answer`.
    #[track_caller]
    fn answering(answer: impl FnMut(&[u8]) -> Option<u8> + Send + 'static) -> Self {
        Self::new(&hand_config(), |file| {
            Some(Controller::answering(file, INDEX, answer))
        })
    }

    /// A card that is up, whose commands have all been carried out so far, and whose control queue
    /// is in the test's hands.
    #[track_caller]
    fn taken() -> (Self, ControlRing) {
        let mut card = Self::answering(|_| Some(OK));
        card.ip("up");
        soon("no command is left for a while", || {
            let before = card.counters();
            std::thread::sleep(Duration::from_millis(100));
            before.0 == before.1 && card.counters() == before
        });
        card.controller = None;
        let ring = card.attach();
        (card, ring)
    }

    fn file(&self) -> &Arc<Device> {
        self.file.as_ref().expect("a daemon")
    }

    #[track_caller]
    fn interface(&self) -> String {
        bus::interface(self.device.name()).expect("an interface")
    }

    /// Returns the numbers of commands that are available and used.
    #[track_caller]
    fn counters(&self) -> (u16, u16) {
        let ring = ControlRing::look(self.file(), INDEX).expect("a control queue");
        (ring.available(), ring.used())
    }

    /// Takes the control queue into the test's hands, after what was used so far.
    #[track_caller]
    fn attach(&self) -> ControlRing {
        let (_, used) = self.counters();
        ControlRing::attach(self.file(), INDEX, used).expect("a control queue")
    }

    /// Starts another daemon.
    #[track_caller]
    fn replace(&mut self) {
        self.end_daemon();
        let file = Arc::new(self.device.open_nonblocking());
        self.responder = Some(Responder::ok(&file));
        self.file = Some(file);
    }

    /// Ends the daemon.
    fn end_daemon(&mut self) {
        self.controller = None;
        self.responder = None;
        self.file = None;
    }

    /// Runs `ip link set` on the interface, and returns whether it succeeded.
    fn ip(&self, words: &str) -> bool {
        let interface = self.interface();
        let arguments: Vec<_> = ["link", "set", "dev", &interface]
            .into_iter()
            .chain(words.split(' '))
            .collect();
        tool("ip", &arguments).is_ok()
    }

    /// Starts a program that sets the card's address, which is a single command whose result the
    /// program returns.
    #[track_caller]
    fn set_address(&self, last: u8) -> std::process::Child {
        // Not the one that the card has at first.
        let address = format!("02:00:00:00:77:{last:02x}");
        Command::new("ip")
            .args(["link", "set", "dev", &self.interface(), "address", &address])
            .stderr(std::process::Stdio::null())
            .spawn()
            .expect("starting ip")
    }
}

/// The command that sets the card's address to one that ends with a byte.
fn address(last: u8) -> Vec<u8> {
    vec![1, 1, 2, 0, 0, 0, 0x77, last]
}

/// Waits for a command. Others, which the network stack has the driver send now and then, are
/// carried out meanwhile.
#[track_caller]
fn next(ring: &mut ControlRing, wanted: &[u8]) -> Taken {
    let mut found = None;
    soon("a command", || {
        while let Some(taken) = ring.take() {
            if taken.bytes == wanted {
                found = Some(taken);
                return true;
            }
            ring.answer(&taken, OK);
        }
        false
    });
    found.expect("a command")
}

/// Waits until a program has ended, and returns whether it succeeded.
#[track_caller]
fn ended(mut child: std::process::Child) -> bool {
    let mut status = None;
    soon("a program ends", || {
        status = child.try_wait().expect("waiting");
        status.is_some()
    });
    status.expect("a status").success()
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

/// Returns the features that virtio_net has accepted.
#[track_caller]
fn accepted(name: &str) -> u64 {
    let directory = bus::virtio_directory(name).expect("a virtio device");
    let bits = sysfs::read(&directory.join("features")).expect("the features");
    let bits = (0..64).zip(bits.chars()).filter(|&(_, bit)| bit == '1');
    bits.fold(0, |features, (bit, _)| features | 1 << bit)
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
        | feature::RING_EVENT_IDX
        | feature::RING_INDIRECT_DESC;
    let card = HandCard::new(&config, |file| {
        Some(Controller::answering(file, INDEX, |_| Some(OK)))
    });
    let ring = feature::RING_EVENT_IDX | feature::RING_INDIRECT_DESC;
    assert_eq!(accepted(card.device.name()), base | ring);
    // With both of these features, several commands arrive all the same.
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

fn the_number_of_pairs_that_counts_is_the_first() {
    let config = hand_config();
    tool("modprobe", &["virtio_net"]).expect("loading virtio_net");
    let device = TestDevice::new(&config);
    let file = Arc::new(device.open_ready(config.queues));
    let _responder = Responder::ok(&file);
    // virtio_net would take queue 2 for the control queue, and wait for its answers.
    file.set_config(8, &1_u16.to_le_bytes()).expect("one pair");
    let _controller = Controller::answering(&file, INDEX, |_| Some(OK));
    let on_bus = OnBus::add(device.name()).expect("adding");
    on_bus.bind(Driver::Virtio).expect("binding");
    let ready = |queue| file.vq_info(queue).expect("a queue").ready;
    assert_eq!([0, 1, 2, 3, 4].map(ready), [1; 5]);
}

fn a_number_of_pairs_that_does_not_fit_is_hidden() {
    for pairs in [0, 3, 0xffff_u16] {
        let mut config = hand_config();
        config.space[8..10].copy_from_slice(&pairs.to_le_bytes());
        // Without MQ, the control queue is at 2.
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

fn malformed_answers_fail_a_command_and_no_more() {
    let (card, mut ring) = HandCard::taken();
    let fail = |ring: &mut ControlRing, last, spoil: &dyn Fn(&ControlRing, u16)| {
        let begin = Instant::now();
        let child = card.set_address(last);
        let taken = next(ring, &address(last));
        spoil(ring, ring.available());
        ring.interrupt();
        assert!(!ended(child));
        // The command does not wait until its time is over.
        assert!(begin.elapsed() < LIMIT, "{:?}", begin.elapsed());
        // The answer, once it is there, ends that state.
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
    assert!(begin.elapsed() < 10 * LIMIT / 2, "{:?}", begin.elapsed());
    // Nothing more was sent.
    assert_eq!(ring.take(), None);
    ring.answer(&taken, OK);
    // The driver's own address is restored, or was never set.
    std::thread::sleep(3 * LIMIT);
    let child = card.set_address(12);
    let taken = next(&mut ring, &address(12));
    ring.answer(&taken, OK);
    assert!(ended(child));
}

fn a_late_answer_brings_the_daemon_up_to_date() {
    let (card, mut ring) = HandCard::taken();
    // Three commands in a row: promiscuous, all multicast, the tables.
    assert!(card.ip("promisc on"));
    let late = next(&mut ring, &[0, 0, 1]);
    std::thread::sleep(2 * LIMIT);
    ring.answer(&late, OK);
    // At least the two that failed at once. If no time was left from before, so did the first one,
    // and it is its restoring that was answered late.
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
    // What it leaves in the ring is nonsense.
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
    // The driver was too slow to be answered, or it was answered once; and the new daemon is not
    // told again of what it has just done.
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
    // A daemon that remembers its own position finds no command that anybody could carry out.
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
    let begin = Instant::now();
    for last in 1..6 {
        assert!(!ended(card.set_address(last)));
    }
    assert!(begin.elapsed() < 5 * LIMIT / 2, "{:?}", begin.elapsed());
    assert!(card.ip("promisc on"));
    let file = Arc::new(card.device.open_nonblocking());
    card.responder = Some(Responder::ok(&file));
    card.file = Some(file);
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
    // From the first command on, which is sent when the card is bound.
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
    while begin.elapsed() < 15 * LIMIT {
        card.ip(["promisc on", "promisc off"][count % 2]);
        count += 1;
        std::thread::sleep(Duration::from_millis(20));
    }
    let held = watch.end();
    // The budget that there was at first, and a tenth of the time; the rest is what `ip` itself and
    // the commands that fail at once take.
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
    while begin.elapsed() < 10 * LIMIT {
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
                    // What is likely to be taken for an answer.
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
    let mut limit = Limit::new(10 * LIMIT);
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
    let stop = std::sync::atomic::AtomicBool::new(false);
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
        // May fail.
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
        // It is told what it has missed.
        daemon.says("Done(Promiscuous(false))");
        ip(&format!("neighbour flush dev {}", tap.name()));
        peer.ping_both_ways(64);
        set("allmulticast off");
        // The budget is regained.
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
        assert!(begin.elapsed() < 5 * LIMIT, "{:?}", begin.elapsed());
    }
}

fn more_commands_than_the_queue_has_descriptors_work() {
    let card = HandCard::answering(|_| Some(OK));
    card.ip("up");
    // The queue has 256.
    for _ in 0..150 {
        assert!(card.ip("promisc on"));
        assert!(card.ip("promisc off"));
    }
    soon("all commands were carried out", || {
        let (available, used) = card.counters();
        available == used && available > 256
    });
    assert!(ended(card.set_address(1)));
}

/// Sizes of which the driver side may use all, a part, or nothing. A command has up to five parts,
/// more than there are descriptors.
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
                assert_eq!(num, 1 << u32::from(size).ilog2());
                soon("the commands are carried out", || {
                    let ring = ControlRing::look(&file, INDEX).expect("a queue");
                    ring.available() == ring.used() && ring.used() > 3
                });
            }
        }
    }
}

/// The kernel warns if virtio_net cannot go back to fewer pairs as an XDP program is removed.
fn fewer_pairs_never_fail() {
    let mut card = HandCard::answering(|_| Some(OK));
    let interface = card.interface();
    let pairs = |pairs: &str| tool("ethtool", &["-L", &interface, "combined", pairs]);
    pairs("2").expect("two pairs");
    card.end_daemon();
    pairs("1").expect("one pair");
    pairs("2").expect_err("two pairs without a daemon");
    let file = Arc::new(card.device.open_nonblocking());
    card.responder = Some(Responder::ok(&file));
    card.file = Some(file);
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
    assert!(begin.elapsed() < LIMIT * 3 / 4, "{:?}", begin.elapsed());
}
