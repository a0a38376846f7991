// SPDX-License-Identifier: GPL-2.0

//! Network cards: a card that the kernel's virtio_net drives in another network namespace,
//! connected to a TAP interface in this one; and a card whose ports the test controls.

use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};

use vduse::net::{Event, Groups, Loopback, Mac, Net, Port, Shape, Tap, What};

use crate::lab::assert::expect::{received, soon};
use crate::lab::daemon::serving::Serving;
use crate::lab::device::bus::{self, Driver, OnBus};
use crate::lab::device::spaces;
use crate::lab::device::test_device::{unique_name, TestDevice};
use crate::lab::driver::namespace::{ip, Namespace};
use crate::lab::driver::vhost::Vhost;
use crate::lab::kernel::modules;

/// MAC address of the card.
pub const MAC: Mac = [2, 0, 0, 0, 0, 1];

/// IP address of the TAP interface.
pub const HERE: &str = "10.99.0.1";

/// IP address of the card.
pub const THERE: &str = "10.99.0.2";

/// Returns the configuration of a card without a control queue.
pub fn shape(pairs: u16) -> Shape {
    let mut shape = Shape::new(&unique_name(), MAC);
    shape.pairs = pairs;
    shape
}

/// A persistent TAP interface with an address, brought up on creation and deleted on drop.
#[derive(Debug)]
pub struct TapInterface {
    name: String,
}

impl TapInterface {
    /// Creates an interface with this number of queues.
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

    /// Returns the interface's name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for TapInterface {
    fn drop(&mut self) {
        let _ = modules::tool("ip", &["link", "delete", &self.name]);
    }
}

/// Serves a card on a TAP interface in a new thread.
#[track_caller]
pub fn serve(shape: &Shape, device: &TestDevice, tap: &TapInterface) -> Serving<Net<Tap>> {
    let ports = Tap::open(tap.name(), shape.pairs).expect("opening the TAP interface");
    let card = Net::new(shape.mac, ports).expect("a card");
    let server = shape.server(device.open_nonblocking(), card);
    Serving::run(server.expect("serving the card"))
}

/// A card that the kernel's virtio_net drives in a separate network namespace.
#[derive(Debug)]
pub struct Peer {
    namespace: Namespace,
    _on_bus: OnBus,
}

impl Peer {
    /// Puts a card that is served on the bus, and moves the card's interface to a new namespace.
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

    /// Returns the card's namespace.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Asserts that pings of this number of bytes arrive in both directions without loss.
    #[track_caller]
    pub fn ping_both_ways(&self, bytes: u16) {
        ping(Command::new("ping"), THERE, bytes);
        ping(self.namespace.command("ping"), HERE, bytes);
    }
}

/// Returns the name of a card's interface.
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

/// The `net` example of the `vduse` library: a process that serves a card.
#[derive(Debug)]
pub struct Example {
    child: Child,
    lines: Receiver<String>,
}

impl Example {
    /// Starts the example. Soon afterwards a new card can be put on the bus, or an existing card
    /// works again.
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

    /// Waits for a line of output.
    #[track_caller]
    pub fn says(&self, wanted: &str) {
        while received(wanted, &self.lines) != wanted {}
    }

    /// Kills the process and waits until it has ended.
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

/// A card of version 1 that is served and bound to vhost-vdpa, and its events.
///
/// Users that move the fields out must drop them in this order.
#[allow(missing_debug_implementations)]
pub struct Observed<P: Port> {
    /// The device on the bus.
    pub on_bus: OnBus,
    /// The thread that serves the card.
    pub served: Serving<Net<P>>,
    /// The created device.
    pub device: TestDevice,
    /// The events on the card.
    pub events: Receiver<Event>,
}

impl<P: Port + Send + 'static> Observed<P> {
    /// Creates a card with these ports.
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

/// A card with a control queue in its own group and loopback ports, bound to vhost-vdpa. The fields
/// are dropped in this order.
pub struct IsolatedCard {
    _on_bus: OnBus,
    /// The thread that serves the card.
    pub served: Serving<Net<Loopback>>,
    device: TestDevice,
    events: Receiver<Event>,
}

impl IsolatedCard {
    /// Creates a card with this number of queue pairs.
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

    /// Opens the card as a driver that is about to map memory.
    #[track_caller]
    pub fn vhost(&self) -> Vhost {
        spaces::open(&self.device)
    }

    /// Waits for the next event.
    #[track_caller]
    pub fn next(&self) -> Event {
        received("something happens", &self.events)
    }

    /// Waits for this event, and returns it.
    #[track_caller]
    pub fn until(&self, what: &What) -> Event {
        loop {
            let event = self.next();
            if event.what == *what {
                return event;
            }
        }
    }

    /// Asserts that no event is pending.
    #[track_caller]
    pub fn is_quiet(&self) {
        assert_eq!(self.events.try_recv().ok(), None);
    }

    /// Discards the pending events.
    pub fn forget(&self) {
        self.events.try_iter().for_each(drop);
    }
}
