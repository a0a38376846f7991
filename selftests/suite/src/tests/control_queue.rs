// SPDX-License-Identifier: GPL-2.0

//! A network card's control queue (virtio 1.3, section 5.1.6.5). The tests check to which drivers
//! the VDUSE driver offers this queue, and that a daemon that does not answer blocks no other
//! process.
//!
//! The kernel's own driver, virtio_net, holds the lock of all network configuration (RTNL) while it
//! waits in an endless loop for the answer to a command. Therefore, the VDUSE driver gives
//! virtio_net a shadow of the daemon's control queue. The VDUSE driver itself acts as the device of
//! the shadow. The tests of the group `shadow` cover the shadow.

use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Sender};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use vduse::request::Answer;
use vduse::{Device, DeviceConfig};

use crate::lab::assert::limit::Limit;
use crate::lab::assert::timing::soon;
use crate::lab::daemon::responder::Responder;
use crate::lab::device::bus::{self, Driver, OnBus};
use crate::lab::device::test_device::{net_config, TestDevice};
use crate::lab::device::virtio::{feature, link};
use crate::lab::driver::vhost::Vhost;
use crate::lab::guest::qsd::tool;
use crate::lab::kernel::sysfs;

tests![
    vhost_is_offered_the_control_queue,
    virtio_is_offered_what_can_be_shadowed,
    each_driver_in_turn_is_offered_what_it_is_to_have,
    netlink_shows_what_the_device_can_do,
    statistics_without_a_control_queue_do_no_harm,
    changing_offloads_without_a_control_queue_does_no_harm,
    asking_for_announcements_without_a_control_queue_does_no_harm,
    large_packets_in_one_buffer_are_hidden_from_virtio,
    a_daemon_that_falls_silent_holds_nobody_up => 90,
    a_daemon_that_dies_holds_nobody_up => 60,
];

/// The features that [`card`] offers in addition to the features of a card without a control queue.
/// `NET_STANDBY` says that the card is a standby for another card.
const CONTROL: u64 = feature::NET_CTRL_GUEST_OFFLOADS
    | feature::NET_CTRL_VQ
    | feature::NET_CTRL_RX
    | feature::NET_CTRL_VLAN
    | feature::NET_CTRL_RX_EXTRA
    | feature::NET_GUEST_ANNOUNCE
    | feature::NET_MQ
    | feature::NET_CTRL_MAC_ADDR
    | feature::NET_DEVICE_STATS
    | feature::NET_VQ_NOTF_COAL
    | feature::NET_NOTF_COAL
    | feature::NET_HASH_REPORT
    | feature::NET_RSS
    | feature::NET_STANDBY;

/// Returns the configuration of a card that offers every feature related to its control queue.
fn card() -> DeviceConfig {
    let mut config = net_config();
    config.features |= CONTROL;
    config.queues = 3;
    config
}

/// A card on the bus. A responder answers the card's VDUSE requests.
struct Card {
    on_bus: OnBus,
    _responder: Responder,
    device: TestDevice,
}

impl Card {
    #[track_caller]
    fn new(config: &DeviceConfig) -> Self {
        let device = TestDevice::new(config);
        let responder = Responder::ok(&Arc::new(device.open_ready(config.queues)));
        let on_bus = OnBus::add(device.name()).expect("adding");
        Self {
            on_bus,
            _responder: responder,
            device,
        }
    }

    /// Binds the card to vhost-vdpa, and returns the features that vhost-vdpa offers.
    #[track_caller]
    fn offered_by_vhost(&self) -> u64 {
        self.on_bus.bind(Driver::Vhost).expect("binding to vhost");
        let path = bus::vhost_path(self.device.name()).expect("a node");
        let features = Vhost::open(&path).and_then(|vhost| vhost.features());
        self.on_bus.unbind(Driver::Vhost).expect("unbinding");
        features.expect("the features")
    }

