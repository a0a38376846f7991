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
            Suspended,
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
    /// The pending largest size, which the next driver will see; [`None`] if none is pending.
    next_max_size: Option<u16>,
    group: u32,
    /// The size that the driver chose, in descriptors; 0 before that.
    num: u32,
    address: VqAddress,
    state: VqState,
    /// Whether the virtqueue is ready: the driver has set this and, if the daemon is asked, the
    /// daemon has agreed.
    ready: bool,
    /// Whether the virtqueue is ready as far as the driver knows. Drivers are not told that a
    /// daemon has refused.
    wanted: bool,
    /// Whether the daemon was asked to agree to `wanted` and did not, so that the next daemon finds
    /// `wanted` in effect. Changes only under the mutex of the messages, and in a reset.
    refused: bool,
    /// Whether the device is suspended: kicks are held back.
    suspended: bool,
    kickfd: Option<EventFd>,
    /// Whether there was a kick of which no daemon was told.
    kicked: bool,
}

impl State {
    /// Tells the daemon of a kick or, if that is not possible now, records the kick for later.
    fn kick(&mut self) {
        match &self.kickfd {
            Some(kickfd) if self.ready && !self.suspended => kickfd.signal(),
            _ => self.kicked |= self.ready || self.wanted,
        }
    }

    /// Tells the daemon of a kick of which no daemon was told, if that is possible now.
    fn kick_again(&mut self) {
        if self.kicked && self.ready && !self.suspended {
            if let Some(kickfd) = &self.kickfd {
                kickfd.signal();
                self.kicked = false;
            }
        }
    }

    fn set_ready(&mut self, ready: bool) {
        self.ready = ready;
        self.wanted = ready;
        self.refused = false;
        self.kick_again();
    }
}

/// A consistent snapshot of the driver side's settings of a virtqueue.
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
/// two or three. A circular chain would never end, and its CPU time would be charged to no process,
/// as deferred kicks run in a worker.
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
        // Only vhost suspends a device, and vhost's interrupts are not deferred to this work. So if
        // the device has been suspended since the interrupt was accepted, the driver has changed,
        // and the interrupt can be dropped.
        let _ = this.callback.call();
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

    /// Enables or disables the virtqueue. The daemon, if it is asked, has agreed.
    pub(super) fn set_ready(&self, ready: bool) {
        self.state.lock().set_ready(ready);
    }

    /// Records that the driver enables or disables the virtqueue, before the daemon is asked.
    pub(super) fn set_wanted(&self, ready: bool) {
        let mut state = self.state.lock();

        state.wanted = ready;
        state.refused = false;
    }

    /// Records that the daemon did not agree to what the driver wants.
    pub(super) fn set_refused(&self) {
        self.state.lock().refused = true;
    }

    /// Puts into effect what the driver wants and the previous daemon did not agree to, so that a
    /// new daemon finds the virtqueue as the driver knows it.
    pub(super) fn settle_ready(&self) {
        let mut state = self.state.lock();

        if state.refused {
            let wanted = state.wanted;
            state.set_ready(wanted);
        }
    }

    pub(super) fn is_ready(&self) -> bool {
        self.state.lock().ready
    }

    /// Returns a consistent snapshot of everything that the daemon can query.
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

    /// Defers a [`kick_now`](Self::kick_now) to a worker. `chain` is the length of the chain that
    /// ends with this kick. Any context.
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
        self.state.lock().kick();
    }

    /// Holds kicks back until the virtqueue is [resumed](Self::resume) or reset. Waits for a kick
    /// that is in progress. Any context.
    pub(super) fn suspend(&self) {
        self.state.lock().suspended = true;
    }

    /// Tells the daemon of kicks again, including one that was held back.
    ///
    /// # Context
    ///
    /// Any in which [`eventfd::signal_allowed`] returns true.
    pub(super) fn resume(&self) {
        let mut state = self.state.lock();

        state.suspended = false;
        state.kick_again();
    }

    /// Sets or removes the eventfd by which the daemon is told of kicks. A new eventfd is signalled
    /// at once if there was a kick of which no daemon was told.
    pub(super) fn set_kickfd(&self, kickfd: Option<EventFd>) {
        let mut state = self.state.lock();
        let old = core::mem::replace(&mut state.kickfd, kickfd);

        state.kick_again();

        drop(state);
        drop(old);
    }

    /// Removes the eventfd of a daemon that is gone. The next daemon is told again of kicks that
    /// were signalled to this one but not seen.
    pub(super) fn abandon_kickfd(&self) {
        let mut state = self.state.lock();
        let old = state.kickfd.take();

        if old.is_some() && (state.ready || state.wanted) {
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
    /// The driver is called back in the caller's own context if this CPU is one of those that
    /// interrupts go to, if none of those is online, or if the driver is vhost, even if a former
    /// driver has restricted the CPUs. Otherwise, another CPU calls the driver back.
    ///
    /// # Errors
    ///
    /// [`Suspended`], if the device is suspended.
    ///
    /// # Context
    ///
    /// Process context.
    pub(super) fn inject(self: &Arc<Self>) -> Result<(), Suspended> {
        let mask = self.affinity().filter(|_| !self.callback.takes_any_cpu());

        match mask.and_then(|mask| self.elsewhere(mask)) {
            Some(cpu) => {
                self.callback.accepts()?;
                // If the work is queued already, the driver will be called after this.
                let _ = self
                    .queue
                    .enqueue_on::<Arc<Self>, INJECT>(cpu, self.clone());
                Ok(())
            }
            None => self.callback.call().map(|_| ()),
        }
    }

    /// Returns the CPU to send an interrupt to, in rotation, or [`None`] if this CPU can take the
    /// interrupt.
    fn elsewhere(&self, mask: &AtomicCpumask) -> Option<CpuId> {
        // If the task moves to another CPU after this check, the interrupt is taken on that CPU,
        // which does no harm.
        if mask.test(CpuId::current()) {
            return None;
        }

        let cpu = mask.next_online(CpuId::from_u32(self.last_cpu.load(Relaxed)))?;
        self.last_cpu.store(cpu.as_u32(), Relaxed);

        Some(cpu)
    }
}
