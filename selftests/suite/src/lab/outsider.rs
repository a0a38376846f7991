// SPDX-License-Identifier: GPL-2.0

//! A process with all capabilities in a user namespace of its own, and none outside.

use std::io;

use rustix::io::Errno;
use rustix::thread::{capabilities, unshare_unsafe, CapabilitySet, UnshareFlags};
use vdpa_netlink::Vdpa;
use vduse::Control;

use crate::lab::device::net_config;
use crate::lab::expect::fails;

/// The process: `outsider NAME`. Tries to create a network card, and to put a device on the bus
/// that could be put there.
pub fn run(name: &str) -> io::Result<()> {
    // SAFETY: There is one thread, and who it is matters to none of what it has open.
    unsafe { unshare_unsafe(UnshareFlags::NEWUSER) }?;
    let capable = capabilities(None)?.effective;
    assert!(capable.contains(CapabilitySet::NET_ADMIN));
    fails(Control::open()?.create(&net_config()), Errno::PERM);
    fails(Vdpa::open()?.add(name, "vduse"), Errno::PERM);
    Ok(())
}
