// SPDX-License-Identifier: GPL-2.0

//! A thread that answers a device's requests, which it records.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use rustix::event::{poll, PollFd, PollFlags};
use vduse::eventfd::EventFd;
use vduse::request::{Answer, Kind, Request};
use vduse::Device;

/// Answers requests until dropped.
///
/// Declare a responder after the device and before everything that waits for answers, in particular
/// [`OnBus`](crate::lab::device::bus::OnBus).
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
    /// Answers every request with "ok", and reports the position 0 for every virtqueue.
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

    /// Answers requests as `answer` says; `None` leaves a request unanswered. The device must be
    /// open in non-blocking mode.
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
                    // The driver side may have stopped waiting.
                    let _ = ours.device.answer(&request, reply);
                }
            }
        });
        Self {
            shared,
            thread: Some(thread),
        }
    }

    /// Returns the requests so far.
    pub fn seen(&self) -> Vec<Request> {
        self.shared.seen().clone()
    }

    /// Returns the requests since the last call, without their IDs.
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
