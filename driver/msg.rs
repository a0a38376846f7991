// SPDX-License-Identifier: GPL-2.0

//! Requests to the daemon that serves a device, and its responses.
//!
//! A request waits to be read, then to be answered, and whoever sends it waits for that: until it is
//! answered, until the timeout, or until the sender is killed. If nobody answers in time, the device
//! is *broken*: all requests fail, at once, and whoever reads or polls is told. The next daemon that
//! opens the device mends it.
//!
//! # Waits that end earlier
//!
//! While no daemon has the device open, the next one may be about to: so it is waited for. It is not
//! where the device itself goes away, because it is [being deleted](MessageQueue::begin_delete) from the vDPA bus or the
//! machine shuts down; the request fails at once, or when the last daemon is gone, and the device is
//! not broken: there is nothing left that the next daemon would have to know. A daemon that has the
//! device open is waited for then as well; but when the machine shuts down, all requests of all devices
//! together wait no longer than [`SHUTDOWN_PATIENCE`], whatever the timeouts say.
//!
//! When the machine suspends, daemons are frozen and answer no more. What becomes of a wait then, its
//! caller says: [`Suspending`].
//!
//! All of this is in process context. The queue's mutex is not held while anybody waits, nor while
//! userspace memory is touched.

use crate::{
    bindings::{
        completion::{
            Completion,
            WaitResult, //
        },
        file_ops::Events,
        pm::SuspendWatch,
        system, //
    },
    uapi::{
        DevRequest,
        DevResponse,
        RequestBody,
        REQ_RESULT_OK, //
    },
};
use kernel::{
    fs::File,
    list::{
        impl_list_arc_safe,
        impl_list_item,
        List,
        ListArc,
        ListLinks, //
    },
    new_mutex, new_poll_condvar,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            AtomicFlag,
            Relaxed, //
        },
        poll::{
            PollCondVar,
            PollTable, //
        },
        Arc,
        Mutex,
        SetOnce, //
    },
    time::{
        Delta,
        Instant,
        Monotonic, //
    },
};

/// How long the daemon may take to answer, in seconds, unless somebody says otherwise.
const DEFAULT_TIMEOUT: u32 = 30;

/// How long requests wait at most, all together, once the machine shuts down.
const SHUTDOWN_PATIENCE: Delta = Delta::from_secs(5);

/// How often a wait looks whether the device goes away or the machine suspends, of which nobody tells
/// it.
const LOOK_INTERVAL: Delta = Delta::from_millis(200);

/// When the first request was sent, or found waiting, after the machine had begun to shut down.
static SHUTDOWN_SEEN: SetOnce<Instant<Monotonic>> = SetOnce::new();

/// What becomes of a wait when the machine suspends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Suspending {
    /// The task is frozen where it waits, and goes on waiting when it is thawed. The caller must hold
    /// no lock that suspending takes, such as that of a device in the driver core.
    Freezes,
    /// The request fails, as daemons are frozen. The device is not broken.
    GivesUp,
    /// The wait goes on, so that the machine does not suspend before it has ended.
    Waits,
}

/// How a wait has ended without an answer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ended {
    /// The daemon had its time: the device is broken.
    TimedOut,
    /// There is nobody to wait for, or the sender was killed.
    GivenUp,
}

/// A request on its way.
#[pin_data]
struct Message {
    kind: u32,
    body: RequestBody,
    /// Given when it is put into a list.
    id: Atomic<u32>,
    response: SetOnce<DevResponse>,
    /// Happens when there is an answer, or never will be.
    #[pin]
    done: Completion,
    #[pin]
    links: ListLinks,
}

impl_list_arc_safe! {
    impl ListArcSafe<0> for Message { untracked; }
}

impl_list_item! {
    impl ListItem<0> for Message { using ListLinks { self.links }; }
}

impl Message {
    fn new(kind: u32, body: RequestBody) -> Result<ListArc<Self>> {
        ListArc::pin_init(
            try_pin_init!(Self {
                kind,
                body,
                id: Atomic::new(0),
                response: SetOnce::new(),
                done <- Completion::new(),
                links <- ListLinks::new(),
            }),
            GFP_KERNEL,
        )
    }

    /// As the daemon reads it.
    fn request(&self) -> DevRequest {
        DevRequest {
            kind: self.kind,
            request_id: self.id.load(Relaxed),
            reserved: [0; 4],
            body: self.body,
        }
    }
}

/// The messages of a device, each in one of the two lists.
struct Queues {
    /// To be read, in this order.
    unread: List<Message>,
    /// Read, and to be answered, in the order in which they were read.
    unanswered: List<Message>,
    next_id: u32,
}