    /// Binds the card to virtio-vdpa, and returns the features that virtio_net accepted. These are
    /// the offered features that virtio_net supports.
    #[track_caller]
    fn accepted_by_virtio(&self) -> u64 {
        self.on_bus.bind(Driver::Virtio).expect("binding to virtio");
        let directory = bus::virtio_directory(self.device.name()).expect("a virtio device");
        assert!(bus::interface(self.device.name()).is_some(), "no interface");
        let bits = sysfs::read(&directory.join("features")).expect("the features");
        self.on_bus.unbind(Driver::Virtio).expect("unbinding");
        (0..64)
            .zip(bits.chars())
            .filter(|&(_, bit)| bit == '1')
            .fold(0, |features, (bit, _)| features | 1 << bit)
    }
}

/// Loads the module virtio_net.
#[track_caller]
fn load_virtio_net() {
    tool("modprobe", &["virtio_net"]);
}

fn vhost_is_offered_the_control_queue() {
    let config = card();
    assert_eq!(Card::new(&config).offered_by_vhost(), config.features);
}

/// The features that virtio_net accepts from a card without a control queue.
const WITHOUT: u64 = feature::ACCESS_PLATFORM | feature::VERSION_1 | feature::NET_MAC;

/// The features among [`CONTROL`] that virtio_net accepts. `NET_MQ` is not one of them, because the
/// card's config space reports no queue pairs.
const SHADOWED: u64 = feature::NET_CTRL_VQ
    | feature::NET_CTRL_RX
    | feature::NET_CTRL_VLAN
    | feature::NET_CTRL_MAC_ADDR;

fn virtio_is_offered_what_can_be_shadowed() {
    load_virtio_net();
    let accepted = Card::new(&card()).accepted_by_virtio();
    assert_eq!(accepted, WITHOUT | SHADOWED);
    let mut without_a_queue = card();
    without_a_queue.queues = 2;
    assert_eq!(Card::new(&without_a_queue).accepted_by_virtio(), WITHOUT);
}

fn each_driver_in_turn_is_offered_what_it_is_to_have() {
    load_virtio_net();
    let config = card();
    let card = Card::new(&config);
    for _ in 0..3 {
        assert_eq!(card.offered_by_vhost(), config.features);
        assert_eq!(card.accepted_by_virtio(), WITHOUT | SHADOWED);
    }
}

fn netlink_shows_what_the_device_can_do() {
    let config = card();
    let card = Card::new(&config);
    let output = Command::new("vdpa")
        .args(["dev", "config", "show", card.device.name()])
        .output()
        .expect("running vdpa");
    let text = String::from_utf8_lossy(&output.stdout);
    // The `vdpa` tool shows `max_vq_pairs` only if netlink reports the feature `NET_MQ`.
    assert!(text.contains("max_vq_pairs"), "{text}");
}

fn statistics_without_a_control_queue_do_no_harm() {
    load_virtio_net();
    let mut config = net_config();
    config.features |= feature::NET_DEVICE_STATS;
    assert_eq!(Card::new(&config).accepted_by_virtio(), WITHOUT);
}

fn changing_offloads_without_a_control_queue_does_no_harm() {
    load_virtio_net();
    let mut config = net_config();
    // A driver could change these offloads only through a control queue. The test changes the
    // offload of TCP segmentation (`NET_GUEST_TSO4`). The VDUSE driver offers this offload to
    // virtio_net because `NET_MRG_RXBUF`, which lets a packet use several buffers, is offered too.
    let offloads = feature::NET_CSUM
        | feature::NET_GUEST_CSUM
        | feature::NET_GUEST_TSO4
        | feature::NET_MRG_RXBUF;
    config.features |= feature::NET_CTRL_GUEST_OFFLOADS | offloads;
    let card = Card::new(&config);
    card.on_bus.bind(Driver::Virtio).expect("binding");
    let interface = bus::interface(card.device.name()).expect("an interface");
    for value in ["off", "on"] {
        // ethtool may report that the offload cannot be changed.
        let _ =
            crate::lab::kernel::modules::tool("ethtool", &["-K", &interface, "rx-gro-hw", value]);
    }
}

