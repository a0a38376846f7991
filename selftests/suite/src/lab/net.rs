// SPDX-License-Identifier: GPL-2.0

//! Network cards: one that the kernel's virtio_net has in another network namespace, with the TAP
//! interface at the other end of its cable in ours; and one with its ports in the test's hands.

use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};

use vduse::net::{Event, Groups, Loopback, Mac, Net, Port, Shape, Tap, What};

use crate::lab::bus::{self, Driver, OnBus};
use crate::lab::device::{unique_name, TestDevice};
use crate::lab::expect::{received, soon};
use crate::lab::namespace::{ip, Namespace};
use crate::lab::serving::Serving;
use crate::lab::spaces;
use crate::lab::vhost::Vhost;
use crate::modules;

/// The card's address.
pub const MAC: Mac = [2, 0, 0, 0, 0, 1];

/// The address of the TAP interface.
pub const HERE: &str = "10.99.0.1";

/// The address of the card.
pub const THERE: &str = "10.99.0.2";

/// The shape of a card without a control queue.
pub fn shape(pairs: u16) -> Shape {
    let mut shape = Shape::new(&unique_name(), MAC);
    shape.pairs = pairs;
    shape
}

/// A TAP interface that stays until this is dropped, up, with an address.
#[derive(Debug)]
pub struct TapInterface {
    name: String,
}

