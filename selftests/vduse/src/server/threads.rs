// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A server that serves each virtqueue in a thread of its own.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use rustix::event::{poll, PollFd, PollFlags};

use crate::eventfd::EventFd;
use crate::memory;
use crate::server::handle::Handle;
use crate::server::session::{interrupt, Session, Shape, SOON};
use crate::virtqueue::{self, InFlightLog, Virtqueue};
use crate::{Device, Mapping};

/// Serves one virtqueue in a thread of its own.
///
/// The worker decides how requests are executed: one after the other, or many at a time, completed
/// in any order. Without an [`InFlightLog`], it must complete them in the order of arrival if a
/// successor of the program is to [take the device over](crate::server).
pub trait Worker: Send + 'static {
    /// Serves the virtqueue until the queue [is stopped](ServedQueue::is_stopped). Then completes
    /// the requests that it has taken, and returns.
    ///
    /// The first thing to do, even if the queue is stopped already, is to take all requests that are
    /// available: the driver may not kick for them, and a program that was taken over may have
    /// begun them. The server stops a queue whenever the driver changes something, and calls this
    /// function again later.
    ///
    /// # Errors
    ///
    /// After a [`virtqueue::Error`], the virtqueue is not served until the driver has reset the
    /// device. Any other error ends the server.
    fn serve(&mut self, queue: &mut ServedQueue) -> io::Result<()>;
}

/// A virtqueue that a [`Worker`] serves.
#[derive(Debug)]
pub struct ServedQueue {
    /// The device side of the virtqueue.
    pub vq: Virtqueue,
    index: u16,
    device: Arc<Device>,
    kick: Arc<EventFd>,
    stop: Arc<AtomicBool>,
    umem: Option<Arc<Mapping>>,
}

impl ServedQueue {
    /// Returns the index of the virtqueue.
    pub fn index(&self) -> u16 {
        self.index
    }

    /// Returns whether the worker must return.
    #[inline]
    pub fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// Waits for the next kick, or until the queue is stopped.
    ///
    /// # Errors
    ///
    /// Returns the error of the `read` system call.
    #[inline]
    pub fn wait(&self) -> io::Result<()> {
        self.kick.take().map(drop)
    }

    /// Returns the program's memory in which a kernel driver's buffers are, if the server
    /// [uses such memory](Threads::use_umem) and has registered it. A virtual machine's buffers are
    /// elsewhere.
    pub fn umem(&self) -> Option<&Arc<Mapping>> {
        self.umem.as_ref()
    }

    /// Returns the eventfd of the kicks, which is also signalled when the queue is stopped. Reads
    /// from it block.
    pub fn kick(&self) -> BorrowedFd<'_> {
        self.kick.as_fd()
    }

    /// Signals the eventfd of the kicks, to end an operation that waits for a kick.
    pub fn kick_self(&self) {
        // If the counter is at its maximum, the eventfd is readable all the same.
        let _ = self.kick.signal();
    }

    /// Publishes the requests that were pushed, and interrupts the driver if it wants that.
    #[inline]
    pub fn complete(&mut self) {
        if self.vq.publish() {
            self.interrupt();
        }
    }

    /// Interrupts the driver.
    #[inline]
    pub fn interrupt(&self) {
        interrupt(&self.device, self.index.into());
    }
}

/// A thread that serves a virtqueue.
#[derive(Debug)]
struct Running<W> {
    thread: JoinHandle<(W, Virtqueue, io::Result<()>)>,
    stop: Arc<AtomicBool>,
}

/// A worker, or the thread that runs it.
#[derive(Debug)]
enum Slot<W> {
    Parked(W),
    Running(Running<W>),
    /// While a slot changes.
    Empty,
}

/// A server of a device. It answers the kernel's requests to the device, and serves each virtqueue
/// in a thread of its own.
///
/// Whenever the kernel asks something of the device, the server stops all threads first: there are
/// no requests in progress while the driver changes a virtqueue, its memory or the device.
#[derive(Debug)]
pub struct Threads<W> {
    session: Session,
    slots: Vec<Slot<W>>,
}

