// SPDX-License-Identifier: GPL-2.0

//! Requests to the daemon that serves a device.
//!
//! A request is queued until the daemon reads it, and then until the daemon answers it. The sender
//! waits until the daemon answers, the timeout expires, or the sender is killed. The device becomes
//! *broken* if the daemon does not answer in time, or if the daemon refuses a request that cannot
//! be refused ([`SET_VQ_READY`]). All requests to a broken device fail immediately, and a daemon
//! that reads or polls gets an error. The device ceases to be broken when a daemon opens it again.
//!
//! # Waits that end early
//!
//! While no daemon has the device open, a sender waits for the next daemon, which may be about to
//! open the device. This is different if the device goes away, because the device is [being
//! deleted](MessageQueue::begin_delete) from the vDPA bus or because the machine shuts down. In
//! that case, a request fails while no daemon has the device open. The device does not become
//! broken, as no later daemon needs to know of the failure.
//!
//! While a daemon has the device open, requests wait for that daemon even if the device goes away.
//! But once the machine shuts down, all requests of all devices together wait no longer than
//! [`SHUTDOWN_PATIENCE`], whatever the timeouts are.
//!
//! When the machine suspends, daemons are frozen and stop answering. The sender chooses what
//! happens to its wait in that case: see [`Suspending`].
//!
//! # Context
//!
//! Everything here runs in process context. The queue's mutex is held neither during a wait nor
//! while userspace memory is accessed. The locks of callback slots and virtqueues are taken with
//! the queue's mutex held.

use super::vq::Vq;
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
        REQ_RESULT_OK,
        SET_VQ_READY, //
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

/// Default time that the daemon has to answer a request, in seconds.
const DEFAULT_TIMEOUT: u32 = 30;

/// Maximum time that all requests of all devices together wait once the machine shuts down.
const SHUTDOWN_PATIENCE: Delta = Delta::from_secs(5);

/// Interval at which a waiting sender checks whether the device goes away or the machine suspends.
/// Neither event wakes the sender.
const LOOK_INTERVAL: Delta = Delta::from_millis(200);

/// Time at which a waiting sender first noticed that the machine shuts down.
static SHUTDOWN_SEEN: SetOnce<Instant<Monotonic>> = SetOnce::new();

/// What happens to a sender's wait when the machine suspends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Suspending {
    /// The sender's task is frozen while it waits, and goes on waiting after it is thawed. The
    /// sender must hold no lock that suspending the machine takes, such as the driver core's lock
    /// of a device.
    Freezes,
    /// The request fails, as a frozen daemon cannot answer. The device does not become broken.
    GivesUp,
    /// The sender goes on waiting, and the machine does not suspend before the wait has ended.
    Waits,
}

/// The reason why a wait has ended without an answer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ended {
    /// The daemon did not answer in time. The device becomes broken.
    TimedOut,
    /// The sender was killed.
    Killed,
    /// The sender does not wait any longer, for one of two reasons:
    ///
    /// - No daemon has the device open, and the device is being deleted from the vDPA bus or the
    ///   machine shuts down.
    /// - The machine suspends, and the sender chose [`Suspending::GivesUp`].
    GivenUp,
}

/// A request that has been sent.
#[pin_data]
struct Message {
    kind: u32,
    body: RequestBody,
    /// The virtqueue of a [`SET_VQ_READY`] request. If the request fails, the failure is recorded
    /// in the virtqueue.
    vq: Option<Arc<Vq>>,
    /// The id of the request, assigned when the message is put into a list.
    id: Atomic<u32>,
    response: SetOnce<DevResponse>,
    /// Completed when the daemon has answered the request, or when the request has failed.
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
    fn new(kind: u32, body: RequestBody, vq: Option<Arc<Vq>>) -> Result<ListArc<Self>> {
        ListArc::pin_init(
            try_pin_init!(Self {
                kind,
                body,
                vq,
                id: Atomic::new(0),
                response: SetOnce::new(),
                done <- Completion::new(),
                links <- ListLinks::new(),
            }),
            GFP_KERNEL,
        )
    }

    /// Fails the request: ends the sender's wait without a response. Must be called with the
    /// queue's mutex held, so that the virtqueue has a record of the failure before another daemon
    /// opens the device.
    fn fail(&self) {
        if let Some(vq) = &self.vq {
            vq.set_refused();
        }
        self.done.complete_all();
    }

    /// Returns the request as the daemon reads it.
    fn request(&self) -> DevRequest {
        DevRequest {
            kind: self.kind,
            request_id: self.id.load(Relaxed),
            reserved: [0; 4],
            body: self.body,
        }
    }
}

