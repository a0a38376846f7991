// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A network card on a TAP interface, with a control queue in a virtqueue group of its own:
//! `net NAME TAP [PAIRS]`, then `vdpa dev add name NAME mgmtdev vduse`.
//!
//! It says what the driver does: a virtual machine (`-netdev vhost-vdpa`) that keeps the control
//! queue in an address space of its own moves group 1 to address space 1.

use std::io;
use std::sync::mpsc;

use vduse::net::{Card, Mac, Shape, Tap};
use vduse::server::Server;
use vduse::{Control, Device};

/// Creates the device and serves it.
pub fn serve(name: &str, tap: &str, pairs: u16) -> io::Result<()> {
    let mut shape = Shape::new(name, Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56]));
    shape.pairs = pairs;
    shape.isolated = true;
    match Control::open_v1()?.create(&shape.device_config()) {
        // Somebody was here before: go on with the device.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        result => result?,
    }
    let (sender, events) = mpsc::channel();
    std::thread::spawn(move || events.iter().for_each(|event| println!("{event:?}")));
    let card = Card::new(&shape, Tap::open(tap, pairs)?).observed(sender);
    let device = Device::open_nonblocking(name)?;
    Server::with_groups(device, &shape.queues(), shape.spaces(), card)?.run()
}

fn main() -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (name, tap, pairs) = match &arguments[..] {
        [name, tap] => (name, tap, "1"),
        [name, tap, pairs] => (name, tap, &pairs[..]),
        _ => {
            eprintln!("usage: net NAME TAP [PAIRS]");
            std::process::exit(2);
        }
    };
    serve(name, tap, pairs.parse().map_err(io::Error::other)?)
}
