// SPDX-License-Identifier: GPL-2.0

//! Who uses a disk or a network card, as long as it is there.

use std::net::UdpSocket;
use std::process::{Command, Stdio};

use crate::fuzz::board::Wait;
use crate::fuzz::stage::Stage;
use crate::lab::device::bus;
use crate::lab::driver::block::Block;

/// A user's life.
pub fn live(stage: &mut Stage) {
    stage.pause(30);
    let name = stage.device();
    stage.go_on_for(800);
    if let Some(disk) = bus::disk_name(name) {
        use_disk(stage, &disk);
    } else if let Some(card) = bus::interface(name) {
        use_card(stage, &card);
    }
}

/// Reads and writes, whatever becomes of it.
fn use_disk(stage: &mut Stage, disk: &str) {
    let open = || Block::open(disk);
    let Some(block) = stage.attempt("open a disk", Wait::Daemon, open) else {
        return;
    };
    while stage.goes_on() {
        let at = stage.dice.below(260) * 4096;
        let len = 512 * (1 + stage.dice.below(256)) as usize;
        match stage.dice.below(8) {
            0..=3 => {
                stage.attempt("read a disk", Wait::Daemon, || block.read(at, len));
            }
            4..=6 => {
                let mut data = vec![0; len];
                stage.dice.fill(&mut data);
                stage.attempt("write a disk", Wait::Daemon, || block.write(at, &data));
            }
            _ => {
                stage.attempt("flush a disk", Wait::Daemon, || block.flush());
            }
        }
    }
}

fn ip(arguments: &[&str]) -> std::io::Result<()> {
    let mut command = Command::new("ip");
    command.args(arguments).stderr(Stdio::null());
    command.status().map(drop)
}

/// Brings a card up, sends packets, and mostly takes it down.
fn use_card(stage: &mut Stage, card: &str) {
    stage.attempt("ip link up", Wait::Daemon, || {
        ip(&["link", "set", card, "up"])
    });
    let net = stage.dice.below(200);
    let address = format!("10.77.{net}.1/24");
    stage.attempt("ip addr add", Wait::Daemon, || {
        ip(&["addr", "add", &address, "dev", card])
    });
    let socket = || {
        let socket = UdpSocket::bind(format!("10.77.{net}.1:0"))?;
        socket.set_broadcast(true)?;
        Ok(socket)
    };
    if let Some(socket) = stage.attempt("bind a socket", Wait::Short, socket) {
        let _ = socket.set_nonblocking(true);
        while stage.goes_on() {
            let mut data = vec![0; 1 + stage.dice.below(4000) as usize];
            stage.dice.fill(&mut data);
            let to = format!("10.77.{net}.255:9");
            stage.attempt("send a packet", Wait::Daemon, || socket.send_to(&data, &to));
            stage.pause(5);
        }
    }
    if stage.dice.one_in(2) {
        stage.attempt("ip link down", Wait::Daemon, || {
            ip(&["link", "set", card, "down"])
        });
    }
}