/// The features that let virtio_net receive packets that are longer than the link's MTU.
const LARGE_PACKETS: u64 = feature::NET_GUEST_TSO4
    | feature::NET_GUEST_TSO6
    | feature::NET_GUEST_ECN
    | feature::NET_GUEST_UFO
    | feature::NET_GUEST_USO4
    | feature::NET_GUEST_USO6;

fn large_packets_in_one_buffer_are_hidden_from_virtio() {
    load_virtio_net();
    // The features in `LARGE_PACKETS` require `NET_GUEST_CSUM`.
    let large = LARGE_PACKETS | feature::NET_GUEST_CSUM;
    let mut config = net_config();
    config.features |= large;
    let card = Card::new(&config);
    assert_eq!(card.offered_by_vhost(), config.features);
    assert_eq!(card.accepted_by_virtio(), WITHOUT | feature::NET_GUEST_CSUM);
    drop(card);
    config.features |= feature::NET_MRG_RXBUF;
    assert_eq!(
        Card::new(&config).accepted_by_virtio(),
        WITHOUT | large | feature::NET_MRG_RXBUF
    );
}

fn asking_for_announcements_without_a_control_queue_does_no_harm() {
    load_virtio_net();
    // The card's link status says that the link is up and that the driver should announce itself.
    let status = (link::UP | link::ANNOUNCE).to_le_bytes();
    let mut config = net_config();
    config.features |= feature::NET_STATUS;
    config.space[6..8].copy_from_slice(&status);
    let device = TestDevice::new(&config);
    let file = Arc::new(device.open_ready(config.queues));
    let responder = Responder::ok(&file);
    let on_bus = OnBus::add(device.name()).expect("adding");
    // virtio_net reads the link status in its probe and at each config interrupt.
    on_bus.bind(Driver::Virtio).expect("binding to virtio");
    let interface = bus::interface(device.name()).expect("an interface");
    let _ = crate::lab::kernel::modules::tool("ip", &["link", "set", "dev", &interface, "up"]);
    let carrier = std::path::Path::new("/sys/class/net")
        .join(interface)
        .join("carrier");
    for (status, expected) in [(link::ANNOUNCE, "0"), (link::UP | link::ANNOUNCE, "1")] {
        file.set_config(6, &status.to_le_bytes())
            .expect("setting the status");
        file.inject_config_irq().expect("telling of it");
        soon("the driver looks at it", || {
            sysfs::read(&carrier).is_ok_and(|found| found == expected)
        });
    }
    on_bus.unbind(Driver::Virtio).expect("unbinding");
    // A client of vhost-vdpa still sees `ANNOUNCE` in the link status.
    on_bus.bind(Driver::Vhost).expect("binding to vhost");
    let vhost = Vhost::open(&bus::vhost_path(device.name()).expect("a node")).expect("opening");
    assert_eq!(vhost.config(6, 2).expect("the status"), status);
    drop(vhost);
    drop(on_bus);
    drop(responder);
}

/// The value of `msg_timeout`, in seconds.
const TIMEOUT: u64 = 1;

/// The maximum run time of a program whose system call waits for one VDUSE message. It is the
/// message timeout plus the time that an idle machine needs for the rest.
const PATIENCE: Duration = Duration::from_secs(TIMEOUT + 3);

/// How the daemon stops answering requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Stops reading requests.
    Silence,
    /// Closes the device.
    Death,
}

/// Starts a thread that answers `requests` requests and then does what `end` says. Dropping the
/// returned sender ends the thread.
fn daemon(device: Device, requests: usize, end: End) -> (Sender<()>, JoinHandle<()>) {
    let (sender, receiver) = mpsc::channel::<()>();
    let thread = std::thread::spawn(move || {
        let mut answered = 0;
        while answered < requests {
            match device.read_request() {
                Ok(request) => {
                    answered += 1;
                    let _ = device.answer(&request, Answer::Ok);
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    let done = receiver.recv_timeout(Duration::from_millis(1));
                    if done == Err(mpsc::RecvTimeoutError::Disconnected) {
                        return;
                    }
                }
                Err(_) => break,
            }
        }
        if end == End::Silence {
            // Nothing is ever sent. This call returns when the sender is dropped.
            let _ = receiver.recv();
        }
    });
    (sender, thread)
}

