// SPDX-License-Identifier: GPL-2.0

//! Virtqueues.
//!
//! # Contexts
//!
//! A virtqueue's lock is taken by kicks, which come from softirqs and from code that runs with
//! interrupts off: so it is never held but with interrupts off, and nothing is done under it but to
//! read and write a few words and to signal an eventfd. Interrupts are injected in process context.
//!
//! # Lock order
//!
//! The driver's callback slot, then the virtqueue's lock.

use crate::{
    bindings::{
        atomic_cpumask::AtomicCpumask,
        cpumask::Mask,
        eventfd::{
            self,
            EventFd, //
        },
        lock::{
            new_spinlock_irqsave,
            SpinLockIrqSave, //
        },
        once::OnceBox,
        vdpa::{
            CallbackSlot,
            VqAddress,
            VqState, //
        },
        workqueue::OwnedQueue,
    },
    uapi::VqConfig,
};
use kernel::{
    alloc::flags::GFP_KERNEL_ACCOUNT,
    cpu::CpuId,
    cpumask::Cpumask,
    impl_has_work, new_work,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Full,
            Relaxed, //
        },
        Arc,
    },
    workqueue::{
        Work,
        WorkItem, //
    },
};

/// What the daemon and the driver side make of a virtqueue.
#[derive(Default)]
struct State {
    /// The largest size, in descriptors; 0 before the virtqueue is set up.
    max_size: u16,
    /// The largest size for the next driver, if it is to be another one.
    next_max_size: Option<u16>,
    group: u32,
    /// The size that the driver has chosen, in descriptors; 0 before that.
    num: u32,
    address: VqAddress,
    state: VqState,
    ready: bool,
    kickfd: Option<EventFd>,
    /// Whether there was a kick that nobody was told of.
    kicked: bool,
}

/// What the driver side has made of a virtqueue, at one moment.
pub(super) struct Snapshot {
    pub(super) num: u32,
    pub(super) address: VqAddress,
    pub(super) state: VqState,
    pub(super) ready: bool,
}

/// A virtqueue.
#[pin_data]
pub(super) struct Vq {
    #[pin]
    state: SpinLockIrqSave<State>,
    callback: Arc<CallbackSlot>,
    /// The CPUs that interrupts go to; any, if there is none.
    affinity: OnceBox<AtomicCpumask>,
    /// The CPU that the last interrupt went to, if it had to be sent there; otherwise `u32::MAX`.
    last_cpu: Atomic<u32>,
    queue: Arc<OwnedQueue>,
    /// How long the chain is that a kick that was put off comes at the end of; 0 if there is none.
    kick_chain: Atomic<u32>,
    #[pin]
    kick_work: Work<Vq, KICK>,
    #[pin]
    inject_work: Work<Vq, INJECT>,
}

/// The longest chain of kicks, each of which comes from signalling the eventfd of the one before, but
/// for the first. Daemons that forward their kicks to another device make chains of two or three; one
/// that goes in circles would have no end, and nobody would pay for it: kicks are put off to a worker.
const MAX_KICK_CHAIN: u32 = 4;

const KICK: u64 = 0;
const INJECT: u64 = 1;

impl_has_work! {
    impl HasWork<Self, KICK> for Vq { self.kick_work }
    impl HasWork<Self, INJECT> for Vq { self.inject_work }
}

impl WorkItem<KICK> for Vq {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        let chain = this.kick_chain.xchg(0, Full);
        if chain == 0 {
            return;
        }

        if this.queue.tagged(chain, || this.kick_now()).is_none() {
            this.kick_later(chain);
        }
    }
}

impl WorkItem<INJECT> for Vq {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        this.callback.call();
    }
}

