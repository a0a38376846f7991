// SPDX-License-Identifier: GPL-2.0

//! Virtqueues.
//!
//! # Contexts
//!
//! Kicks take a virtqueue's lock. A driver may kick in a softirq or with interrupts disabled, so
//! interrupts are always disabled while the lock is held. Code that holds the lock only reads and
//! writes a few words and signals an eventfd. Interrupts are injected in process context.
//!
//! # Lock order
//!
//! The lock of the driver's callback slot, then the virtqueue's lock.

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

/// The settings of a virtqueue: those of the daemon and those of the driver.
#[derive(Default)]
struct State {
    /// The largest size that the driver may choose, in descriptors; 0 before the daemon has set up
    /// the virtqueue.
    max_size: u16,
    /// The value that `max_size` gets before the next driver uses the virtqueue, in descriptors;
    /// [`None`] if `max_size` stays the same.
    next_max_size: Option<u16>,
    group: u32,
    /// The size that the driver chose, in descriptors; 0 before the driver has chosen a size.
    num: u32,
    address: VqAddress,
    state: VqState,
    /// Whether the virtqueue is ready: the driver has enabled the virtqueue and, if `F_QUEUE_READY`
    /// was negotiated, the daemon has agreed.
    ready: bool,
    /// Whether the driver has enabled the virtqueue. The driver does not learn whether the daemon
    /// has agreed.
    wanted: bool,
    /// Whether the kernel asked the daemon to agree to `wanted` and the daemon did not agree. In
    /// this case, `wanted` takes effect when the next daemon opens the device. Becomes true only
    /// under the mutex of the device's message queue.
    refused: bool,
    /// Whether the device is suspended, so that kicks are held back.
    suspended: bool,
    kickfd: Option<EventFd>,
    /// Whether there was a kick of which no daemon has been notified.
    kicked: bool,
}

impl State {
    /// Notifies the daemon of a kick or, if that is not possible now, records the kick for later.
    fn kick(&mut self) {
        match &self.kickfd {
            Some(kickfd) if self.ready && !self.suspended => kickfd.signal(),
            _ => self.kicked |= self.ready || self.wanted,
        }
    }

    /// Notifies the daemon of a kick that was recorded, if that is possible now.
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

/// A consistent snapshot of the driver's settings of a virtqueue.
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
    /// The CPUs to which interrupts go. If unset, interrupts go to any CPU.
    affinity: OnceBox<AtomicCpumask>,
    /// The last CPU to which another CPU sent an interrupt of this virtqueue; `u32::MAX` before the
    /// first such interrupt.
    last_cpu: Atomic<u32>,
    queue: Arc<OwnedQueue>,
    /// The length of the [chain of kicks](MAX_KICK_CHAIN) that ends with the deferred kick; 0 if no
    /// kick is deferred.
    kick_chain: Atomic<u32>,
    #[pin]
    kick_work: Work<Vq, KICK>,
    #[pin]
    inject_work: Work<Vq, INJECT>,
}

/// Maximum length of a chain of kicks. Signalling the kick eventfd of one virtqueue may cause a
/// kick of another virtqueue, and so on. Daemons that forward their kicks to another device cause
/// chains of two or three kicks. A circular chain would never end, and its CPU time would be
/// charged to no process, as deferred kicks run in a worker.
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
        // the device is suspended now, the driver has changed since the interrupt was accepted, and
        // the interrupt can be dropped.
        let _ = this.callback.call();
    }
}

impl Vq {
    /// Creates a virtqueue that interrupts its driver through `callback`. `queue` runs interrupts
    /// that are sent to another CPU, and kicks that are deferred.
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

    /// Sets up the virtqueue as the daemon has configured it. The device must not be on the bus.
    pub(super) fn set_up(&self, config: &VqConfig) {
        let mut state = self.state.lock();

        state.max_size = config.max_size;
        state.next_max_size = None;
        state.group = config.group;
    }

    /// Changes the setup of a virtqueue whose device is on the bus, as far as that is allowed.
    ///
    /// With version 1 of the API, nothing may change. With version 0, `config` gives the largest
    /// size that the next driver may choose, in descriptors: the current driver has already read
    /// the largest size. The new one takes effect at the next reset or call of
    /// [`settle_max_size`](Self::settle_max_size). The group cannot change, because a device with
    /// version 0 of the API has only one group.
    ///
    /// # Errors
    ///
    /// - [`EINVAL`] if `is_v1` is set and `config` differs from the setup in effect.
    /// - [`EINVAL`] if `is_v1` is not set and the largest size is 0.
    pub(super) fn change_setup(&self, config: &VqConfig, is_v1: bool) -> Result {
        let mut state = self.state.lock();

        if is_v1 {
            let is_same = state.max_size == config.max_size && state.group == config.group;
            return is_same.then_some(()).ok_or(EINVAL);
        }
        if config.max_size == 0 {
            return Err(EINVAL);
        }

        state.next_max_size = Some(config.max_size);

        Ok(())
    }

    /// Puts the largest size from [`change_setup`](Self::change_setup) into effect, if one was set.
    /// Must be called only while no driver uses the virtqueue.
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

    /// Returns the size that the driver chose or, before that, the largest size, in descriptors.
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