impl Queues {
    /// Removes a message from a list.
    fn take(list: &mut List<Message>, id: u32) -> Option<ListArc<Message>> {
        let mut cursor = list.cursor_front();

        while let Some(next) = cursor.peek_next() {
            if next.id.load(Relaxed) == id {
                return Some(next.remove());
            }
            cursor.move_next();
        }

        None
    }
}

/// The messages of a device.
#[pin_data]
pub(super) struct MessageQueue {
    #[pin]
    queues: Mutex<Queues>,
    /// Whether a request was not answered in time. Changes under the mutex of `queues`.
    broken: AtomicFlag,
    /// Whether a daemon has the device open. Changes under the mutex of `queues`.
    open: AtomicFlag,
    /// Whether the device is being deleted from the vDPA bus.
    deleting: AtomicFlag,
    /// Readers and pollers wait here.
    #[pin]
    readers: PollCondVar,
    /// In seconds; 0 is without end.
    timeout: Atomic<u32>,
    watch: Arc<SuspendWatch>,
}

impl MessageQueue {
    /// Returns an initialiser for an empty queue.
    pub(super) fn new(watch: Arc<SuspendWatch>) -> impl PinInit<Self> {
        pin_init!(Self {
            queues <- new_mutex!(Queues {
                unread: List::new(),
                unanswered: List::new(),
                next_id: 0,
            }),
            broken: AtomicFlag::new(false),
            open: AtomicFlag::new(false),
            deleting: AtomicFlag::new(false),
            readers <- new_poll_condvar!(),
            timeout: Atomic::new(DEFAULT_TIMEOUT),
            watch: watch,
        })
    }

    /// How long the daemon may take to answer, in seconds; 0 is without end.
    pub(super) fn timeout(&self) -> u32 {
        self.timeout.load(Relaxed)
    }

    /// Sets [`timeout`](Self::timeout) for requests to come.
    pub(super) fn set_timeout(&self, seconds: u32) {
        self.timeout.store(seconds, Relaxed);
    }

    /// Whether a request was not answered in time.
    pub(super) fn is_broken(&self) -> bool {
        self.broken.load(Relaxed)
    }

    /// Fails every message, those to come included.
    fn mark_broken(&self, queues: &mut Queues) {
        self.broken.store(true, Relaxed);
        while let Some(message) = queues
            .unread
            .pop_front()
            .or_else(|| queues.unanswered.pop_front())
        {
            message.done.complete_all();
        }
        self.readers.notify_all();
    }

    /// The device is put on the vDPA bus.
    pub(super) fn attach(&self) {
        self.deleting.store(false, Relaxed);
    }

    /// The device is about to be deleted from the vDPA bus: from now on, requests fail while no daemon
    /// has it open.
    pub(super) fn begin_delete(&self) {
        self.deleting.store(true, Relaxed);
    }

    /// Whether there is nobody to wait for.
    fn is_deserted(&self) -> bool {
        !self.open.load(Relaxed) && (self.deleting.load(Relaxed) || system::is_shutting_down())
    }

    /// Sends a request and waits for its answer. May sleep, for as long as the timeout.
    ///
    /// Errors: [`EIO`] if the daemon says that it failed, does not answer in time, or has not in
    /// the past, if there is nobody to wait for, and if the caller is killed. Without memory for the
    /// request the device breaks too: the daemon would go on without having been told.
    pub(super) fn send(
        &self,
        kind: u32,
        body: RequestBody,
        suspending: Suspending,
    ) -> Result<DevResponse> {
        let Ok(new) = Message::new(kind, body) else {
            self.mark_broken(&mut self.queues.lock());
            return Err(EIO);
        };
        let message = new.clone_arc();

        {
            let mut queues = self.queues.lock();
            if self.is_broken() || self.is_deserted() {
                return Err(EIO);
            }

            message.id.store(queues.next_id, Relaxed);
            queues.next_id = queues.next_id.wrapping_add(1);
            queues.unread.push_back(new);
        }
        self.readers.notify_all();

        if let Err(ended) = self.wait(&message, suspending) {
            let id = message.id.load(Relaxed);
            let mut queues = self.queues.lock();
            // It may have been answered, or failed with the others, by now.
            let given_up = Queues::take(&mut queues.unread, id)
                .or_else(|| Queues::take(&mut queues.unanswered, id));

            if given_up.is_some() && ended == Ended::TimedOut {
                self.mark_broken(&mut queues);
            }
        }

        match message.response.as_ref() {
            Some(response) if response.result == REQ_RESULT_OK => Ok(*response),
            _ => Err(EIO),
        }
    }