/// The messages of a device that are in progress, each in one of the two lists.
struct Queues {
    /// Messages that the daemon has yet to read, in the order in which it will read them.
    unread: List<Message>,
    /// Messages that the daemon has read but not answered, in the order in which they were read.
    unanswered: List<Message>,
    next_id: u32,
}

impl Queues {
    /// Removes and returns the message with the given id, if the list has one.
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

/// The message queue of a device.
#[pin_data]
pub(super) struct MessageQueue {
    #[pin]
    queues: Mutex<Queues>,
    /// Whether the device is broken. Changes only under the mutex of `queues`.
    broken: AtomicFlag,
    /// Whether a daemon has the device open. Changes only under the mutex of `queues`.
    open: AtomicFlag,
    /// Whether the device is being deleted from the vDPA bus.
    deleting: AtomicFlag,
    /// The wait queue of readers and pollers.
    #[pin]
    readers: PollCondVar,
    /// The time that the daemon has to answer a request, in seconds; 0 means no limit.
    timeout: Atomic<u32>,
    /// How much of the timeout the [`SET_VQ_READY`] requests of a kernel driver have used up, in
    /// nanoseconds. Set to 0 by every other request, and when a daemon opens the device.
    ready_waited: Atomic<i64>,
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
            ready_waited: Atomic::new(0),
            watch: watch,
        })
    }

    /// Returns the time that the daemon has to answer a request, in seconds; 0 means no limit.
    pub(super) fn timeout(&self) -> u32 {
        self.timeout.load(Relaxed)
    }

    /// Sets the [`timeout`](Self::timeout) of later requests, in seconds.
    pub(super) fn set_timeout(&self, seconds: u32) {
        self.timeout.store(seconds, Relaxed);
    }

    /// Returns whether the device is broken.
    pub(super) fn is_broken(&self) -> bool {
        self.broken.load(Relaxed)
    }

    /// Marks the device as broken, and fails all messages in progress. Later messages fail, too,
    /// until a daemon opens the device.
    fn mark_broken(&self, queues: &mut Queues) {
        self.broken.store(true, Relaxed);
        while let Some(message) = queues
            .unread
            .pop_front()
            .or_else(|| queues.unanswered.pop_front())
        {
            message.fail();
        }
        self.readers.notify_all();
    }

    /// Records that the device is being put on the vDPA bus.
    pub(super) fn attach(&self) {
        self.deleting.store(false, Relaxed);
    }

    /// Records that the device is about to be deleted from the vDPA bus. From then on, requests
    /// fail while no daemon has the device open.
    pub(super) fn begin_delete(&self) {
        self.deleting.store(true, Relaxed);
    }

    /// Returns whether a sender must not wait for another daemon. This is so if no daemon has the
    /// device open, and the device is being deleted from the vDPA bus or the machine shuts down.
    fn is_deserted(&self) -> bool {
        !self.open.load(Relaxed) && (self.deleting.load(Relaxed) || system::is_shutting_down())
    }

    /// Sends a request, and returns the daemon's response.
    ///
    /// # Context
    ///
    /// May sleep, for as long as the [`timeout`](Self::timeout).
    ///
    /// # Errors
    ///
    /// [`EIO`] if
    ///
    /// - the daemon answers that the request failed, or does not answer in time;
    /// - the device is broken;
    /// - no daemon has the device open, and the device is being deleted from the vDPA bus or the
    ///   machine shuts down;
    /// - the machine suspends, and `suspending` is [`Suspending::GivesUp`];
    /// - the caller is killed;
    /// - there is no memory for the request. In this case, the device becomes broken, as the daemon
    ///   has missed the request.
    pub(super) fn send(
        &self,
        kind: u32,
        body: RequestBody,
        suspending: Suspending,
    ) -> Result<DevResponse> {
        self.ready_waited.store(0, Relaxed);

        self.exchange(kind, body, None, suspending, None, |_| false)
    }

    /// Asks the daemon to agree that a virtqueue becomes ready (`ready` is true), or ceases to be
    /// ready (`ready` is false).
    ///
    /// A driver does not learn whether the daemon has agreed. So if the daemon refuses or does not
    /// answer in time, the device becomes broken, which the daemon notices. The next daemon that
    /// opens the device finds the virtqueue in the state that the driver wants. The device does not
    /// become broken if no daemon has it open while it is being deleted from the vDPA bus or the
    /// machine shuts down.
    ///
    /// `is_kernel` tells whether the driver is a kernel driver. A kernel driver enables or disables
    /// its virtqueues one after the other, with locks held for which other tasks wait. So the
    /// [`SET_VQ_READY`] requests of a kernel driver share one timeout, until the driver sends
    /// another kind of request. A request that is answered within [`LOOK_INTERVAL`] uses up none of
    /// the timeout, and each request can wait for at least [`LOOK_INTERVAL`]. A virtqueue that a
    /// kernel driver disables is disabled whatever the daemon answers.
    ///
    /// # Context
    ///
    /// May sleep, for as long as the timeout.
    pub(super) fn ask_for_ready(&self, vq: &Arc<Vq>, index: u16, ready: bool, is_kernel: bool) {
        // A kernel driver that has enabled a virtqueue uses it, even if the daemon has not learnt
        // that the virtqueue is ready. So a request to enable a virtqueue goes on waiting when the
        // machine suspends, and the device becomes broken if the task of the driver is killed. A
        // kernel driver that disables a virtqueue does not depend on the daemon. If a vhost process
        // is killed, the device need not become broken, because the device is reset.
        let (suspending, breaks_if_killed) = match (is_kernel, ready) {
            (false, _) => (Suspending::Freezes, false),
            (true, true) => (Suspending::Waits, true),
            (true, false) => (Suspending::GivesUp, false),
        };
        let breaks = |ended| breaks_if_killed && ended == Ended::Killed;
        let body = RequestBody::from_vq_ready(index.into(), ready);
        let waited = is_kernel.then_some(&self.ready_waited);

        // The result is not needed, as a failure is recorded in the virtqueue.
        let _ = self.exchange(SET_VQ_READY, body, Some(vq), suspending, waited, breaks);
        if is_kernel && !ready {
            vq.set_ready(false);
        }
    }

    /// Sends a request, and returns the daemon's response. `vq` is the virtqueue of a
    /// [`SET_VQ_READY`] request. `waited`, if given, is how much of the timeout earlier requests
    /// have used up, in nanoseconds; this request adds its own wait. `breaks` returns whether the
    /// device becomes broken if the wait ends for the given reason. After a timeout, the device
    /// becomes broken in any case.
    fn exchange(
        &self,
        kind: u32,
        body: RequestBody,
        vq: Option<&Arc<Vq>>,
        suspending: Suspending,
        waited: Option<&Atomic<i64>>,
        breaks: impl FnOnce(Ended) -> bool,
    ) -> Result<DevResponse> {
        let new = Message::new(kind, body, vq.cloned());
        let message = {
            let mut queues = self.queues.lock();
            if let Some(vq) = vq {
                vq.set_wanted(body.vq_ready().1);
            }

            let Ok(new) = new else {
                self.mark_broken(&mut queues);
                if let Some(vq) = vq {
                    vq.set_refused();
                }
                return Err(EIO);
            };
            let message = new.clone_arc();
            if self.is_broken() || self.is_deserted() {
                message.fail();
                return Err(EIO);
            }

            message.id.store(queues.next_id, Relaxed);
            queues.next_id = queues.next_id.wrapping_add(1);
            queues.unread.push_back(new);
            message
        };
        self.readers.notify_all();

        if let Err(ended) = self.wait(&message, suspending, waited) {
            let id = message.id.load(Relaxed);
            let mut queues = self.queues.lock();
            // By now, the daemon may have answered the message, or `mark_broken` may have failed
            // it.
            let given_up = Queues::take(&mut queues.unread, id)
                .or_else(|| Queues::take(&mut queues.unanswered, id));

            if let Some(message) = given_up {
                message.fail();
                if ended == Ended::TimedOut || breaks(ended) {
                    self.mark_broken(&mut queues);
                }
            }
        }

        match message.response.as_ref() {
            Some(response) if response.result == REQ_RESULT_OK => Ok(*response),
            _ => Err(EIO),
        }
    }

    /// Waits until the daemon has answered a message or the message has [failed](Message::fail).
    /// `waited`, if given, is how much of the timeout is used up, in nanoseconds. Each interval of
    /// up to [`LOOK_INTERVAL`] that passes without an answer is added to `waited`.
    ///
    /// # Errors
    ///
    /// The reason why the wait has ended without an answer.
    fn wait(
        &self,
        message: &Message,
        suspending: Suspending,
        waited: Option<&Atomic<i64>>,
    ) -> Result<(), Ended> {
        let mut left = match self.timeout() {
            0 => None,
            seconds => {
                let timeout = Delta::from_secs(seconds.into());
                let used = Delta::from_nanos(waited.map_or(0, |waited| waited.load(Relaxed)));

                Some(Delta::max(timeout - used, LOOK_INTERVAL))
            }
        };

        loop {
            let limits = [left, Self::shutdown_patience()];
            let slice = limits.into_iter().flatten().fold(LOOK_INTERVAL, Delta::min);
            if slice <= Delta::ZERO {
                return Err(Ended::TimedOut);
            }

            // The wait is freezable only while the machine suspends. If a cgroup could freeze the
            // task here, the task would keep the vDPA core's locks while it is frozen.
            let is_suspending = self.watch.is_suspending();
            let result = if suspending == Suspending::Freezes && is_suspending {
                message.done.wait_killable_freezable_timeout(slice)
            } else {
                message.done.wait_killable_timeout(slice)
            };
            match result {
                WaitResult::Completed => return Ok(()),
                WaitResult::Killed => return Err(Ended::Killed),
                WaitResult::TimedOut if self.is_deserted() => return Err(Ended::GivenUp),
                WaitResult::TimedOut
                    if suspending == Suspending::GivesUp && self.watch.is_suspending() =>
                {
                    return Err(Ended::GivenUp);
                }
                // Time during which the machine suspends does not count: the daemon is frozen then
                // and cannot answer. A sender with `Freezes` is frozen as well, and a sender with
                // `GivesUp` has given up above.
                WaitResult::TimedOut if suspending == Suspending::Waits && is_suspending => (),
                WaitResult::TimedOut => {
                    left = left.map(|left| left - slice);
                    if let Some(waited) = waited {
                        let _ = waited.fetch_add(slice.as_nanos(), Relaxed);
                    }
                }
            }
        }
    }

    /// Returns how much longer requests may wait while the machine shuts down; 0 or less means that
    /// they must not wait any longer. Returns [`None`] if the machine is not shutting down.
    fn shutdown_patience() -> Option<Delta> {
        if !system::is_shutting_down() {
            return None;
        }

        SHUTDOWN_SEEN.populate(Instant::now());
        let spent = SHUTDOWN_SEEN.as_ref().map_or(Delta::ZERO, Instant::elapsed);

        Some(SHUTDOWN_PATIENCE - spent)
    }

    /// Takes the next request, and calls `deliver` to copy it to the daemon.
    ///
    /// If `deliver` fails, the daemon's next read gets the same request.
    ///
    /// # Context
    ///
    /// May sleep, until there is a request.
    ///
    /// # Errors
    ///
    /// - [`EPERM`] if the device is broken.
    /// - [`EAGAIN`] if there is no request and `nonblocking` is set.
    /// - [`ERESTARTSYS`] on a signal.
    /// - Those of `deliver`.
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
            // By now, the message may have failed, or another thread of the daemon may have
            // answered it.
            if let Some(message) = Queues::take(&mut queues.unanswered, request.request_id) {
                queues.unread.push_front(message);
                self.readers.notify_all();
            }
        })
    }

    /// Accepts a response of the daemon. If the response says that the request succeeded, calls
    /// `apply` with the request before the sender is woken. If the daemon refuses a
    /// [`SET_VQ_READY`] request, the device becomes broken.
    ///
    /// # Errors
    ///
    /// [`ENOENT`] if the daemon has read no request with the response's id, or has answered it
    /// already.
    pub(super) fn complete(
        &self,
        response: DevResponse,
        apply: impl FnOnce(&DevRequest),
    ) -> Result {
        let mut queues = self.queues.lock();
        let message = Queues::take(&mut queues.unanswered, response.request_id).ok_or(ENOENT)?;

        if response.result == REQ_RESULT_OK {
            apply(&message.request());
        } else if let Some(vq) = &message.vq {
            vq.set_refused();
            self.mark_broken(&mut queues);
        }
        message.response.populate(response);
        message.done.complete_all();

        Ok(())
    }

    /// Registers the poller `table`, which is then woken when the events change. Returns the
    /// current events: readable if there is a request to read, writable if there is a request to
    /// answer, and error if the device is broken.
    pub(super) fn poll(&self, file: &File, table: PollTable<'_>) -> Events {
        table.register_wait(file, &self.readers);
        let queues = self.queues.lock();

        Events::NONE
            .with(Events::ERROR, self.is_broken())
            .with(Events::READABLE, !queues.unread.is_empty())
            .with(Events::WRITABLE, !queues.unanswered.is_empty())
    }

    /// Records that a daemon has opened the device. The device is no longer broken, whatever the
    /// previous daemon did. Calls `settle` before the new daemon can read a request.
    pub(super) fn daemon_opened(&self, settle: impl FnOnce()) {
        let _queues = self.queues.lock();

        self.broken.store(false, Relaxed);
        self.open.store(true, Relaxed);
        self.ready_waited.store(0, Relaxed);
        settle();
    }

    /// Records that the daemon has closed the device. The next daemon that opens the device first
    /// reads the requests that the previous daemon has read but not answered.
    pub(super) fn daemon_closed(&self) {
        let mut queues = self.queues.lock();

        self.open.store(false, Relaxed);
        while let Some(message) = queues.unanswered.pop_back() {
            queues.unread.push_front(message);
        }
    }
}
