// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A handle to a running server, for other threads.

use std::collections::HashMap;
use std::io;
use std::ops::Deref;
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
    moved: Mutex<HashMap<u32, u32>>,
    /// The kick eventfd of each virtqueue that the driver has enabled.
    kicks: Mutex<HashMap<u16, Arc<EventFd>>>,
    /// The commands that the server has not taken yet. `None` when the server has ended and so takes
    /// no more commands.
    commands: Mutex<Option<Vec<Pending>>>,
}

/// A command, and the sender of its result. Dropping the sender tells the caller that the command
/// was not executed.
pub(super) type Pending = (Command, Sender<io::Result<()>>);

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

    /// Wakes the server's thread.
    pub(super) fn wake(&self) {
        // If the counter is at its maximum, the eventfd is readable all the same.
        let _ = self.control.wake.signal();
    }

    /// Makes the server look for requests of a virtqueue, as if the driver had kicked it. Does
    /// nothing if the driver has never enabled the virtqueue.
    pub fn kick(&self, queue: u16) {
        if let Some(kick) = self.control.kicks().get(&queue) {
            // If the counter is at its maximum, the eventfd is readable all the same.
            let _ = kick.signal();
        }
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
    /// As [`Umem::register`](crate::umem::Umem::register); `EEXIST` when the server has registered
    /// memory already; `BrokenPipe` when the server has ended, or ends without registering the
    /// memory.
    ///
    /// # Context
    ///
    /// Waits for the server's thread, so a [`Backend`](crate::server::Backend) that calls this
    /// function from that thread waits forever.
    pub fn register_umem(&self) -> io::Result<()> {
        self.ask(Command::RegisterUmem)
    }

    /// Deregisters the memory of this program, so that the kernel copies the driver's data through
    /// its own bounce pages again.
    ///
    /// # Errors
    ///
    /// As [`Umem::deregister`](crate::umem::Umem::deregister); `ENOENT` when no memory is
    /// registered; `BrokenPipe` when the server has ended, or ends without deregistering the memory.
    ///
    /// # Context
    ///
    /// As [`register_umem`](Self::register_umem).
    pub fn deregister_umem(&self) -> io::Result<()> {
        self.ask(Command::DeregisterUmem)
    }

    fn ask(&self, command: Command) -> io::Result<()> {
        let (sender, receiver) = mpsc::channel();
        match &mut *self.control.commands() {
            Some(commands) => commands.push((command, sender)),
            None => return Err(io::ErrorKind::BrokenPipe.into()),
        }
        self.control.wake.signal()?;
        receiver
            .recv()
            .unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into()))
    }
}

impl Shared {
    fn commands(&self) -> MutexGuard<'_, Option<Vec<Pending>>> {
        self.commands.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn moved(&self) -> MutexGuard<'_, HashMap<u32, u32>> {
        self.moved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn kicks(&self) -> MutexGuard<'_, HashMap<u16, Arc<EventFd>>> {
        self.kicks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn address_space(&self, group: u32) -> u32 {
        self.moved().get(&group).copied().unwrap_or(0)
    }

    pub(super) fn take_commands(&self) -> Vec<Pending> {
        self.commands()
            .as_mut()
            .map(std::mem::take)
            .unwrap_or_default()
    }

    /// Rejects the commands that the server has not taken, and all later commands.
    fn close(&self) {
        *self.commands() = None;
    }

    /// Returns the number of commands that the server has not taken.
    #[cfg(test)]
    pub(super) fn pending(&self) -> usize {
        self.commands().as_ref().map_or(0, Vec::len)
    }
}

/// A server's reference to the shared state. Dropping the reference rejects all waiting and all
/// later commands, so that the callers of a [`Handle`] do not wait for a server that has ended.
#[derive(Debug)]
pub(super) struct Served(Arc<Shared>);

impl Served {
    /// Creates the shared state. From now on, handles can send commands. The commands wait until
    /// the server runs.
    pub(super) fn new(moved: HashMap<u32, u32>) -> io::Result<Self> {
        Ok(Self(Arc::new(Shared {
            wake: EventFd::new()?,
            stop: AtomicBool::new(false),
            moved: Mutex::new(moved),
            kicks: Mutex::default(),
            commands: Mutex::new(Some(Vec::new())),
        })))
    }

    /// Accepts commands, until the return value is dropped.
    pub(super) fn accept(&self) -> Self {
        self.commands().get_or_insert_default();
        Self(self.0.clone())
    }

    /// Returns a reference to the shared state, for a handle.
    pub(super) fn share(&self) -> Arc<Shared> {
        self.0.clone()
    }
}

impl Deref for Served {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.close();
    }
}