impl TapInterface {
    /// Makes one with so many queues.
    #[track_caller]
    pub fn new(queues: u16) -> Self {
        modules::tool("modprobe", &["tun"]).expect("loading tun");
        let name = unique_name();
        let several = if queues > 1 { "multi_queue" } else { "" };
        ip(&format!("tuntap add dev {name} mode tap {several}"));
        ip(&format!("address add {HERE}/24 dev {name}"));
        ip(&format!("link set {name} up"));
        Self { name }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for TapInterface {
    fn drop(&mut self) {
        let _ = modules::tool("ip", &["link", "delete", &self.name]);
    }
}

/// Serves a card at a TAP interface, in a thread.
#[track_caller]
pub fn serve(shape: &Shape, device: &TestDevice, tap: &TapInterface) -> Serving<Net<Tap>> {
    let ports = Tap::open(tap.name(), shape.pairs).expect("opening the TAP interface");
    let card = Net::new(shape.mac, ports).expect("a card");
    let server = shape.server(device.open_nonblocking(), card);
    Serving::run(server.expect("serving the card"))
}

/// A card that the kernel's virtio_net has, in a network namespace of its own.
#[derive(Debug)]
pub struct Peer {
    namespace: Namespace,
    _on_bus: OnBus,
}

impl Peer {
    /// Puts a card that is served on the bus, and its interface into another namespace.
    #[track_caller]
    pub fn new(name: &str) -> Self {
        modules::tool("modprobe", &["virtio_net"]).expect("loading virtio_net");
        let on_bus = OnBus::add_soon(name);
        on_bus.bind(Driver::Virtio).expect("binding the card");
        soon("the interface appears", || interface(name).is_some());
        let interface = interface(name).expect("an interface");
        let namespace = Namespace::new();
        ip(&format!("link set {interface} netns {}", namespace.name()));
        namespace.ip(&format!("address add {THERE}/24 dev {interface}"));
        namespace.ip(&format!("link set {interface} up"));
        Self {
            namespace,
            _on_bus: on_bus,
        }
    }

    /// Where it is.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Asserts that pings of so many bytes go from here to there and from there to here, and
    /// none gets lost.
    #[track_caller]
    pub fn ping_both_ways(&self, bytes: u16) {
        ping(Command::new("ping"), THERE, bytes);
        ping(self.namespace.command("ping"), HERE, bytes);
    }
}

/// The interface of a card that virtio_net has.
fn interface(name: &str) -> Option<String> {
    bus::children(&bus::virtio_folder(name)?.join("net"), "").pop()
}

#[track_caller]
fn ping(mut command: Command, to: &str, bytes: u16) {
    let count = "5";
    command.args(["-n", "-c", count, "-i", "0.2", "-W", "5", "-s"]);
    let output = command.args([&bytes.to_string(), to]).output();
    let output = output.expect("running ping");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        said.contains(&format!("{count} received")),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// The library's example, a process that serves a card.
#[derive(Debug)]
pub struct Example {
    child: Child,
    lines: Receiver<String>,
}

impl Example {
    /// Starts it. The card can be put on the bus, or goes on, soon.
    #[track_caller]
    pub fn start(name: &str, tap: &TapInterface, options: &[&str]) -> Self {
        let mut child = Command::new("/proc/self/exe")
            .args(["--helper", "net", name, tap.name()])
            .args(options)
            .stdout(Stdio::piped())
            .spawn()
            .expect("starting the example");
        let output = child.stdout.take().expect("its output");
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            use std::io::BufRead;
            let lines = std::io::BufReader::new(output).lines();
            lines
                .map_while(Result::ok)
                .all(|line| sender.send(line).is_ok());
        });
        Self { child, lines }
    }

    /// Waits for a line of its output.
    #[track_caller]
    pub fn says(&self, wanted: &str) {
        while received(wanted, &self.lines) != wanted {}
    }

    /// Kills it, and waits until it is gone.
    pub fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Example {
    fn drop(&mut self) {
        self.end();
    }
}

/// A card of version 1 that is served and bound to vhost, and what happens to it.
///
/// The fields are to be dropped in this order.
#[allow(missing_debug_implementations)]
pub struct Observed<P: Port> {
    /// On the bus.
    pub on_bus: OnBus,
    /// Served.
    pub served: Serving<Net<P>>,
    /// Created.
    pub device: TestDevice,
    /// What its driver does.
    pub events: Receiver<Event>,
}

impl<P: Port + Send + 'static> Observed<P> {
    /// Makes one with these ports.
    #[track_caller]
    pub fn new(shape: &Shape, ports: Vec<P>) -> Self {
        let device = spaces::create(&shape.config()).expect("creating the card");
        let (sender, events) = mpsc::channel();
        let card = Net::new(shape.mac, ports)
            .expect("a card")
            .observed_by(move |event| drop(sender.send(event)));
        let server = shape.server(device.open_nonblocking(), card);
        let served = Serving::run(server.expect("serving the card"));
        let on_bus = OnBus::add(device.name()).expect("adding the card");
        on_bus.bind(Driver::Vhost).expect("binding the card");
        Self {
            on_bus,
            served,
            device,
            events,
        }
    }
}

/// A card with a control queue in a group of its own and cables that come back, bound to
/// vhost-vdpa. The fields are dropped in this order.
pub struct IsolatedCard {
    _on_bus: OnBus,
    /// Served.
    pub served: Serving<Net<Loopback>>,
    device: TestDevice,
    events: Receiver<Event>,
}

impl IsolatedCard {
    /// Makes one of so many pairs.
    #[track_caller]
    pub fn new(pairs: u16) -> Self {
        let mut shape = shape(pairs);
        shape.control = true;
        shape.groups = Groups::Isolated;
        let ports = (0..pairs).map(|_| Loopback::new().expect("a port"));
        let Observed {
            on_bus,
            served,
            device,
            events,
        } = Observed::new(&shape, ports.collect());
        let card = Self {
            _on_bus: on_bus,
            served,
            device,
            events,
        };
        card.forget();
        card
    }

    /// Opens it as a driver that is about to map memory.
    #[track_caller]
    pub fn vhost(&self) -> Vhost {
        spaces::open(&self.device)
    }

    /// Waits for what happens next.
    #[track_caller]
    pub fn next(&self) -> Event {
        received("something happens", &self.events)
    }

    /// Waits until this happens, and returns it.
    #[track_caller]
    pub fn until(&self, what: &What) -> Event {
        loop {
            let event = self.next();
            if event.what == *what {
                return event;
            }
        }
    }

    /// Asserts that nothing has happened.
    #[track_caller]
    pub fn is_quiet(&self) {
        assert_eq!(self.events.try_recv().ok(), None);
    }

    /// Forgets what has happened.
    pub fn forget(&self) {
        self.events.try_iter().for_each(drop);
    }
}
