// SPDX-License-Identifier: GPL-2.0

//! A client process of vhost-vdpa that a test can kill.

use std::io;
use std::path::Path;
use std::process::{Child, Command};

use vduse::Device;

use crate::lab::assert::timing::soon;
use crate::lab::device::bus;
use crate::lab::driver::ring;
use crate::lab::driver::vhost::{access, Vhost};
use crate::lab::kernel::memory::page_of;

/// IOVA at which a client maps its page in each address space.
pub const IOVA: u64 = 0x10_0000;

/// A running client process.
#[derive(Debug)]
pub struct Client {
    child: Child,
}

impl Client {
    /// Starts a process that maps a page in each of the `spaces` address spaces of a device with
    /// API version 1. Returns when all pages are mapped. `file` is the daemon's open device.
    #[track_caller]
    pub fn start(name: &str, file: &Device, spaces: u32) -> Self {
        let child = Command::new("/proc/self/exe")
            .args(["--helper", "client"])
            .arg(bus::vhost_path(name).expect("a node"))
            .arg(spaces.to_string())
            .spawn()
            .expect("starting a client");
        let client = Self { child };
        soon("the client has mapped its memory", || {
            (0..spaces).all(|asid| file.iotlb_fd2(asid, IOVA, IOVA).is_ok())
        });
        client
    }

    /// Starts a process that enables virtqueue 0 of a device.
    #[track_caller]
    pub fn enable(name: &str) -> Self {
        Self::call("enable", name)
    }

    /// Starts a process that sets `DRIVER_OK` and then suspends a device.
    #[track_caller]
    pub fn suspend(name: &str) -> Self {
        Self::call("suspend", name)
    }

    #[track_caller]
    fn call(helper: &str, name: &str) -> Self {
        let child = Command::new("/proc/self/exe")
            .args(["--helper", helper])
            .arg(bus::vhost_path(name).expect("a node"))
            .spawn()
            .expect("starting a client");
        Self { child }
    }

    /// Kills the process and waits until it has ended.
    pub fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.end();
    }
}

/// Runs in the helper process `client PATH SPACES`. Maps a page in each of the `SPACES` address
/// spaces of the device at `PATH`, and then waits until the process is killed.
pub fn run(path: &Path, spaces: u32) -> io::Result<()> {
    let vhost = Vhost::open(path)?;
    vhost.set_owner()?;
    vhost.set_backend_features_asid()?;
    let page = page_of(1);
    for asid in 0..spaces {
        vhost.map_in(asid, IOVA, &page, access::RW)?;
    }
    loop {
        std::thread::park();
    }
}

/// Runs in the helper process `moves PATH SPACES`. Moves virtqueue group 0 of the device at `PATH`
/// to each of the `SPACES` address spaces in turn.
pub fn move_through(path: &Path, spaces: u32) -> io::Result<()> {
    let vhost = Vhost::open(path)?;
    vhost.set_owner()?;
    (0..spaces).try_for_each(|asid| vhost.set_group_asid(0, asid))
}

/// Runs in the helper process `enable PATH`. Enables virtqueue 0 of the device at `PATH`.
pub fn enable(path: &Path) -> io::Result<()> {
    let vhost = Vhost::open(path)?;
    vhost.set_owner()?;
    vhost.enable_queue(0)
}

/// Runs in the helper process `suspend PATH`. Sets `DRIVER_OK`, and then suspends the device at
/// `PATH`.
pub fn suspend(path: &Path) -> io::Result<()> {
    let vhost = Vhost::open(path)?;
    vhost.set_owner()?;
    ring::agree(&vhost);
    ring::start(&vhost);
    vhost.suspend()
}