impl Vq {
    /// Makes a virtqueue that calls its driver through `callback`, on `queue` if it cannot do so in
    /// the caller's own context. May sleep.
    pub(super) fn new(callback: Arc<CallbackSlot>, queue: Arc<OwnedQueue>) -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                state <- new_spinlock_irqsave!(State::default()),
                callback,
                affinity: OnceBox::new(),
                last_cpu: Atomic::new(u32::MAX),
                queue,
                kick_chain: Atomic::new(0),
                kick_work <- new_work!("Vq::kick_work"),
                inject_work <- new_work!("Vq::inject_work"),
            }),
            GFP_KERNEL_ACCOUNT,
        )
    }

    /// The daemon sets the virtqueue up, which is not on the bus.
    pub(super) fn set_up(&self, config: &VqConfig) {
        let mut state = self.state.lock();

        state.max_size = config.max_size;
        state.next_max_size = None;
        state.group = config.group;
    }

    /// Whether this is how it is set up.
    pub(super) fn is_set_up_as(&self, config: &VqConfig) -> bool {
        let state = self.state.lock();

        state.max_size == config.max_size && state.group == config.group
    }

    /// Sets the largest size for the next driver: from the next reset on, or until
    /// [`settle_max_size`](Self::settle_max_size).
    pub(super) fn set_next_max_size(&self, max_size: u16) {
        self.state.lock().next_max_size = Some(max_size);
    }

    /// Has the largest size be what was last asked for: no driver has the virtqueue.
    pub(super) fn settle_max_size(&self) {
        let mut state = self.state.lock();

        if let Some(max_size) = state.next_max_size.take() {
            state.max_size = max_size;
        }
    }

    /// The largest size, in descriptors; 0 if it is not set up.
    pub(super) fn max_size(&self) -> u16 {
        self.state.lock().max_size
    }

    /// The size that the driver has chosen, or the largest.
    pub(super) fn size(&self) -> u16 {
        let state = self.state.lock();

        match u16::try_from(state.num) {
            Ok(num) if num != 0 => num,
            _ => state.max_size,
        }
    }

    /// The group that it is in.
    pub(super) fn group(&self) -> u32 {
        self.state.lock().group
    }

    pub(super) fn set_num(&self, num: u32) {
        self.state.lock().num = num;
    }

    pub(super) fn set_address(&self, address: VqAddress) {
        self.state.lock().address = address;
    }

    pub(super) fn set_state(&self, new: VqState) {
        self.state.lock().state = new;
    }

    pub(super) fn set_ready(&self, ready: bool) {
        self.state.lock().ready = ready;
    }

    pub(super) fn is_ready(&self) -> bool {
        self.state.lock().ready
    }

    /// All that the daemon wants to know, of one moment.
    pub(super) fn snapshot(&self) -> Snapshot {
        let state = self.state.lock();

        Snapshot {
            num: state.num,
            address: state.address,
            state: state.state,
            ready: state.ready,
        }
    }

    /// The driver has made buffers available. Any context.
    pub(super) fn kick(self: &Arc<Self>) {
        if eventfd::signal_allowed() {
            self.kick_now();
            return;
        }

        // Called back by an eventfd: by that of another kick, or of this one, or by any other.
        let chain = self.queue.tag().map_or(1, |before| before + 1);
        if chain <= MAX_KICK_CHAIN {
            self.kick_later(chain);
        }
    }

    /// Has a worker do what [`kick_now`](Self::kick_now) does, at the end of a chain of kicks. Any
    /// context.
    fn kick_later(self: &Arc<Self>, chain: u32) {
        let mut pending = self.kick_chain.load(Relaxed);
        loop {
            // Of two kicks in one, the shorter chain counts: what it leads to must not get lost.
            let shorter = if pending == 0 {
                chain
            } else {
                pending.min(chain)
            };

            // Written even if it stays the same, so that a worker that takes this kick along with the
            // one before has the buffers of both.
            match self.kick_chain.cmpxchg(pending, shorter, Full) {
                Ok(_) => break,
                Err(now) => pending = now,
            }
        }

        // If it is queued already, it will see this kick.
        let _ = self.queue.enqueue::<Arc<Self>, KICK>(self.clone());
    }

    fn kick_now(&self) {
        let mut state = self.state.lock();

        if state.ready {
            match &state.kickfd {
                Some(kickfd) => kickfd.signal(),
                None => state.kicked = true,
            }
        }
    }

    /// The daemon wants to be told of kicks by this eventfd, or by none. If there was a kick that
    /// nobody was told of, it is told of that.
    pub(super) fn set_kickfd(&self, kickfd: Option<EventFd>) {
        let mut state = self.state.lock();
        let old = core::mem::replace(&mut state.kickfd, kickfd);

        if state.ready && state.kicked {
            if let Some(kickfd) = &state.kickfd {
                kickfd.signal();
                state.kicked = false;
            }
        }

        drop(state);
        drop(old);
    }

    /// The daemon is gone. What its eventfd was told of and it has not seen, its successor is told
    /// of again.
    pub(super) fn abandon_kickfd(&self) {
        let mut state = self.state.lock();
        let old = state.kickfd.take();

        if old.is_some() && state.ready {
            state.kicked = true;
        }

        drop(state);
        drop(old);
    }

    /// Forgets what the driver has made of it. What the daemon has set up stays.
    pub(super) fn reset(&self) {
        let mut state = self.state.lock();
        let new = State {
            max_size: state.next_max_size.unwrap_or(state.max_size),
            group: state.group,
            ..State::default()
        };
        let old = core::mem::replace(&mut *state, new);

        drop(state);
        drop(old);
    }

    /// The CPUs that interrupts go to; [`None`] for any.
    pub(super) fn affinity(&self) -> Option<&AtomicCpumask> {
        self.affinity.get()
    }

    /// The CPUs that interrupts go to, as they are now. May sleep.
    pub(super) fn affinity_mask(&self) -> Result<Mask> {
        self.affinity().map_or_else(Mask::all, AtomicCpumask::load)
    }

    /// Sets the CPUs that interrupts go to; [`None`] for any. May sleep.
    pub(super) fn set_affinity(&self, mask: Option<&Cpumask>) -> Result {
        let affinity = match (self.affinity(), mask) {
            (None, None) => return Ok(()),
            (Some(affinity), _) => affinity,
            (None, Some(_)) => self
                .affinity
                .get_or_init(AtomicCpumask::new_all()?, GFP_KERNEL_ACCOUNT)?,
        };

        match mask {
            Some(mask) => affinity.store(mask),
            None => affinity.fill(),
        }

        Ok(())
    }

    /// Interrupts the driver.
    ///
    /// It is called back in this very context if this CPU is one of those it wants to be called on,
    /// if none of them is online, or if it is vhost, whatever a former driver wanted. Process context.
    pub(super) fn inject(self: &Arc<Self>) {
        let mask = self.affinity().filter(|_| !self.callback.takes_any_cpu());

        match mask.and_then(|mask| self.elsewhere(mask)) {
            Some(cpu) => {
                // If it is queued already, the driver will be called after this.
                let _ = self
                    .queue
                    .enqueue_on::<Arc<Self>, INJECT>(cpu, self.clone());
            }
            None => {
                self.callback.call();
            }
        }
    }

    /// The CPU to send an interrupt to, in turn; [`None`] if it can be taken here.
    fn elsewhere(&self, mask: &AtomicCpumask) -> Option<CpuId> {
        // If the task moves to another CPU right now, the interrupt is taken there: no harm.
        if mask.test(CpuId::current()) {
            return None;
        }

        let cpu = mask.next_online(CpuId::from_u32(self.last_cpu.load(Relaxed)))?;
        self.last_cpu.store(cpu.as_u32(), Relaxed);

        Some(cpu)
    }
}
