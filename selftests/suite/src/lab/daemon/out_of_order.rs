// SPDX-License-Identifier: GPL-2.0

//! A daemon that completes requests in any order.
//!
//! The daemon takes all available requests at once and holds them. Each request contains an 8-byte
//! number, which the daemon writes back when it completes the request. The daemon completes some of
//! the requests when the test tells it to, and all of them when the device is suspended. A reset of
//! the device drops the requests.

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use rustix::event::{poll, PollFd, PollFlags};
use vduse::eventfd::EventFd;
use vduse::iotlb::AddressSpace;
use vduse::request::{Answer, Kind};
use vduse::virtqueue::{Chain, Memory, Position, Settings, Virtqueue};
use vduse::Device;

use crate::lab::assert::random::Random;
use crate::lab::assert::timing::soon;

/// The maximum size of the virtqueue in descriptors.
pub const SIZE: u16 = 128;

/// A request that the daemon holds.
#[derive(Debug)]
struct Taken {
    number: u64,
    chain: Chain,
}

#[derive(Debug)]
struct State {
    /// The virtqueue, if the driver has enabled it.
    vq: Option<Virtqueue>,
    memory: Memory,
    taken: Vec<Taken>,
    random: Random,
    /// Whether the device is suspended. A suspended device does not process its virtqueue.
    suspended: bool,
}

#[derive(Debug)]
struct Shared {
    device: Arc<Device>,
    state: Mutex<State>,
    /// The numbers of the completed requests, in order of completion. All daemons of a disk share
    /// this list.
    done: Arc<Mutex<Vec<u64>>>,
    kick: EventFd,
    wake: EventFd,
    stop: AtomicBool,
}

/// The daemon of a device with one virtqueue. The daemon ends on drop.
#[derive(Debug)]
pub struct OutOfOrder {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// The numbers of the completed requests, in order of completion. Several daemons can share this
/// list.
pub type Done = Arc<Mutex<Vec<u64>>>;

impl OutOfOrder {
    /// Starts to serve a device, which must be open in non-blocking mode. `seed` determines the
    /// daemon's random choices.
    #[track_caller]
    pub fn serve(device: Device, done: &Done, seed: u64) -> Self {
        device.vq_setup(0, SIZE).expect("setting the queue up");
        let device = Arc::new(device);
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                vq: None,
                memory: Arc::new(AddressSpace::new(device.clone())),
                taken: Vec::new(),
                random: Random::new(seed),
                suspended: false,
            }),
            device,
            done: done.clone(),
            kick: EventFd::new().expect("an eventfd"),
            wake: EventFd::new().expect("an eventfd"),
            stop: AtomicBool::new(false),
        });
        let ours = shared.clone();
        let thread = std::thread::spawn(move || ours.run());
        Self {
            shared,
            thread: Some(thread),
        }
    }

    /// Waits until the daemon holds `count` requests.
    #[track_caller]
    pub fn holds(&self, count: usize) {
        soon("the daemon takes the requests", || {
            self.shared.state().taken.len() == count
        });
    }

    /// Completes the `count` requests that the daemon has taken last, in reverse order.
    #[track_caller]
    pub fn complete_last(&self, count: usize) {
        for _ in 0..count {
            let mut state = self.shared.state();
            let taken = state.taken.pop().expect("a request");
            self.shared.complete(&mut state, taken);
        }
    }

    /// Completes up to `count` of the held requests, which are chosen at random.
    #[track_caller]
    pub fn complete_some(&self, count: usize) {
        for _ in 0..count {
            let mut state = self.shared.state();
            let most = state.taken.len() as u64;
            if most == 0 {
                return;
            }
            let at = state.random.below(most) as usize;
            let taken = state.taken.swap_remove(at);
            self.shared.complete(&mut state, taken);
        }
    }
}

impl Drop for OutOfOrder {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        let _ = self.shared.wake.signal();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        use std::os::fd::AsFd;