/// A running program that must end within [`PATIENCE`]. Its exit status does not matter.
struct Timed {
    what: String,
    child: Child,
    limit: Limit,
}

impl Timed {
    #[track_caller]
    fn start(program: &str, arguments: &[&str]) -> Self {
        let child = Command::new(program)
            .args(arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("starting a program");
        Self {
            what: format!("{program} {}", arguments.join(" ")),
            child,
            limit: Limit::new(PATIENCE),
        }
    }

    #[track_caller]
    fn end(mut self) {
        while matches!(self.child.try_wait(), Ok(None)) {
            assert!(
                !self.limit.is_over(),
                "{} hangs:\n{}",
                self.what,
                crate::process::stacks(self.child.id())
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Runs `act`, which may wait for the daemon, in another thread. Until `act` has ended, runs
/// `ip link` again and again, and checks that each run ends within [`PATIENCE`].
#[track_caller]
fn with_ip_link_beside(act: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        let thread = scope.spawn(act);
        loop {
            Timed::start("ip", &["link", "show"]).end();
            if thread.is_finished() {
                return;
            }
        }
    });
}

/// Binds, uses, unbinds and deletes a network card whose daemon answers `requests` requests and
/// then does what `end` says.
#[track_caller]
fn phase(requests: usize, end: End) {
    let device = TestDevice::new(&card());
    let timeout = sysfs::attribute(device.name(), "msg_timeout");
    sysfs::write(&timeout, &TIMEOUT.to_string()).expect("setting msg_timeout");
    let (stop, thread) = daemon(device.open_ready(3), requests, end);
    let on_bus = OnBus::add(device.name()).expect("adding");

    // Binding succeeds or fails, depending on how many requests the daemon answers.
    with_ip_link_beside(|| drop(on_bus.bind(Driver::Virtio)));
    if let Some(interface) = bus::interface(device.name()) {
        let link = ["link", "set", "dev", &interface];
        for words in [
            &["up"][..],
            &["promisc", "on"],
            &["allmulticast", "on"],
            &["address", "02:00:00:00:00:77"],
            &["mtu", "1400"],
            &["promisc", "off"],
            &["down"],
            &["up"],
        ] {
            let change = Timed::start("ip", &[&link[..], words].concat());
            Timed::start("ip", &["link", "show"]).end();
            change.end();
        }
        // If virtio_net has a control queue, each of these programs makes virtio_net send a
        // command: to set the number of queue pairs, to read statistics, or to set offloads.
        for words in [
            &["-L", &interface, "combined", "2"][..],
            &["-S", &interface],
            &["-K", &interface, "rx-gro-hw", "off"],
        ] {
            let change = Timed::start("ethtool", words);
            Timed::start("ip", &["link", "show"]).end();
            change.end();
        }
    }
    with_ip_link_beside(|| drop(on_bus.unbind(Driver::Virtio)));
    with_ip_link_beside(|| on_bus.delete().expect("deleting"));
    drop(stop);
    thread.join().expect("the daemon");
}

/// The number of phases. In phase `n`, from 0 to 6, the daemon answers `n` requests. Binding and
/// unbinding together send 6 requests: a reset, three status writes up to `FEATURES_OK`, a status
/// write of `DRIVER_OK`, and the final reset.
const PHASES: usize = 7;

fn a_daemon_that_falls_silent_holds_nobody_up() {
    load_virtio_net();
    for requests in 0..PHASES {
        phase(requests, End::Silence);
    }
}

fn a_daemon_that_dies_holds_nobody_up() {
    load_virtio_net();
    for requests in [0, 4, 5] {
        phase(requests, End::Death);
    }
}
