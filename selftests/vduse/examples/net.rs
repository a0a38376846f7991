// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A network card that exchanges packets with a TAP interface of this machine:
//! `net NAME TAP [--pairs N] [--control | --isolate] [--mac M]`, then `vdpa dev add name NAME mgmtdev vduse`.
//!
//! The program prints the driver's actions. With `--control` the card has a control queue, through
//! which the driver enables several queue pairs, sets addresses, and filters received packets. With
//! `--isolate` the control queue is in a virtqueue group of its own, so that QEMU can keep the
//! control queue's memory separate from the guest's.

use std::io;

use vduse::net::{Groups, Mac, Net, Shape, Tap};
use vduse::Device;

/// Creates the card, or takes it over if it exists, and serves it.
pub fn serve(shape: &Shape, tap: &str) -> io::Result<()> {
    shape.create()?;
    let device = Device::open(&shape.name)?;
    let card = Net::new(shape.mac, Tap::open(tap, shape.pairs)?)?;
    let card = card.observed_by(|event| println!("{:?}", event.what));
    shape.server(device, card)?.run()
}

/// Parses the command line.
pub fn parse(arguments: &[String]) -> Option<(Shape, String)> {
    let (name, tap) = (arguments.first()?, arguments.get(1)?);
    let mut shape = Shape::new(name, [0x52, 0x54, 0, 0x12, 0x34, 0x56]);
    let mut options = arguments[2..].iter();
    while let Some(option) = options.next() {
        match option.as_str() {
            "--pairs" => shape.pairs = options.next()?.parse().ok().filter(|&pairs| pairs > 0)?,
            "--mac" => shape.mac = parse_mac(options.next()?)?,
            "--control" => shape.control = true,
            "--isolate" => {
                shape.control = true;
                shape.groups = Groups::Isolated;
            }
            _ => return None,
        }
    }
    Some((shape, tap.clone()))
}

fn parse_mac(text: &str) -> Option<Mac> {
    let bytes = text.split(':').map(|byte| u8::from_str_radix(byte, 16));
    bytes.collect::<Result<Vec<_>, _>>().ok()?.try_into().ok()
}

fn main() -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some((shape, tap)) = parse(&arguments) else {
        eprintln!("usage: net NAME TAP [--pairs N] [--control | --isolate] [--mac M]");
        std::process::exit(2);
    };
    serve(&shape, &tap)
}