        while !self.stop.load(Ordering::Acquire) {
            let mut fds = [
                PollFd::from_borrowed_fd(self.device.as_fd(), PollFlags::IN),
                PollFd::from_borrowed_fd(self.kick.as_fd(), PollFlags::IN),
                PollFd::from_borrowed_fd(self.wake.as_fd(), PollFlags::IN),
            ];
            if poll(&mut fds, None).is_err() {
                continue;
            }
            let _ = (self.kick.take(), self.wake.take());
            if fds[0].revents().contains(PollFlags::IN) {
                self.answer();
            }
            self.take();
        }
    }

    fn answer(&self) {
        let Ok(request) = self.device.read_request() else {
            return;
        };
        let mut state = self.state();
        let answer = match request.kind {
            Kind::GetVqState { index } => {
                let next_avail = match state.vq.as_ref().map(Virtqueue::position) {
                    Some(Position::Split { next_avail, .. }) => next_avail,
                    _ => 0,
                };
                Answer::SplitState { index, next_avail }
            }
            Kind::SetStatus(0) => {
                // A reset drops the requests that the daemon holds.
                state.taken.clear();
                (state.vq, state.suspended) = (None, false);
                state.memory = Arc::new(AddressSpace::new(self.device.clone()));
                Answer::Ok
            }
            Kind::SetStatus(status) => {
                if status & 4 != 0 && state.vq.is_none() {
                    self.start(&mut state);
                }
                Answer::Ok
            }
            Kind::UpdateIotlb { first, last, .. } => {
                state.memory = Arc::new(state.memory.without(first, last));
                let memory = state.memory.clone();
                if let Some(vq) = &mut state.vq {
                    vq.set_memory(memory).expect("the rings");
                }
                Answer::Ok
            }
            Kind::Suspend => {
                // After the suspend, the driver may go on with another device, which does not learn
                // about requests in flight. So the daemon completes all requests first.
                while !state.taken.is_empty() {
                    let most = state.taken.len() as u64;
                    let at = state.random.below(most) as usize;
                    let taken = state.taken.swap_remove(at);
                    self.complete(&mut state, taken);
                }
                state.suspended = true;
                Answer::Ok
            }
            Kind::Resume => {
                state.suspended = false;
                Answer::Ok
            }
            _ => Answer::Ok,
        };
        drop(state);
        let _ = self.device.answer(&request, answer);
    }

    fn start(&self, state: &mut State) {
        use std::os::fd::AsFd;

        let info = self.device.vq_info(0).expect("the queue");
        let features = self.device.features().expect("the features");
        let settings = Settings::new(&info, features).expect("a size");
        let memory = state.memory.clone();
        state.vq = Some(Virtqueue::new(&settings, &info.state, memory).expect("the rings"));
        self.device
            .set_kick(0, self.kick.as_fd())
            .expect("the kick eventfd");
    }

    /// Takes all requests that are available.
    fn take(&self) {
        let mut state = self.state();
        let state = &mut *state;
        let Some(vq) = state.vq.as_mut().filter(|_| !state.suspended) else {
            return;
        };
        loop {
            let mut chain = Chain::new();
            if !matches!(vq.pop(&mut chain), Ok(true)) {
                return;
            }
            let number = chain.reader().read_array().expect("a request's number");
            let number = u64::from_le_bytes(number);
            state.taken.push(Taken { number, chain });
        }
    }

    fn complete(&self, state: &mut State, taken: Taken) {
        self.done
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(taken.number);
        taken
            .chain
            .writer()
            .write_all(&taken.number.to_le_bytes())
            .expect("writing the answer");
        let vq = state.vq.as_mut().expect("a virtqueue");
        vq.push(&taken.chain, 8);
        vq.publish();
        // This fails while the device is being reset or is suspended.
        let _ = self.device.inject_vq_irq(0);
    }
}