    /// Waits until a message is answered, or failed with all others.
    fn wait(&self, message: &Message, suspending: Suspending) -> Result<(), Ended> {
        // Counted in time that was waited: while the task is frozen, the daemon is as well.
        let mut left = match self.timeout() {
            0 => None,
            seconds => Some(Delta::from_secs(seconds.into())),
        };

        loop {
            let limits = [left, Self::shutdown_patience()];
            let slice = limits.into_iter().flatten().fold(LOOK_INTERVAL, Delta::min);
            if slice <= Delta::ZERO {
                return Err(Ended::TimedOut);
            }

            // Only then: a task that its cgroup freezes would keep the core's locks.
            let freezes = suspending == Suspending::Freezes && self.watch.is_suspending();
            let waited = if freezes {
                message.done.wait_killable_freezable_timeout(slice)
            } else {
                message.done.wait_killable_timeout(slice)
            };
            match waited {
                WaitResult::Completed => return Ok(()),
                WaitResult::Killed => return Err(Ended::GivenUp),
                WaitResult::TimedOut if self.is_deserted() => return Err(Ended::GivenUp),
                WaitResult::TimedOut
                    if suspending == Suspending::GivesUp && self.watch.is_suspending() =>
                {
                    return Err(Ended::GivenUp);
                }
                WaitResult::TimedOut => left = left.map(|left| left - slice),
            }
        }
    }

    /// How long requests may still wait because the machine shuts down; [`None`] if it does not.
    fn shutdown_patience() -> Option<Delta> {
        if !system::is_shutting_down() {
            return None;
        }

        SHUTDOWN_SEEN.populate(Instant::now());
        let spent = SHUTDOWN_SEEN.as_ref().map_or(Delta::ZERO, Instant::elapsed);

        Some(SHUTDOWN_PATIENCE - spent)
    }

    /// Reads the next request, which `deliver` hands to the daemon. May sleep, until there is one.
    ///
    /// If `deliver` fails, the request stays the next one. Errors: [`EPERM`] if the device is
    /// broken, [`EAGAIN`] if there is no request and `nonblocking`, [`ERESTARTSYS`] on a signal,
    /// and those of `deliver`.
    pub(super) fn read(
        &self,
        nonblocking: bool,
        deliver: impl FnOnce(&DevRequest) -> Result,
    ) -> Result {
        let request = {
            let mut queues = self.queues.lock();
            let message = loop {
                if let Some(message) = queues.unread.pop_front() {
                    break message;
                }
                if self.is_broken() {
                    return Err(EPERM);
                }
                if nonblocking {
                    return Err(EAGAIN);
                }
                if self.readers.wait_interruptible(&mut queues) {
                    return Err(ERESTARTSYS);
                }
            };

            let request = message.request();
            queues.unanswered.push_back(message);
            request
        };

        deliver(&request).inspect_err(|_| {
            let mut queues = self.queues.lock();
            // It may be gone, or even answered, by now.
            if let Some(message) = Queues::take(&mut queues.unanswered, request.request_id) {
                queues.unread.push_front(message);
                self.readers.notify_all();
            }
        })
    }

    /// Takes a response. `apply` is called with the request, before its sender goes on.
    ///
    /// Errors: [`ENOENT`] if there is no such request to be answered.
    pub(super) fn complete(
        &self,
        response: DevResponse,
        apply: impl FnOnce(&DevRequest),
    ) -> Result {
        let mut queues = self.queues.lock();
        let message = Queues::take(&mut queues.unanswered, response.request_id).ok_or(ENOENT)?;

        if response.result == REQ_RESULT_OK {
            apply(&message.request());
        }
        message.response.populate(response);
        message.done.complete_all();

        Ok(())
    }

    /// What can be done without waiting, after registering to be told of changes.
    pub(super) fn poll(&self, file: &File, table: PollTable<'_>) -> Events {
        table.register_wait(file, &self.readers);
        let queues = self.queues.lock();

        Events::NONE
            .with(Events::ERROR, self.is_broken())
            .with(Events::READABLE, !queues.unread.is_empty())
            .with(Events::WRITABLE, !queues.unanswered.is_empty())
    }

    /// A daemon has opened the device: give it a chance, whatever its predecessor did.
    pub(super) fn daemon_opened(&self) {
        let _queues = self.queues.lock();

        self.broken.store(false, Relaxed);
        self.open.store(true, Relaxed);
    }

    /// The daemon is gone: what it has read and not answered is for the next one to read first.
    pub(super) fn daemon_closed(&self) {
        let mut queues = self.queues.lock();

        self.open.store(false, Relaxed);
        while let Some(message) = queues.unanswered.pop_back() {
            queues.unread.push_front(message);
        }
    }
}
