// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A disk whose data is in a file. Run `blk NAME FILE [QUEUES]`, then
//! `vdpa dev add name NAME mgmtdev vduse`.

use std::fs::OpenOptions;
use std::io;
use std::sync::Arc;

use vduse::blk::{self, Disk};
use vduse::server::Server;
use vduse::{Control, Device};

fn main() -> io::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (Some(name), Some(path)) = (arguments.next(), arguments.next()) else {
        eprintln!("usage: blk NAME FILE [QUEUES]");
        std::process::exit(2);
    };
    let queues = arguments.next().map_or(Ok(1), |n| n.parse());
    let queues: u16 = queues.map_err(io::Error::other)?;

    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let config = blk::device_config(&name, file.metadata()?.len(), queues);
    let control = Control::open()?;
    control.offer_all()?;
    match control.create(&config) {
        // The device exists already: take it over.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        result => result?,
    }
    let device = Device::open(&name)?;
    let sizes = vec![256; queues.into()];
    Server::new(device, &sizes, Disk::new(Arc::new(file)))?.run()
}
