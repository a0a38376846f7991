// SPDX-License-Identifier: GPL-2.0

//! An actor that uses disks and network cards while they exist.

use std::net::UdpSocket;
use std::process::{Command, Stdio};

use crate::fuzz::actor::Actor;
use crate::fuzz::records::Wait;
use crate::lab::device::bus;
use crate::lab::driver::block::Block;

/// Plays one life of a user: picks a device, and uses the disk or network card that it provides.
pub fn live(actor: &mut Actor) {
    actor.pause(30);
    let name = actor.device();
    actor.go_on_for(800);
    if let Some(disk) = bus::disk_name(name) {
        use_disk(actor, &disk);
    } else if let Some(card) = bus::interface(name) {
        use_card(actor, &card);
    }
}

/// Reads, writes and flushes a disk. Any error is allowed.
fn use_disk(actor: &mut Actor, disk: &str) {
    let open = || Block::open(disk);
    let Some(block) = actor.attempt("open a disk", Wait::Daemon, open) else {
        return;
    };
    while actor.goes_on() {
        let at = actor.dice.below(260) * 4096;
        let len = 512 * (1 + actor.dice.below(256)) as usize;
        match actor.dice.below(8) {
            0..=3 => {
                actor.attempt("read a disk", Wait::Daemon, || block.read(at, len));
            }
            4..=6 => {
                let mut data = vec![0; len];
                actor.dice.fill(&mut data);
                actor.attempt("write a disk", Wait::Daemon, || block.write(at, &data));
            }
            _ => {
                actor.attempt("flush a disk", Wait::Daemon, || block.flush());
            }
        }
    }
}

fn ip(arguments: &[&str]) -> std::io::Result<()> {
    let mut command = Command::new("ip");
    command.args(arguments).stderr(Stdio::null());
    command.status().map(drop)
}

/// Changes a setting of a card's interface. If the card has a control queue, its driver sends a
/// command.
fn configure(actor: &mut Actor, card: &str) {
    let address = format!("02:00:00:00:00:{:02x}", actor.dice.below(256));
    let words: &[&str] = match actor.dice.below(5) {
        0 => &["promisc", "on"],
        1 => &["promisc", "off"],
        2 => &["allmulticast", "on"],
        3 => &["allmulticast", "off"],
        _ => &["address", &address],
    };
    actor.attempt("ip link set", Wait::Daemon, || {
        ip(&[&["link", "set", card], words].concat())
    });
}

/// Brings a card's interface up, sends packets, and in half of the cases takes the interface down.
fn use_card(actor: &mut Actor, card: &str) {
    actor.attempt("ip link up", Wait::Daemon, || {
        ip(&["link", "set", card, "up"])
    });
    let net = actor.dice.below(200);
    let address = format!("10.77.{net}.1/24");
    actor.attempt("ip addr add", Wait::Daemon, || {
        ip(&["addr", "add", &address, "dev", card])
    });
    let socket = || {
        let socket = UdpSocket::bind(format!("10.77.{net}.1:0"))?;
        socket.set_broadcast(true)?;
        Ok(socket)
    };
    if let Some(socket) = actor.attempt("bind a socket", Wait::Short, socket) {
        let _ = socket.set_nonblocking(true);
        while actor.goes_on() {
            let mut data = vec![0; 1 + actor.dice.below(4000) as usize];
            actor.dice.fill(&mut data);
            let to = format!("10.77.{net}.255:9");
            actor.attempt("send a packet", Wait::Daemon, || socket.send_to(&data, &to));
            if actor.dice.one_in(8) {
                configure(actor, card);
            }
            actor.pause(5);
        }
    }
    if actor.dice.one_in(2) {
        actor.attempt("ip link down", Wait::Daemon, || {
            ip(&["link", "set", card, "down"])
        });
    }
}
