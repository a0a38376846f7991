// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A server that serves all virtqueues in one thread, request by request.

#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::Ordering;

use rustix::event::{poll, PollFd, PollFlags, Timespec};

use crate::eventfd::EventFd;
use crate::server::backend::Backend;
use crate::server::handle::Handle;
use crate::server::session::{interrupt, Event, Session, Shape, SOON};
use crate::virtqueue::{Chain, Error};
use crate::Device;

/// A server of a device. It answers the kernel's requests to the device, and passes the requests in
/// the virtqueues to a [`Backend`].
#[derive(Debug)]
pub struct Server<B> {
    session: Session,
    backend: B,
    /// For each virtqueue, the event for which it waits.
    waits: Vec<Waits>,
    /// The request that is being served.
    chain: Chain,
    lists: Lists,
}

/// The lists of a turn, which are empty between turns. They are kept so that a turn allocates nothing:
/// memory may be short, and the kernel may wait for this turn to get some.
#[derive(Debug, Default)]
struct Lists {
    fds: Vec<PollFd<'static>>,
    /// The virtqueues that the driver has kicked.
    kicked: Vec<usize>,
    /// The virtqueues whose source is ready, and whether it is readable.
    fed: Vec<(usize, bool)>,
}

/// Empties a list of file descriptors. The list keeps its memory, as the standard library collects a
/// vector's iterator in place.
fn recycle<'to>(mut fds: Vec<PollFd<'_>>) -> Vec<PollFd<'to>> {
    fds.clear();
    fds.into_iter().map(|_| unreachable!("empty")).collect()
}

/// The event for which a virtqueue waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Waits {
    /// A kick by the driver, because the virtqueue has no more requests or its source has failed.
    Kick,
    /// The moment at which the backend's source becomes readable. No kick is needed.
    Source,
    /// The virtqueue's next turn, after the server has served the other virtqueues. No kick is
    /// needed.
    Turn,
}

/// Maximum number of requests of one virtqueue that the server serves before it serves the other
/// virtqueues.
const TURN: usize = 256;

const AT_ONCE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 0,
};

/// Passes an event to a backend.
fn tell(backend: &mut impl Backend, event: Event) {
    match event {
        Event::Started(features) => backend.start(features),
        Event::Moved { group, asid } => backend.moved(group, asid),
        Event::Suspending => backend.drain(),
        Event::Reset => backend.reset(),
    }
}

/// Writes a backend's changes to the configuration space.
fn write_config(device: &Device, backend: &mut impl Backend) {
    for (offset, data) in backend.config_changes() {
        if let Err(error) = device.set_config(offset, &data) {
            eprintln!("configuration space, {offset}: {error}");
        }
    }
}

impl<B: Backend> Server<B> {
    /// Creates a server of a device, and sets up one virtqueue for each maximum size in `sizes`. If
    /// a driver uses the device already, the server resumes where its predecessor stopped, and
    /// interrupts the driver when [`run`](Self::run) starts.
    ///
    /// # Errors
    ///
    /// Returns the error of the ioctl that failed.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use vduse::blk::{self, Disk};
    /// use vduse::server::Server;
    /// use vduse::{Control, Device};
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let bytes = 1 << 20;
    /// Control::open()?.create(&blk::device_config("disk0", bytes, 1))?;
    /// let device = Device::open("disk0")?;
    /// Server::new(device, &[256], Disk::in_memory(bytes)?)?.run()
    /// # }
    /// ```
    pub fn new(device: Device, sizes: &[u16], backend: B) -> io::Result<Self> {
        Self::with(device, Shape::Sizes(sizes), backend)
    }

    /// Creates a server of a device that is on the vDPA bus and has `queues` virtqueues, without
    /// setting the virtqueues up. If a driver uses the device already, the server resumes where its
    /// predecessor stopped. If the device has several address spaces, the server uses only the
    /// first one.
    ///
    /// # Errors
    ///
    /// Returns the error of the ioctl that failed.
    pub fn take_over(device: Device, queues: usize, backend: B) -> io::Result<Self> {
        Self::with(device, Shape::TakeOver(queues), backend)
    }

