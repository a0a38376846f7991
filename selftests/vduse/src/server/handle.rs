// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A handle to a running server, for other threads.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::eventfd::EventFd;
use crate::Device;

/// State shared by a server and its handles.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) wake: EventFd,
    pub(super) stop: AtomicBool,
    /// The address space of each virtqueue group, keyed by group. A group without an entry is in
    /// address space 0.
    pub(super) moved: Mutex<HashMap<u32, u32>>,
    pub(super) commands: Mutex<Vec<(Command, Sender<io::Result<()>>)>>,
}

/// A command from a handle to its server.
#[derive(Clone, Copy, Debug)]
pub(super) enum Command {
    RegisterUmem,
    DeregisterUmem,
}

/// A handle to a running [`Server`](crate::server::Server), for use by another thread.
#[derive(Clone, Debug)]
pub struct Handle {
    pub(super) device: Arc<Device>,
    pub(super) control: Arc<Shared>,
}

impl Handle {
    /// Tells the server to stop, but does not wait until the server has stopped.
    pub fn stop(&self) {
        self.control.stop.store(true, Ordering::Release);
        // If the counter is at its maximum, `signal` fails, but the eventfd is readable and wakes
        // the server all the same.
        let _ = self.control.wake.signal();
    }

    /// Returns the device.
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// Returns the address space of a virtqueue group.
    pub fn address_space(&self, group: u32) -> u32 {
        self.control.address_space(group)
    }

    /// Registers memory of this program as the bounce area (umem). From then on, the kernel copies
    /// the driver's data through that memory. The server registers the memory between two requests.
    ///
    /// # Errors
    ///
    /// As [`Umem::register`]; `EEXIST` when the server has registered memory already; `BrokenPipe`
    /// when the server ends without registering the memory.
    pub fn register_umem(&self) -> io::Result<()> {
        self.ask(Command::RegisterUmem)
    }

    /// Deregisters the memory of this program, so that the kernel copies the driver's data through
    /// its own bounce pages again.
    ///
    /// # Errors
    ///
    /// As [`Umem::deregister`]; `ENOENT` when no memory is registered; `BrokenPipe` when the server
    /// ends without deregistering the memory.
    pub fn deregister_umem(&self) -> io::Result<()> {
        self.ask(Command::DeregisterUmem)
    }

    fn ask(&self, command: Command) -> io::Result<()> {
        let (sender, receiver) = mpsc::channel();
        self.control
            .commands
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push((command, sender));
        self.control.wake.signal()?;
        receiver
            .recv()
            .unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into()))
    }
}

impl Shared {
    pub(super) fn moved(&self) -> MutexGuard<'_, HashMap<u32, u32>> {
        self.moved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn address_space(&self, group: u32) -> u32 {
        self.moved().get(&group).copied().unwrap_or(0)
    }

    pub(super) fn take_commands(&self) -> Vec<(Command, Sender<io::Result<()>>)> {
        let mut commands = self.commands.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *commands)
    }
}
