// SPDX-License-Identifier: GPL-2.0

//! Network cards of containers: an unmodified Open vSwitch with DPDK serves the cards, and the
//! kernel's virtio_net drives them with several queue pairs.

use std::collections::HashSet;
use std::net::UdpSocket;
use std::sync::mpsc;
use std::time::Duration;

use rustix::process::Signal;

use crate::lab::assert::timing::{soon, within};
use crate::lab::daemon::vswitch::Vswitch;
use crate::lab::driver::peer::Peer;
use crate::lab::driver::rtnl::Watch;
use crate::lab::kernel::modules::tool;

tests![
    two_containers_reach_each_other_through_four_pairs => 240,
    one_pair_works => 180,
    a_switch_that_is_killed_is_replaced => 300,
    a_switch_that_is_stopped_holds_the_lock_no_longer_than_the_limit => 240,
];

/// A switch and two cards, each of which virtio_net drives in a separate network namespace. The
/// fields are dropped in declaration order.
struct Containers {
    peers: [Peer; 2],
    switch: Vswitch,
}

/// The longest time for which the lock of all network configuration (RTNL) may be held. It is the
/// time limit of one control command, plus the time that an idle machine needs for everything else
/// that is done under the lock.
const LIMIT: Duration = Duration::from_millis(1500);

const ADDRESSES: [&str; 2] = ["10.98.0.1", "10.98.0.2"];

impl Containers {
    #[track_caller]
    fn new(pairs: u16) -> Self {
        let mut switch = Vswitch::new();
        let names = [switch.add_port(pairs), switch.add_port(pairs)];
        let mut addresses = ADDRESSES.iter();
        let peers = names.map(|name| Peer::at(&name, addresses.next().expect("an address")));
        Self { peers, switch }
    }

    /// Pings the second container from the first until the second container answers.
    #[track_caller]
    fn reach_each_other(&self) {
        within(Duration::from_secs(60), "a ping is answered", || {
            self.ping(1)
        });
        assert!(self.ping(20));
    }

    fn ping(&self, count: u32) -> bool {
        let output = self.peers[0]
            .namespace()
            .command("ping")
            .args(["-n", "-i", "0.05", "-W", "2", "-c", &count.to_string()])
            .arg(ADDRESSES[1])
            .output()
            .expect("running ping");
        let said = String::from_utf8_lossy(&output.stdout);
        said.contains(&format!(" {count} received"))
    }

    /// Sends packets in many flows from the first container to the second. Checks that packets of
    /// every flow arrive. Stops once each queue pair of the first card has sent packets.
    #[track_caller]
    fn all_pairs_forward(&self, pairs: usize) {
        let (sender, port) = mpsc::channel();
        let receiver = self.peers[1].namespace().spawn(move || {
            let socket = UdpSocket::bind((ADDRESSES[1], 0)).expect("a socket");
            let _ = sender.send(socket.local_addr().expect("its address").port());
            socket
        });
        let port = port.recv().expect("a port");
        let socket = receiver.join().expect("a socket");
        socket.set_nonblocking(true).expect("a nonblocking socket");
        let before = self.sent();
        assert_eq!(before.len(), pairs);
        soon("each pair sends", || {
            let sent = self.peers[0].send_flows(ADDRESSES[1], port, 32);
            let mut arrived = HashSet::new();
            within(Duration::from_secs(10), "each flow arrives", || {
                let mut buffer = [0; 64];
                while let Ok((_, from)) = socket.recv_from(&mut buffer) {
                    arrived.insert(from.port());
                }
                sent.iter().all(|port| arrived.contains(port))
            });
            self.sent()
                .iter()
                .zip(&before)
                .all(|(now, before)| now > before)
        });
    }

    /// Returns the number of packets that the first card has sent, by queue pair.
    #[track_caller]
    fn sent(&self) -> Vec<u64> {
        let output = self.peers[0]
            .namespace()
            .command("tc")
            .args(["-s", "qdisc", "show", "dev", self.peers[0].interface()])
            .output()
            .expect("running tc");
        let said = String::from_utf8_lossy(&output.stdout);
        // Each transmit queue has a qdisc whose parent is the root qdisc (`parent :N`). The
        // statistics of a qdisc contain ` Sent 84 bytes 2 pkt (dropped ...`.
        let queues = said
            .split("\nqdisc")
            .filter(|text| text.contains(" parent :"));
        queues
            .map(|text| {
                let (_, sent) = text.split_once("Sent ").expect("a counter");
                sent.split(' ')
                    .nth(2)
                    .and_then(|n| n.parse().ok())
                    .expect("a number")
            })
            .collect()
    }

    /// Runs various configuration commands on the first card. Each command may fail.
    fn configure(&self) {
        let name = self.peers[0].namespace().name();
        let interface = self.peers[0].interface();
        for words in [
            "promisc on",
            "promisc off",
            "allmulticast on",
            "allmulticast off",
            "address 02:00:00:00:98:01",
            "mtu 1400",
            "mtu 1500",
        ] {
            let words = format!("-n {name} link set {interface} {words}");
            let words: Vec<_> = words.split(' ').collect();
            let _ = tool("ip", &words);
        }
        for pairs in ["2", "4"] {
            let words = [
                "netns", "exec", name, "ethtool", "-L", interface, "combined", pairs,
            ];
            let _ = tool("ip", &words);
        }
    }
}

fn two_containers_reach_each_other_through_four_pairs() {
    let containers = Containers::new(4);
    containers.reach_each_other();
    for peer in &containers.peers {
        peer.ethtool("-L", "combined 4");
        let said = peer.ethtool("-l", "");
        assert_eq!(said.matches("Combined:\t4").count(), 2, "{said}");
    }
    containers.all_pairs_forward(4);
    containers.configure();
    let multicast = format!(
        "maddress add 01:00:5e:01:02:03 dev {}",
        containers.peers[0].interface()
    );
    containers.peers[0].namespace().ip(&multicast);
    containers.reach_each_other();
    let log = containers.switch.log();
    assert!(log.contains("Ctrl req: MQ 4 queue pairs"), "{log}");
    assert!(!log.contains("ready state polling timeout"), "{log}");
}

fn one_pair_works() {
    // If a card has one queue pair, DPDK gives the card no control queue.
    let containers = Containers::new(1);
    containers.reach_each_other();
    containers.configure();
    containers.reach_each_other();
}

fn a_switch_that_is_killed_is_replaced() {
    let mut containers = Containers::new(4);
    containers.peers[0].ethtool("-L", "combined 4");
    containers.reach_each_other();
    for _ in 0..2 {
        let watch = Watch::start();
        containers.switch.kill();
        containers.configure();
        watch.end().assert("no switch", LIMIT, 2 * LIMIT);
        containers.switch.start();
        containers.reach_each_other();
        containers.peers[0].ethtool("-L", "combined 4");
        containers.all_pairs_forward(4);
    }
}

fn a_switch_that_is_stopped_holds_the_lock_no_longer_than_the_limit() {
    let containers = Containers::new(4);
    containers.reach_each_other();
    for _ in 0..2 {
        let watch = Watch::start();
        containers.switch.signal(Signal::STOP);
        containers.configure();
        containers.switch.signal(Signal::CONT);
        watch.end().assert("a stopped switch", LIMIT, 2 * LIMIT);
        containers.reach_each_other();
        // During this sleep, the driver regains part of its time budget for commands.
        std::thread::sleep(Duration::from_secs(5));
        containers.configure();
        containers.all_pairs_forward(4);
    }
}