impl<W: Worker> Threads<W> {
    /// Creates a server of a device, with one virtqueue of group 0 for each worker, of at most
    /// `size` descriptors. If a driver uses the device already, the server resumes where its
    /// predecessor stopped. `log` must be the log of that predecessor. Without a log, the workers
    /// must complete requests in order of arrival.
    ///
    /// # Errors
    ///
    /// Returns the error of the ioctl that failed.
    ///
    /// # Panics
    ///
    /// Panics if the log is of fewer virtqueues.
    pub fn new(
        device: Device,
        size: u16,
        workers: Vec<W>,
        log: Option<InFlightLog>,
    ) -> io::Result<Self> {
        let sizes = vec![size; workers.len()];
        Self::with(device, Shape::Sizes(&sizes), workers, log)
    }

    /// Variant of [`new`](Self::new) for a device of version 1. `queues` has the maximum size and
    /// the group of the virtqueue of each worker, and `spaces` is the number of address spaces.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new); `InvalidInput` when there are not as many workers as virtqueues.
    pub fn with_groups(
        device: Device,
        queues: &[(u16, u32)],
        spaces: u32,
        workers: Vec<W>,
    ) -> io::Result<Self> {
        if queues.len() != workers.len() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Self::with(device, Shape::Groups(queues, spaces), workers, None)
    }

    fn with(
        device: Device,
        shape: Shape<'_>,
        workers: Vec<W>,
        log: Option<InFlightLog>,
    ) -> io::Result<Self> {
        if let Some(log) = &log {
            assert!(usize::from(log.queues()) >= workers.len());
        }
        Ok(Self {
            session: Session::new(device, shape, log, EventFd::blocking, &mut |_| ())?,
            slots: workers.into_iter().map(Slot::Parked).collect(),
        })
    }

    /// Makes the server register memory of this program as the bounce area, as soon as a kernel
    /// driver uses it. The memory is locked, and is as large as the bounce area: 64 MiB, if nothing
    /// else was set. Workers can register it with io_uring, which then need not pin the pages of
    /// each request.
    pub fn use_umem(&mut self) {
        self.session.use_umem();
    }

    /// Returns a handle for another thread.
    pub fn handle(&self) -> Handle {
        self.session.handle()
    }

    /// Serves the device until a [`Handle`] stops the server.
    ///
    /// # Errors
    ///
    /// `EPERM` when the kernel has marked the device broken; otherwise the error of the call that
    /// failed.
    ///
    /// # Panics
    ///
    /// Panics if a worker panics.
    pub fn run(&mut self) -> io::Result<()> {
        // As in `Server::run`.
        let _accepting = self.session.control.accept();
        let served = self.serve();
        let stopped = self.stop_all();
        served.and(stopped)
    }

    fn serve(&mut self) -> io::Result<()> {
        self.session.interrupt_all();
        while !self.session.control.stop.load(Ordering::Acquire) {
            self.start_all()?;
            let device = PollFd::from_borrowed_fd(self.session.device.as_fd(), PollFlags::IN);
            let wake = PollFd::from_borrowed_fd(self.session.control.wake.as_fd(), PollFlags::IN);
            let mut fds = [device, wake];
            let may_grow = self.session.may_grow();
            let looks_for_umem = self.session.looks_for_umem();
            match poll(&mut fds, may_grow.then_some(&SOON).or(looks_for_umem)) {
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(errno) => return Err(errno.into()),
            }
            let on_device = fds[0].revents();
            if on_device.intersects(PollFlags::ERR | PollFlags::HUP) {
                return Err(rustix::io::Errno::PERM.into());
            }
            if !fds[1].revents().is_empty() {
                self.session.control.wake.take()?;
                self.stop_all()?;
                self.session.execute_commands();
            }
            if looks_for_umem.is_some() && self.session.umem_is_possible() {
                self.stop_all()?;
                self.session.register_due_umem();
            }
            if may_grow {
                // The driver may enable virtqueues after DRIVER_OK too, and the kernel sends no
                // message about that. The virtqueues that are served already do not change.
                self.session.activate(false, &mut |_| ())?;
            }
            if on_device.contains(PollFlags::IN) {
                self.stop_all()?;
                self.session.answer_next(&mut |_| ())?;
            }
        }
        Ok(())
    }

