// SPDX-License-Identifier: GPL-2.0

//! Virtqueues.
//!
//! # Contexts
//!
//! A virtqueue's lock is taken by kicks, which come from softirqs and from code that runs with
//! interrupts off. So the lock is only ever held with interrupts off, and code under it only reads
//! and writes a few words and signals an eventfd. Interrupts are injected in process context.
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

/// The daemon's and the driver side's settings of a virtqueue.
#[derive(Default)]
struct State {
    /// The largest size, in descriptors; 0 before the virtqueue is set up.
    max_size: u16,
    /// The largest size for the next driver, if that is to change.
    next_max_size: Option<u16>,
    group: u32,
    /// The size that the driver chose, in descriptors; 0 before that.
    num: u32,
    address: VqAddress,
    state: VqState,
    ready: bool,
    kickfd: Option<EventFd>,
    /// Whether there was a kick of which no daemon was told.
    kicked: bool,
}

/// The driver side's settings of a virtqueue, as of one moment.
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
    /// The CPUs that interrupts go to; any CPU, if unset.
    affinity: OnceBox<AtomicCpumask>,
    /// The CPU to which an interrupt was last sent from another CPU; `u32::MAX` if there was none.
    last_cpu: Atomic<u32>,
    queue: Arc<OwnedQueue>,
    /// The length of the chain that ends with the deferred kick; 0 if no kick is deferred.
    kick_chain: Atomic<u32>,
    #[pin]
    kick_work: Work<Vq, KICK>,
    #[pin]
    inject_work: Work<Vq, INJECT>,
}

/// Maximum length of a chain of kicks, in which each kick but the first comes from signalling the
/// eventfd of the previous one. Daemons that forward their kicks to another device make chains of
/// two or three. A circular chain would have no end, and its CPU time would be charged to no
/// process, as kicks are deferred to a worker.
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
    /// Creates a virtqueue that interrupts its driver through `callback`, by work on `queue` if
    /// that cannot be done in the caller's own context.
    ///
    /// # Context
    ///
    /// May sleep.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`] if memory is short.
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

    /// Sets up the virtqueue for the daemon. The device must not be on the bus.
    pub(super) fn set_up(&self, config: &VqConfig) {
        let mut state = self.state.lock();

        state.max_size = config.max_size;
        state.next_max_size = None;
        state.group = config.group;
    }

    /// Returns whether the virtqueue is set up as `config` says.
    pub(super) fn is_set_up_as(&self, config: &VqConfig) -> bool {
        let state = self.state.lock();

        state.max_size == config.max_size && state.group == config.group
    }

    /// Sets the largest size for the next driver, which takes effect with the next reset or
    /// [`settle_max_size`](Self::settle_max_size).
    pub(super) fn set_next_max_size(&self, max_size: u16) {
        self.state.lock().next_max_size = Some(max_size);
    }

    /// Applies the pending largest size, if any. Must be called only while no driver uses the
    /// virtqueue.
    pub(super) fn settle_max_size(&self) {
        let mut state = self.state.lock();

        if let Some(max_size) = state.next_max_size.take() {
            state.max_size = max_size;
        }
    }

    /// Returns the largest size, in descriptors; 0 if the virtqueue is not set up.
    pub(super) fn max_size(&self) -> u16 {
        self.state.lock().max_size
    }

    /// Returns the size that the driver chose, or else the largest one, in descriptors.
    pub(super) fn size(&self) -> u16 {
        let state = self.state.lock();

        match u16::try_from(state.num) {
            Ok(num) if num != 0 => num,
            _ => state.max_size,
        }
    }

    /// Returns the virtqueue's group.
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

    /// Returns everything that the daemon can query, as of one moment.
    pub(super) fn snapshot(&self) -> Snapshot {
        let state = self.state.lock();

        Snapshot {
            num: state.num,
            address: state.address,
            state: state.state,
            ready: state.ready,
        }
    }

    /// Tells the daemon that the driver has made buffers available. Any context.
    pub(super) fn kick(self: &Arc<Self>) {
        if eventfd::signal_allowed() {
            self.kick_now();
            return;
        }

        // Called from within the wake-up of an eventfd: that of another virtqueue's kick, of this
        // virtqueue's own kick, or any other.
        let chain = self.queue.tag().map_or(1, |before| before + 1);
        if chain <= MAX_KICK_CHAIN {
            self.kick_later(chain);
        }
    }

    /// Defers a [`kick_now`](Self::kick_now) to a worker, at the end of a chain of `chain` kicks.
    /// Any context.
    fn kick_later(self: &Arc<Self>, chain: u32) {
        let mut pending = self.kick_chain.load(Relaxed);
        loop {
            // When two kicks merge into one, the shorter chain counts: kicks that follow from it
            // must not get lost.
            let shorter = if pending == 0 {
                chain
            } else {
                pending.min(chain)
            };

            // Written even if unchanged, so that a worker that handles this kick along with the
            // previous one sees the buffers of both.
            match self.kick_chain.cmpxchg(pending, shorter, Full) {
                Ok(_) => break,
                Err(now) => pending = now,
            }
        }

        // If the work is queued already, the worker will see this kick.
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

    /// Sets or removes the eventfd by which the daemon is told of kicks. A new eventfd is signalled
    /// at once if there was a kick of which no daemon was told.
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

    /// Removes the eventfd of a daemon that is gone. The next daemon is told again of kicks that
    /// were signalled to this one but not seen.
    pub(super) fn abandon_kickfd(&self) {
        let mut state = self.state.lock();
        let old = state.kickfd.take();

        if old.is_some() && state.ready {
            state.kicked = true;
        }

        drop(state);
        drop(old);
    }

    /// Discards the driver's settings. The daemon's settings stay.
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

    /// Returns the CPUs that interrupts go to; [`None`] means any CPU.
    pub(super) fn affinity(&self) -> Option<&AtomicCpumask> {
        self.affinity.get()
    }

    /// Returns the CPUs that interrupts go to at this moment. May sleep.
    pub(super) fn affinity_mask(&self) -> Result<Mask> {
        self.affinity().map_or_else(Mask::all, AtomicCpumask::load)
    }

    /// Sets the CPUs that interrupts go to; [`None`] means any CPU.
    ///
    /// # Context
    ///
    /// May sleep.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`] if memory is short.
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
    /// The driver is called back in the caller's own context if this CPU is one of those that the
    /// driver wants, if none of those is online, or if the driver is vhost, whatever a former
    /// driver wanted. Otherwise another CPU calls it back.
    ///
    /// # Context
    ///
    /// Process context.
    pub(super) fn inject(self: &Arc<Self>) {
        let mask = self.affinity().filter(|_| !self.callback.takes_any_cpu());

        match mask.and_then(|mask| self.elsewhere(mask)) {
            Some(cpu) => {
                // If the work is queued already, the driver will be called after this.
                let _ = self
                    .queue
                    .enqueue_on::<Arc<Self>, INJECT>(cpu, self.clone());
            }
            None => {
                self.callback.call();
            }
        }
    }

    /// Returns the CPU to send an interrupt to, in rotation, or [`None`] if this CPU can take the
    /// interrupt.
    fn elsewhere(&self, mask: &AtomicCpumask) -> Option<CpuId> {
        // If the task moves to another CPU right now, the interrupt is taken there, which does no
        // harm.
        if mask.test(CpuId::current()) {
            return None;
        }

        let cpu = mask.next_online(CpuId::from_u32(self.last_cpu.load(Relaxed)))?;
        self.last_cpu.store(cpu.as_u32(), Relaxed);

        Some(cpu)
    }
}
