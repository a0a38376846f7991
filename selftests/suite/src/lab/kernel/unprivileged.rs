// SPDX-License-Identifier: GPL-2.0

//! A process that has all capabilities in its own user namespace, but none outside.

use std::io;

use rustix::io::Errno;
use rustix::thread::{capabilities, unshare_unsafe, CapabilitySet, UnshareFlags};
use vdpa_netlink::Vdpa;
use vduse::Control;

use crate::lab::assert::errors::fails;
use crate::lab::device::test_device::net_config;

/// The helper process `unprivileged NAME`. Tries to create a network card, and to put an existing
/// device on the bus.
pub fn run(name: &str) -> io::Result<()> {
    // SAFETY: The process has one thread, and none of its open files depend on its credentials.
    unsafe { unshare_unsafe(UnshareFlags::NEWUSER) }?;
    let capable = capabilities(None)?.effective;
    assert!(capable.contains(CapabilitySet::NET_ADMIN));
    fails(Control::open()?.create(&net_config()), Errno::PERM);
    fails(Vdpa::open()?.add(name, "vduse"), Errno::PERM);
    Ok(())
}