    /// Variant of [`new`](Self::new) for a device of version 1. `queues` has the maximum size and
    /// the group of each virtqueue, and `spaces` is the number of address spaces.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub fn with_groups(
        device: Device,
        queues: &[(u16, u32)],
        spaces: u32,
        backend: B,
    ) -> io::Result<Self> {
        Self::with(device, Shape::Groups(queues, spaces), backend)
    }

    fn with(device: Device, shape: Shape<'_>, mut backend: B) -> io::Result<Self> {
        let on = &mut |event| tell(&mut backend, event);
        let session = Session::new(device, shape, None, EventFd::new, on)?;
        Ok(Self {
            waits: vec![Waits::Kick; session.queues.len()],
            session,
            backend,
            chain: Chain::new(),
            lists: Lists::default(),
        })
    }

    /// Returns a handle for another thread.
    pub fn handle(&self) -> Handle {
        self.session.handle()
    }

    /// Returns the backend.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// Ends the server and returns the backend.
    pub fn into_backend(self) -> B {
        self.backend
    }

    /// Serves the device until a [`Handle`] stops the server.
    ///
    /// # Errors
    ///
    /// `EPERM` when the kernel has marked the device broken; otherwise the error of the call that
    /// failed.
    pub fn run(&mut self) -> io::Result<()> {
        // Dropping `_accepting` gives an error to the callers whose commands the server has not
        // executed, for whatever reason `serve` returns.
        let _accepting = self.session.control.accept();
        self.serve()
    }

    fn serve(&mut self) -> io::Result<()> {
        for index in 0..self.waits.len() {
            // Serve requests that the driver made available before the kick eventfd was set.
            self.process(index);
        }
        self.session.interrupt_all();
        while !self.session.control.stop.load(Ordering::Acquire) {
            self.turn()?;
        }
        Ok(())
    }

    /// Waits for events, and handles them.
    fn turn(&mut self) -> io::Result<()> {
        let session = &self.session;
        let device = PollFd::from_borrowed_fd(session.device.as_fd(), PollFlags::IN);
        let wake = PollFd::from_borrowed_fd(session.control.wake.as_fd(), PollFlags::IN);
        let Lists {
            fds,
            mut kicked,
            mut fed,
        } = std::mem::take(&mut self.lists);
        let mut fds = recycle(fds);
        fds.extend([device, wake]);
        let kicks = || {
            (0..)
                .zip(&session.queues)
                .filter_map(|(index, vq)| Some((index, &**vq.kick.as_ref()?)))
        };
        fds.extend(kicks().map(|(_, kick)| PollFd::from_borrowed_fd(kick.as_fd(), PollFlags::IN)));
        let first_source = fds.len();
        fds.extend(
            self.sources()
                .map(|(_, source)| PollFd::from_borrowed_fd(source, PollFlags::IN)),
        );
        let may_grow = session.may_grow();
        let timeout = if self.waits.contains(&Waits::Turn) {
            Some(&AT_ONCE)
        } else {
            may_grow.then_some(&SOON)
        };
        match poll(&mut fds, timeout) {
            Ok(_) => {}
            // Nothing has happened.
            Err(rustix::io::Errno::INTR) => fds.iter_mut().for_each(PollFd::clear_revents),
            Err(errno) => return Err(errno.into()),
        }
        let on_device = fds[0].revents();
        kicked.extend(
            kicks()
                .zip(&fds[2..])
                .filter(|(_, fd)| fd.revents().contains(PollFlags::IN))
                .map(|((index, _), _)| index),
        );
        // A failed source counts as readable, so that the backend detects the failure.
        fed.extend(
            self.sources()
                .zip(&fds[first_source..])
                .filter(|(_, fd)| !fd.revents().is_empty())
                .map(|((index, _), fd)| (index, fd.revents().contains(PollFlags::IN))),
        );
        let fds = recycle(fds);
        if on_device.intersects(PollFlags::ERR | PollFlags::HUP) {
            return Err(rustix::io::Errno::PERM.into());
        }
        self.session.control.wake.take()?;
        self.session.execute_commands();
        // Serve kicks before requests. A driver stops kicking a virtqueue before it asks for the
        // virtqueue's state, so the state must include the last kick.
        for &index in &kicked {
            if let Some(kick) = &self.session.queues[index].kick {
                kick.take()?;
            }
            self.process(index);
        }
        for &(index, readable) in &fed {
            self.process(index);
            // Stop polling a failed source, because `poll` would return at once each time.
            if !readable && self.waits[index] == Waits::Source {
                self.waits[index] = Waits::Kick;
            }
        }
        for index in 0..self.waits.len() {
            if self.waits[index] == Waits::Turn && !kicked.contains(&index) {
                self.process(index);
            }
        }
        let backend = &mut self.backend;
        let mut started = Vec::new();
        if may_grow {
            // The driver may enable virtqueues after DRIVER_OK too, and the kernel sends no message
            // about that.
            started.extend(
                self.session
                    .activate(false, &mut |event| tell(backend, event))?,
            );
        }
        if on_device.contains(PollFlags::IN) {
            let device = self.session.device.clone();
            started.extend(self.session.answer_next(&mut |event| {
                tell(backend, event);
                if event == Event::Reset {
                    write_config(&device, backend);
                }
            })?);
            // The chain may hold memory that the driver has unmapped.
            self.chain = Chain::new();
            // What a virtqueue was kicked for while its rings were not mapped is still to be served.
            started.extend((0..self.waits.len()).filter(|&index| {
                self.session.is_served(index) && self.session.queues[index].unmapped
            }));
        }
        for index in 0..self.waits.len() {
            if !self.session.is_served(index) || started.contains(&index) {
                self.waits[index] = Waits::Kick;
            }
        }
        for index in started {
            self.process(index);
        }
        kicked.clear();
        fed.clear();
        self.lists = Lists { fds, kicked, fed };
        Ok(())
    }

    /// Returns the index and the source of each virtqueue that waits for its source.
    fn sources(&self) -> impl Iterator<Item = (usize, BorrowedFd<'_>)> {
        (0..self.waits.len())
            .filter(|&index| self.waits[index] == Waits::Source)
            .filter_map(|index| Some((index, self.backend.source(index as u16)?)))
    }

    /// Serves the pending requests of a virtqueue.
    fn process(&mut self, index: usize) {
        self.waits[index] = Waits::Kick;
        match self.try_process(index) {
            Ok(waits) => self.waits[index] = waits,
            Err(error) => self.session.break_queue(index, &error),
        }
    }

    fn try_process(&mut self, index: usize) -> Result<Waits, Error> {
        let Some((vq, device)) = self.session.rings(index) else {
            return Ok(Waits::Kick);
        };
        let backend = &mut self.backend;
        let mut served = 0;
        loop {
            vq.disable_kicks();
            let before = served;
            let mut wants_interrupt = false;
            let waits = loop {
                if served >= TURN {
                    break Waits::Turn;
                }
                if !backend.ready(index as u16) {
                    break Waits::Source;
                }
                match vq.pop(&mut self.chain) {
                    Ok(true) => {}
                    Ok(false) => break Waits::Kick,
                    Err(error) => {
                        if wants_interrupt {
                            interrupt(device, index as u32);
                        }
                        return Err(error);
                    }
                }
                let written = backend.serve(index as u16, &self.chain);
                write_config(device, backend);
                vq.push(&self.chain, written);
                // Publish each request, so that a server that takes the device over repeats only
                // the request in which this one ended.
                wants_interrupt |= vq.publish();
                served += 1;
            };
            // Requests with buffers that are not mapped are complete as well.
            wants_interrupt |= vq.publish();
            let more = waits == Waits::Kick && vq.enable_kicks();
            if wants_interrupt {
                interrupt(device, index as u32);
            }
            if served != before {
                backend.answered();
            }
            if !more {
                return Ok(waits);
            }
        }
    }
}