    /// Enables or disables the virtqueue. Called when the daemon has agreed, or when the daemon
    /// need not agree.
    pub(super) fn set_ready(&self, ready: bool) {
        self.state.lock().set_ready(ready);
    }

    /// Records that the driver enables or disables the virtqueue. Called before the kernel asks the
    /// daemon to agree.
    pub(super) fn set_wanted(&self, ready: bool) {
        let mut state = self.state.lock();

        state.wanted = ready;
        state.refused = false;
    }

    /// Records that the daemon did not agree to the change that [`set_wanted`](Self::set_wanted)
    /// recorded.
    pub(super) fn set_refused(&self) {
        self.state.lock().refused = true;
    }

    /// Enables or disables the virtqueue as the driver wants, if the previous daemon did not agree.
    /// So a new daemon finds the virtqueue in the state that the driver believes it to have.
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

    /// Returns a consistent snapshot of the settings that `VQ_GET_INFO` reports.
    pub(super) fn snapshot(&self) -> Snapshot {
        let state = self.state.lock();

        Snapshot {
            num: state.num,
            address: state.address,
            state: state.state,
            ready: state.ready,
        }
    }

    /// Notifies the daemon that the driver has made buffers available. May be called in any
    /// context.
    pub(super) fn kick(self: &Arc<Self>) {
        if eventfd::signal_allowed() {
            self.kick_now();
            return;
        }

        // This call comes from within the wake-up of an eventfd, so it must not signal an eventfd.
        // Any eventfd may be the cause: the kick eventfd of this virtqueue, that of another
        // virtqueue, or an unrelated one.
        let chain = self.queue.tag().map_or(1, |before| before + 1);
        if chain <= MAX_KICK_CHAIN {
            self.kick_later(chain);
        }
    }

    /// Defers a kick to a worker, which calls [`kick_now`](Self::kick_now). `chain` is the length
    /// of the [chain of kicks](MAX_KICK_CHAIN) that ends with this kick. May be called in any
    /// context.
    fn kick_later(self: &Arc<Self>, chain: u32) {
        let mut pending = self.kick_chain.load(Relaxed);
        loop {
            // If a kick is deferred already, the worker handles both kicks as one. The merged kick
            // gets the length of the shorter chain. With the longer one, `MAX_KICK_CHAIN` could cut
            // off kicks that continue the shorter chain.
            let shorter = if pending == 0 {
                chain
            } else {
                pending.min(chain)
            };

            // The write is needed even if the value stays the same: it is ordered after the
            // driver's writes. So a worker that handles this kick together with an earlier one sees
            // the buffers of both kicks.
            match self.kick_chain.cmpxchg(pending, shorter, Full) {
                Ok(_) => break,
                Err(now) => pending = now,
            }
        }

        // If the work is queued already, the worker will handle this kick as well.
        let _ = self.queue.enqueue::<Arc<Self>, KICK>(self.clone());
    }

    fn kick_now(&self) {
        self.state.lock().kick();
    }

    /// Holds kicks back until the virtqueue is [resumed](Self::resume) or reset. Waits for a kick
    /// that is in progress. May be called in any context.
    pub(super) fn suspend(&self) {
        self.state.lock().suspended = true;
    }

    /// Ends the effect of [`suspend`](Self::suspend): kicks are no longer held back. If a kick was
    /// held back, notifies the daemon immediately.
    ///
    /// # Context
    ///
    /// Any context in which [`eventfd::signal_allowed`] returns true.
    pub(super) fn resume(&self) {
        let mut state = self.state.lock();

        state.suspended = false;
        state.kick_again();
    }

    /// Sets or removes the eventfd that notifies the daemon of kicks. A new eventfd is signalled
    /// immediately if there was a kick of which no daemon has been notified.
    pub(super) fn set_kickfd(&self, kickfd: Option<EventFd>) {
        let mut state = self.state.lock();
        let old = core::mem::replace(&mut state.kickfd, kickfd);

        state.kick_again();

        drop(state);
        drop(old);
    }

    /// Removes the kick eventfd of a daemon that is gone. If the virtqueue is enabled, also records
    /// a kick for the next daemon, as the daemon that is gone may not have handled all kicks.
    pub(super) fn abandon_kickfd(&self) {
        let mut state = self.state.lock();
        let old = state.kickfd.take();

        if old.is_some() && (state.ready || state.wanted) {
            state.kicked = true;
        }

        drop(state);
        drop(old);
    }

    /// Discards the driver's settings and the kick eventfd. The daemon's setup stays. If
    /// [`change_setup`](Self::change_setup) has set a largest size, that size takes
    /// effect.
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
    /// The driver's callback runs in the caller's own context if interrupts go to the current CPU,
    /// or if all CPUs to which interrupts go are offline. The callback of vhost always runs in the
    /// caller's own context, even if an earlier driver has restricted the CPUs. Otherwise, the
    /// callback runs on another CPU, from a workqueue.
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
                // If the work is queued already, that work will still call the driver.
                let _ = self
                    .queue
                    .enqueue_on::<Arc<Self>, INJECT>(cpu, self.clone());
                Ok(())
            }
            None => self.callback.call().map(|_| ()),
        }
    }

    /// Chooses the CPU to which an interrupt is sent: each call chooses the next online CPU of
    /// `mask`. Returns [`None`] if the current CPU is in `mask` and can take the interrupt itself,
    /// or if no CPU of `mask` is online.
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
