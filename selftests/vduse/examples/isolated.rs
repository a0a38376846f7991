// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A disk whose two virtqueues form two groups, each of which can have its own address space. Run
//! `isolated NAME BYTES`, then `vdpa dev add name NAME mgmtdev vduse`.
//!
//! With `VHOST_VDPA_SET_GROUP_ASID`, a driver can give each virtqueue access to a different part of
//! the driver's memory.

use std::io;

use vduse::blk::{self, Disk};
use vduse::server::Server;
use vduse::{Control, Device};

/// Creates the device and serves it.
pub fn serve(name: &str, bytes: u64) -> io::Result<()> {
    let mut config = blk::device_config(name, bytes, 2);
    config.groups = 2;
    config.address_spaces = 2;
    let control = Control::open_v1()?;
    // Offer all VDUSE features that the kernel supports, so that a driver can suspend the device
    // for a migration.
    control.offer_all()?;
    control.create(&config)?;
    let device = Device::open(name)?;
    // Each pair is the maximum size and the group of a virtqueue. The device has two address
    // spaces.
    let queues = [(256, 0), (256, 1)];
    Server::with_groups(device, &queues, 2, Disk::in_memory(bytes)?)?.run()
}

fn main() -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [name, bytes] = &arguments[..] else {
        eprintln!("usage: isolated NAME BYTES");
        std::process::exit(2);
    };
    serve(name, bytes.parse().map_err(io::Error::other)?)
}
