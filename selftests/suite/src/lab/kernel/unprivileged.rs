// SPDX-License-Identifier: GPL-2.0

//! A helper process that has all capabilities in its own user namespace, but no capabilities
//! outside it.

use std::io;

use rustix::io::Errno;
use rustix::thread::{capabilities, unshare_unsafe, CapabilitySet, UnshareFlags};
use vdpa_netlink::Vdpa;
use vduse::Control;

use crate::lab::assert::errors::fails;
use crate::lab::device::test_device::net_config;

/// Runs the helper process `unprivileged NAME`. Asserts that it may neither create a network card
/// nor put the existing device `NAME` on the bus: both fail with `EPERM`.
pub fn run(name: &str) -> io::Result<()> {
    // SAFETY: The process has a single thread, and none of its open files depend on its
    // credentials.
    unsafe { unshare_unsafe(UnshareFlags::NEWUSER) }?;
    let capable = capabilities(None)?.effective;
    assert!(capable.contains(CapabilitySet::NET_ADMIN));
    fails(Control::open()?.create(&net_config()), Errno::PERM);
    fails(Vdpa::open()?.add(name, "vduse"), Errno::PERM);
    Ok(())
}
