// SPDX-License-Identifier: GPL-2.0

//! Requests to the daemon that serves a device, and its responses.
//!
//! A request waits to be read, then to be answered, and whoever sends it waits for that: until it is
//! answered, until the timeout, or until the sender is killed. If nobody answers in time, the device
//! is *broken*: all requests fail, at once, and whoever reads or polls is told. The next daemon that
//! opens the device mends it.
//!
//! All of this is in process context. The queue's mutex is not held while anybody waits, nor while
//! userspace memory is touched.

use crate::{
    bindings::completion::{
        Completion,
        Waited, //
    },
    uapi::{
        DevRequest,
        DevResponse,
        RequestBody,
        REQ_RESULT_OK, //
    },
};
use kernel::{
    bindings,
    fs::File,
    new_mutex, new_poll_condvar,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
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
        msecs_to_jiffies,
        Jiffies, //
    },
};

/// How long the daemon may take to answer, in seconds, unless somebody says otherwise.
const DEFAULT_TIMEOUT: u32 = 30;

/// A request on its way.
#[pin_data]
struct Message {
    request: DevRequest,
    answer: SetOnce<DevResponse>,
    /// Happens when there is an answer, or never will be.
    #[pin]
    done: Completion,
}

/// The messages of a device, each in one of the two lists.
struct Queues {
    /// To be read, in this order.
    unread: KVec<Arc<Message>>,
    /// Read, and to be answered.
    unanswered: KVec<Arc<Message>>,
    next_id: u32,
    broken: bool,
}

impl Queues {
    /// Removes a message from a list.
    fn take(list: &mut KVec<Arc<Message>>, id: u32) -> Option<Arc<Message>> {
        let at = list
            .iter()
            .position(|message| message.request.request_id == id)?;

        list.remove(at).ok()
    }

    /// Fails every message, those to come included.
    fn break_down(&mut self) {
        self.broken = true;
        for message in [&self.unread, &self.unanswered].into_iter().flatten() {
            message.done.complete_all();
        }
        self.unread.clear();
        self.unanswered.clear();
    }
}

/// The messages of a device.
#[pin_data]
pub(super) struct MessageQueue {
    #[pin]
    queues: Mutex<Queues>,
    /// Readers and pollers wait here.
    #[pin]
    readers: PollCondVar,
    /// In seconds; 0 is without end.
    timeout: Atomic<u32>,
}

impl MessageQueue {
    /// Returns an initialiser for an empty queue.
    pub(super) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            queues <- new_mutex!(Queues {
                unread: KVec::new(),
                unanswered: KVec::new(),
                next_id: 0,
                broken: false,
            }),
            readers <- new_poll_condvar!(),
            timeout: Atomic::new(DEFAULT_TIMEOUT),
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
        self.queues.lock().broken
    }

    /// Sends a request and waits for its answer. May sleep, for as long as the timeout.
    ///
    /// Errors: [`EIO`] if the daemon says that it failed, does not answer in time, or has not in
    /// the past, and if the caller is killed.
    pub(super) fn send(&self, kind: u32, body: RequestBody) -> Result<DevResponse> {
        let message = {
            let mut queues = self.queues.lock();
            if queues.broken {
                return Err(EIO);
            }

            let request_id = queues.next_id;
            queues.next_id = request_id.wrapping_add(1);
            let message = Arc::pin_init(
                pin_init!(Message {
                    request: DevRequest {
                        kind,
                        request_id,
                        reserved: [0; 4],
                        body,
                    },
                    answer: SetOnce::new(),
                    done <- Completion::new(),
                }),
                GFP_KERNEL,
            )?;

            queues.unread.push(message.clone(), GFP_KERNEL)?;
            message
        };
        self.readers.notify_all();

        let waited = match self.timeout() {
            0 => message.done.wait_killable(),
            seconds => message.done.wait_killable_timeout(jiffies(seconds)),
        };

        let mut queues = self.queues.lock();
        if message.answer.as_ref().is_none() && waited != Waited::Completed {
            let id = message.request.request_id;
            let _ = Queues::take(&mut queues.unread, id)
                .or_else(|| Queues::take(&mut queues.unanswered, id));

            if waited == Waited::TimedOut {
                queues.break_down();
                self.readers.notify_all();
            }
        }
        drop(queues);

        match message.answer.as_ref() {
            Some(answer) if answer.result == REQ_RESULT_OK => Ok(*answer),
            _ => Err(EIO),
        }
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
            while queues.unread.is_empty() {
                if queues.broken {
                    return Err(EPERM);
                }
                if nonblocking {
                    return Err(EAGAIN);
                }
                if self.readers.wait_interruptible(&mut queues) {
                    return Err(ERESTARTSYS);
                }
            }

            queues.unanswered.reserve(1, GFP_KERNEL)?;
            let message = queues.unread.remove(0).map_err(|_| EAGAIN)?;
            let request = message.request;
            // There is room: it was reserved above.
            let _ = queues.unanswered.push_within_capacity(message);
            request
        };

        deliver(&request).inspect_err(|_| {
            let mut queues = self.queues.lock();
            // It may be gone, or even answered, by now.
            if let Some(message) = Queues::take(&mut queues.unanswered, request.request_id) {
                Self::unread_first(&mut queues, message);
                self.readers.notify_all();
            }
        })
    }

    /// Makes a message the next one to be read.
    fn unread_first(queues: &mut Queues, message: Arc<Message>) {
        if queues.unread.reserve(1, GFP_KERNEL).is_ok() {
            let _ = queues.unread.insert_within_capacity(0, message);
        } else {
            // Nobody will ever answer it, so nobody should wait.
            message.done.complete_all();
        }
    }

    /// Takes a response. `apply` is called with the request, before its sender goes on.
    ///
    /// Errors: [`ENOENT`] if there is no such request to be answered.
    pub(super) fn answer(&self, response: DevResponse, apply: impl FnOnce(&DevRequest)) -> Result {
        let mut queues = self.queues.lock();
        let message = Queues::take(&mut queues.unanswered, response.request_id).ok_or(ENOENT)?;

        if response.result == REQ_RESULT_OK {
            apply(&message.request);
        }
        message.answer.populate(response);
        message.done.complete_all();

        Ok(())
    }

    /// What can be done without waiting, after registering to be told of changes.
    pub(super) fn poll(&self, file: &File, table: PollTable<'_>) -> u32 {
        table.register_wait(file, &self.readers);
        let queues = self.queues.lock();
        let mut mask = 0;

        if queues.broken {
            mask |= bindings::POLLERR;
        }
        if !queues.unread.is_empty() {
            mask |= bindings::POLLIN | bindings::POLLRDNORM;
        }
        if !queues.unanswered.is_empty() {
            mask |= bindings::POLLOUT | bindings::POLLWRNORM;
        }

        mask
    }

    /// A daemon has opened the device: give it a chance, whatever its predecessor did.
    pub(super) fn opened(&self) {
        self.queues.lock().broken = false;
    }

    /// The daemon is gone: what it has read and not answered is for the next one to read first.
    pub(super) fn closed(&self) {
        let mut queues = self.queues.lock();

        while let Some(message) = queues.unanswered.pop() {
            Self::unread_first(&mut queues, message);
        }
    }
}

/// Seconds as jiffies. No number of seconds is too large.
fn jiffies(seconds: u32) -> Jiffies {
    let jiffies_per_second = msecs_to_jiffies(1000);

    jiffies_per_second.saturating_mul(seconds as Jiffies)
}
