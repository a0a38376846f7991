// SPDX-License-Identifier: GPL-2.0

//! A thread that answers and records a device's requests.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use rustix::event::{poll, PollFd, PollFlags};
use vduse::eventfd::EventFd;
use vduse::request::{Answer, Kind, Request};
use vduse::Device;

/// A thread that answers and records requests until this value is dropped.
///
/// Declare a responder after the device, and before everything that waits for answers, in
/// particular [`OnBus`](crate::lab::device::bus::OnBus).
#[derive(Debug)]
pub struct Responder {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    device: Arc<Device>,
    seen: Mutex<Vec<Request>>,
    stop: AtomicBool,
    wake: EventFd,
}

impl Responder {
    /// Starts a thread that answers every request with success. The answer to `GetVqState` reports
    /// position 0.
    pub fn ok(device: &Arc<Device>) -> Self {
        Self::new(device, |request| {
            Some(match request.kind {
                Kind::GetVqState { index } => Answer::SplitState {
                    index,
                    next_avail: 0,
                },
                _ => Answer::Ok,
            })
        })
    }

    /// Starts a thread that answers each request with the result of `answer`. If `answer` returns
    /// `None`, the request gets no answer. The device must be open in non-blocking mode.
    pub fn new(
        device: &Arc<Device>,
        mut answer: impl FnMut(&Request) -> Option<Answer> + Send + 'static,
    ) -> Self {
        let shared = Arc::new(Shared {
            device: device.clone(),
            seen: Mutex::new(Vec::new()),
            stop: AtomicBool::new(false),
            wake: EventFd::new().expect("an eventfd"),
        });
        let ours = shared.clone();
        let thread = std::thread::spawn(move || {
            use std::os::fd::AsFd;
            while !ours.stop.load(Ordering::Acquire) {
                let mut fds = [
                    PollFd::from_borrowed_fd(ours.device.as_fd(), PollFlags::IN),
                    PollFd::from_borrowed_fd(ours.wake.as_fd(), PollFlags::IN),
                ];
                if poll(&mut fds, None).is_err() {
                    continue;
                }
                if fds[0].revents().contains(PollFlags::ERR) {
                    return;
                }
                let Ok(request) = ours.device.read_request() else {
                    continue;
                };
                let reply = answer(&request);
                ours.seen().push(request);
                if let Some(reply) = reply {
                    // This fails if the kernel no longer waits for the answer.
                    let _ = ours.device.answer(&request, reply);
                }
            }
        });
        Self {
            shared,
            thread: Some(thread),
        }
    }

    /// Returns all requests so far, including those that got no answer.
    pub fn seen(&self) -> Vec<Request> {
        self.shared.seen().clone()
    }

    /// Returns the kinds of the requests since the last call.
    pub fn take_kinds(&self) -> Vec<Kind> {
        let taken = std::mem::take(&mut *self.shared.seen());
        taken.into_iter().map(|request| request.kind).collect()
    }
}

impl Shared {
    fn seen(&self) -> MutexGuard<'_, Vec<Request>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        let _ = self.shared.wake.signal();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
