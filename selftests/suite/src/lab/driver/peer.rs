// SPDX-License-Identifier: GPL-2.0

//! A network card that virtio_net drives in a separate network namespace.

use std::net::UdpSocket;
use std::process::Command;

use crate::lab::assert::timing::soon;
use crate::lab::daemon::tap::HERE;
use crate::lab::device::bus::{self, Driver, OnBus};
use crate::lab::driver::namespace::{ip, Namespace};
use crate::lab::kernel::{cpu, modules};

/// IP address of the card.
pub const THERE: &str = "10.99.0.2";

/// UDP port of the discard service, which sends no answers.
pub const DISCARD: u16 = 9;

/// A network card that virtio_net drives in a separate network namespace.
#[derive(Debug)]
pub struct Peer {
    interface: String,
    namespace: Namespace,
    _on_bus: OnBus,
}

impl Peer {
    /// Puts the card `name`, which a daemon serves, on the bus. Moves the card's interface to a new
    /// namespace.
    #[track_caller]
    pub fn new(name: &str) -> Self {
        Self::at(name, THERE)
    }

    /// Variant of [`new`](Self::new) with the IP address `address` for the card.
    #[track_caller]
    pub fn at(name: &str, address: &str) -> Self {
        modules::tool("modprobe", &["virtio_net"]).expect("loading virtio_net");
        let on_bus = OnBus::add_soon(name);
        on_bus.bind(Driver::Virtio).expect("binding the card");
        soon("the interface appears", || bus::interface(name).is_some());
        let interface = bus::interface(name).expect("an interface");
        let namespace = Namespace::new();
        ip(&format!("link set {interface} netns {}", namespace.name()));
        namespace.ip(&format!("address add {address}/24 dev {interface}"));
        namespace.ip(&format!("link set {interface} up"));
        Self {
            interface,
            namespace,
            _on_bus: on_bus,
        }
    }

    /// Returns the card's namespace.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Returns the name of the card's interface.
    pub fn interface(&self) -> &str {
        &self.interface
    }

    /// Runs `ethtool` with `option` on the card's interface. Returns the program's output.
    #[track_caller]
    pub fn ethtool(&self, option: &str, arguments: &str) -> String {
        let output = self
            .namespace
            .command("ethtool")
            .args([option, &self.interface])
            .args(arguments.split_whitespace())
            .output()
            .expect("running ethtool");
        assert!(
            output.status.success(),
            "ethtool {option} {arguments}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Sends `flows` UDP packets to `to` from each CPU. Each packet has its own source port, and so
    /// is a flow of its own. Returns the source ports.
    #[track_caller]
    pub fn send_flows(&self, to: &'static str, port: u16, flows: usize) -> Vec<u16> {
        let threads: Vec<_> = cpu::online()
            .into_iter()
            .map(|cpu| {
                self.namespace.spawn(move || {
                    cpu::run_on(cpu);
                    let send = |_| {
                        let socket = UdpSocket::bind(("0.0.0.0", 0)).expect("a socket");
                        let _ = socket.send_to(b"a packet", (to, port));
                        socket.local_addr().expect("an address").port()
                    };
                    (0..flows).map(send).collect::<Vec<_>>()
                })
            })
            .collect();
        threads
            .into_iter()
            .flat_map(|thread| thread.join().expect("sending packets"))
            .collect()
    }

    /// Asserts that pings with `bytes` bytes of data get through in both directions without loss.
    #[track_caller]
    pub fn ping_both_ways(&self, bytes: u16) {
        ping(Command::new("ping"), THERE, bytes);
        ping(self.namespace.command("ping"), HERE, bytes);
    }
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
