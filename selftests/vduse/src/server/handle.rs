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
    /// The address spaces of the groups that were moved, by group.
    pub(super) moved: Mutex<HashMap<u32, u32>>,
    pub(super) commands: Mutex<Vec<(Command, Sender<io::Result<()>>)>>,
}

/// Commands from a handle to its server.
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
    /// Asks the server to leave its loop, and does not wait for that.
    pub fn stop(&self) {
        self.control.stop.store(true, Ordering::Release);
        // If the counter is at its maximum, the eventfd is readable all the same.
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

    /// Replaces the bounce area with memory of this program, through which the driver's data is
    /// copied from then on. The replacement happens between two requests.
    ///
    /// # Errors
    ///
    /// As [`Umem::register`]; `EEXIST` when the server's memory is registered already; `BrokenPipe`
    /// when the server has ended.
    pub fn register_umem(&self) -> io::Result<()> {
        self.ask(Command::RegisterUmem)
    }

    /// Deregisters the memory of this program, so that the driver's data is copied through the
    /// kernel's memory again.
    ///
    /// # Errors
    ///
    /// As [`Umem::deregister`]; `ENOENT` when no memory is registered; `BrokenPipe` when the server
    /// has ended.
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