    /// Starts a thread for each virtqueue that should be served.
    fn start_all(&mut self) -> io::Result<()> {
        for (index, slot) in self.slots.iter_mut().enumerate() {
            if !matches!(slot, Slot::Parked(_)) {
                continue;
            }
            let Some(vq) = self.session.take_rings(index) else {
                continue;
            };
            // A virtqueue that is served has an eventfd.
            let kick = self.session.queues[index].kick.clone();
            let (Some(kick), Slot::Parked(worker)) = (kick, std::mem::replace(slot, Slot::Empty))
            else {
                continue;
            };
            let queue = ServedQueue {
                vq,
                // CAST: A device has fewer than 2^16 virtqueues.
                index: index as u16,
                device: self.session.device.clone(),
                kick,
                stop: Arc::default(),
                umem: self.session.umem().cloned(),
            };
            *slot = Slot::Running(start(queue, worker, self.session.handle())?);
        }
        Ok(())
    }

    /// Stops all threads, and waits until they have completed the requests that they have taken.
    ///
    /// # Errors
    ///
    /// Returns the error of a worker, unless it is an error in a virtqueue. Such an error is the
    /// driver's: the virtqueue is not served until the next reset.
    fn stop_all(&mut self) -> io::Result<()> {
        for (slot, vq) in self.slots.iter().zip(&self.session.queues) {
            if let (Slot::Running(running), Some(kick)) = (slot, &vq.kick) {
                running.stop.store(true, Ordering::Release);
                // This cannot wait: no counter ever comes near its maximum.
                let _ = kick.signal();
            }
        }
        let mut result = Ok(());
        for (index, slot) in self.slots.iter_mut().enumerate() {
            if !matches!(slot, Slot::Running(_)) {
                continue;
            }
            let Slot::Running(running) = std::mem::replace(slot, Slot::Empty) else {
                continue;
            };
            let (worker, vq, served) = match running.thread.join() {
                Ok(ended) => ended,
                Err(panic) => resume_unwind(panic),
            };
            *slot = Slot::Parked(worker);
            self.session.queues[index].rings = Some(vq);
            match served {
                Ok(()) => {}
                Err(error) if is_of_driver(&error) => self.session.break_queue(index, &error),
                Err(error) => result = Err(error),
            }
        }
        result
    }
}

/// Returns whether an error is one in a virtqueue, which its driver has made.
fn is_of_driver(error: &io::Error) -> bool {
    error
        .get_ref()
        .is_some_and(|error| error.is::<virtqueue::Error>())
}

/// Wakes the server's own thread when it is dropped, unless it was emptied before.
struct WakeOnDrop(Option<Handle>);

impl Drop for WakeOnDrop {
    fn drop(&mut self) {
        if let Some(handle) = &self.0 {
            handle.wake();
        }
    }
}

/// Starts a thread that serves a virtqueue.
fn start<W: Worker>(
    mut queue: ServedQueue,
    mut worker: W,
    handle: Handle,
) -> io::Result<Running<W>> {
    let (index, stop) = (queue.index, queue.stop.clone());
    let thread = thread::Builder::new()
        .name(format!("vq{index}"))
        .spawn(move || {
            memory::touch_stack();
            // If the worker ends by itself or panics, the server has to know.
            let mut wake = WakeOnDrop(Some(handle));
            let served = worker.serve(&mut queue);
            if queue.is_stopped() && served.is_ok() {
                // The server waits for this thread already.
                wake.0 = None;
            }
            (worker, queue.vq, served)
        })?;
    Ok(Running { thread, stop })
}
