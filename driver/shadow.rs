// SPDX-License-Identifier: GPL-2.0

//! The shadow of a network card's control virtqueue, which stands between virtio_net and the
//! daemon.
//!
//! virtio_net waits for the answer to a command in a loop that only the device can end, with RTNL
//! (the lock of all network configuration) held. So there are two virtqueues:
//!
//! - virtio_net's virtqueue, in memory that the daemon cannot access. The shadow acts as the device
//!   of this virtqueue.
//! - The daemon's virtqueue, which the daemon sees in place of virtio_net's. The shadow acts as the
//!   driver of this virtqueue.
//!
//! The shadow checks each command of virtio_net and copies it to the daemon's virtqueue. The shadow
//! reads only one thing from the daemon's answer: whether the daemon has carried out the command.
//! virtio_net always gets an answer in time:
//!
//! - virtio_net waits for a command no longer than a [budget](Budget) allows. The budget also
//!   limits the total time that virtio_net waits for all commands of the device. While the budget
//!   is used up, commands fail immediately.
//! - If the daemon does not answer a command in time, the command stays in the daemon's virtqueue.
//!   Until the daemon has answered that command, later commands fail immediately. If the daemon
//!   dies before it has answered, the command is withdrawn when the next daemon opens the device.
//! - If the daemon is new or has not answered in time, it may lack [settings](Settings) that
//!   virtio_net believes to be in effect. The shadow restores these settings by commands of its
//!   own, which it sends while no command of virtio_net is in progress.
//!
//! With vhost, there is no shadow: the vhost process drives the daemon's control virtqueue
//! directly.
//!
//! # Context
//!
//! All functions run in process context and may sleep. In particular, virtio_net sends commands in
//! a context that may sleep, under a mutex.
//!
//! # Lock order
//!
//! The locks of virtio_net or the lock of the device's [usage](super::usage), then
//! [`Shadow::state`], then the lock of a virtqueue, of a domain's mappings, or of the [map of the
//! driver's memory](DirectMap).

use super::{
    budget::Budget,
    domain::Domain,
    net_ctrl::{
        self,
        Command,
        Outcome,
        Settings, //
    },
    virtio::feature,
    vq::Vq, //
};
use crate::bindings::{
    completion::{
        Completion,
        WaitResult, //
    },
    direct_map::DirectMap,
    page::Pages,
    vdpa::VqAddress,
    virtio_map::Owner,
    vring::{
        Buffer,
        DeviceSide,
        DriverSide,
        Layout,
        Malformed,
        Memory,
        Progress,
        Request, //
    },
};
use core::ops::ControlFlow;
use kernel::{
    alloc::flags::GFP_KERNEL_ACCOUNT,
    new_mutex,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc,
        Mutex, //
    },
    time::{
        Delta,
        Instant,
        Monotonic, //
    },
};

/// Interval at which a waiting call checks whether the daemon has answered. virtio_net does not ask
/// for interrupts of this virtqueue, so some daemons may never inject one.
const LOOK_INTERVAL: Delta = Delta::from_millis(10);

/// The size of virtio_net's virtqueue, in descriptors. A command takes up to five descriptors. The
/// size of the daemon's virtqueue may be different.
pub(super) const SIZE: u16 = 16;

/// Maximum size of the daemon's virtqueue, in descriptors. A command takes two descriptors.
const MAX_SIZE: u16 = 1024;

/// Value of [`Shadow::index`] if no virtqueue is shadowed.
const NONE: u32 = u32::MAX;

/// The request that the shadow has sent to the daemon and that is in progress.
#[derive(Clone, Copy, PartialEq, Eq)]
enum InFlight {
    /// No request.
    None,
    /// A command of the driver. A call of [`Shadow::serve`] waits for the daemon's answer.
    Command,
    /// A command that the daemon has not answered in time. The driver has got an answer from the
    /// shadow, and no call waits for the daemon's answer any more.
    GivenUp,
    /// A command of the shadow that restores a stale setting.
    Restoring,
}

/// The virtqueue that the daemon sees, with memory for one request.
struct DaemonSide {
    ring: DriverSide,
    /// The memory of the virtqueue, followed by the answer (one byte) and the command.
    memory: Pages,
    /// The offset of the answer in `memory`, in bytes.
    answer: u64,
    /// The I/O virtual address of `memory`, which has `len` bytes.
    iova: u64,
    len: usize,
    domain: Arc<Domain>,
}

impl DaemonSide {
    /// Creates a virtqueue of `size` descriptors, and maps it into `domain`. Also returns the
    /// virtqueue's address.
    fn new(size: u32, domain: Arc<Domain>) -> Result<(Self, VqAddress)> {
        let layout = Layout::contiguous(size).ok_or(EINVAL)?;
        let ring = DriverSide::new(layout).ok_or(EINVAL)?;
        let answer = layout.end();
        // `len` is at most some 35,000 bytes.
        let len = (answer as usize).saturating_add(1 + net_ctrl::MAX_LEN);
        let memory = Pages::alloc(len)?;
        let iova = domain.owner().map_coherent(memory.share(), len)?;
        let address = VqAddress {
            desc: iova.wrapping_add(layout.desc),
            driver: iova.wrapping_add(layout.driver),
            device: iova.wrapping_add(layout.device),
        };

        let side = Self {
            ring,
            memory,
            answer,
            iova,
            len,
            domain,
        };
        Ok((side, address))
    }

    /// Returns the offset of the command in `memory`, in bytes.
    fn command(&self) -> u64 {
        self.answer.wrapping_add(1)
    }

    /// Writes a command to `memory`. Returns the two buffers of the request: the command, which the
    /// daemon reads, and the answer, which the daemon writes.
    fn write(&self, command: &[u8]) -> Result<(Buffer, Buffer), Malformed> {
        let readable = Buffer {
            address: self.iova.wrapping_add(self.command()),
            // A command has at most `MAX_LEN` bytes.
            len: command.len() as u32,
        };
        let writable = Buffer {
            address: self.iova.wrapping_add(self.answer),
            len: 1,
        };

        self.memory.write(self.command(), command)?;
        // If the daemon completes the request without writing an answer, the answer is `ERR`.
        self.memory.write(self.answer, &[net_ctrl::ERR])?;
        Ok((readable, writable))
    }

    /// Makes a command available to the daemon.
    fn send(&mut self, command: &[u8]) -> Result<(), Malformed> {
        let (readable, writable) = self.write(command)?;

        self.ring.send(&self.memory, readable, writable)
    }

    /// Makes the last command available again, to a new daemon. `command` must be the last command.
    fn send_again(&self, command: &[u8]) -> Result<(), Malformed> {
        let (readable, writable) = self.write(command)?;

        self.ring.reoffer(&self.memory, readable, writable)
    }

    fn progress(&self) -> Progress {
        self.ring.progress(&self.memory)
    }

    /// Returns whether the daemon has answered that it has carried out the last command. Must be
    /// called only after the daemon has completed the request.
    fn is_done(&self) -> bool {
        let mut answer = [net_ctrl::ERR];

        self.memory.read(self.answer, &mut answer).is_ok() && answer == [net_ctrl::OK]
    }

    /// Withdraws the last command, so that the next daemon does not carry it out.
    fn withdraw(&self) {
        // The next daemon may start at a wrong position in the virtqueue, and so take the withdrawn
        // command after all. Therefore, the command's class and number are overwritten with values
        // that no command has.
        let _ = self.memory.write(self.command(), &[0xff; 2]);
        let _ = self.ring.withdraw(&self.memory);
    }
}

impl Drop for DaemonSide {
    fn drop(&mut self) {
        self.domain.owner().unmap_coherent(self.iova, self.len);
    }
}

/// The state of a virtqueue that is shadowed.
struct Active {
    /// A number that distinguishes this virtqueue from all virtqueues that are shadowed earlier or
    /// later.
    id: u64,
    ring: DeviceSide,
    daemon: DaemonSide,
    in_flight: InFlight,
    /// Whether a call of [`Shadow::serve`] is handling a command of the driver.
    serving: bool,
    settings: Settings<KVVec<u8>>,
    features: u64,
    /// The buffer for a command of the driver or of the shadow. While the driver's command is in
    /// flight, the first `len` bytes are that command.
    buf: KVVec<u8>,
    len: usize,
}

impl Active {
    /// Checks whether the daemon has answered the request in flight, unless that request is a
    /// command for which a call waits. If the daemon has answered, records that no request is in
    /// flight any more.
    fn look(&mut self) {
        if self.in_flight == InFlight::Command || self.daemon.progress() != Progress::Completed {
            return;
        }

        self.in_flight = InFlight::None;
    }

    /// Sends the next command that restores a stale setting. Does nothing while another request is
    /// in flight, or while a call is handling a command of the driver.
    fn restore(&mut self, vq: &Arc<Vq>) {
        if self.in_flight != InFlight::None || self.serving {
            return;
        }
        let Some((setting, len)) = self.settings.next_stale(&mut self.buf) else {
            return;
        };

        if self.send(len) {
            // The setting counts as restored now, and not when the daemon answers: the driver may
            // send a newer value before that.
            self.settings.restored(setting);
            self.in_flight = InFlight::Restoring;
            vq.kick();
        }
    }

    /// Sends the command in the first `len` bytes of the buffer to the daemon. Returns whether that
    /// succeeded.
    fn send(&mut self, len: usize) -> bool {
        self.len = len;
        self.buf
            .get(..len)
            .is_some_and(|command| self.daemon.send(command).is_ok())
    }

    /// Parses the driver's command in the first `len` bytes of `buf`. Returns [`None`] if the
    /// command is not valid.
    fn parse(buf: &[u8], len: usize, features: u64, max_pairs: u16) -> Option<Command<'_>> {
        Command::parse(buf.get(..len)?, features, max_pairs)
    }

    /// Takes the next step for the driver's command, which is in the first `len` bytes of the
    /// buffer. Returns [`ControlFlow::Continue`] if the caller must wait for the daemon. Otherwise,
    /// returns true if the driver must get the answer [`net_ctrl::OK`], and false if it must get
    /// the answer [`net_ctrl::ERR`].
    fn command(&mut self, vq: &Arc<Vq>, len: usize, limits: &Limits) -> ControlFlow<bool> {
        if Self::parse(&self.buf, len, self.features, limits.max_pairs).is_none() {
            return ControlFlow::Break(false);
        }

        self.look();
        let outcome = match (self.in_flight, self.daemon.progress()) {
            (InFlight::Command, Progress::Completed) if self.daemon.is_done() => Outcome::Done,
            (InFlight::Command, Progress::Completed) => Outcome::Refused,
            (InFlight::Command, Progress::Pending) if limits.has_time => {
                return ControlFlow::Continue(());
            }
            (InFlight::None | InFlight::Restoring, _) if !limits.is_open || !limits.has_time => {
                Outcome::Unknown
            }
            (InFlight::Restoring, Progress::Pending) => return ControlFlow::Continue(()),
            (InFlight::None, _) if self.send(len) => {
                self.in_flight = InFlight::Command;
                vq.kick();
                return ControlFlow::Continue(());
            }
            _ => Outcome::Unknown,
        };

        self.in_flight = match (self.in_flight, outcome) {
            (InFlight::None, _) | (_, Outcome::Done | Outcome::Refused) => InFlight::None,
            // The request in flight may also be a command that restores a setting. A daemon that is
            // too slow for that command is too slow for the driver's command as well.
            (_, Outcome::Unknown) => InFlight::GivenUp,
        };
        let command = Self::parse(&self.buf, len, self.features, limits.max_pairs);
        let is_done = command.is_some_and(|command| self.settings.record(command, outcome));

        ControlFlow::Break(is_done)
    }

    /// Answers the driver's command with `answer`.
    fn answer(
        &mut self,
        memory: &DirectMap,
        request: Request,
        answer: u8,
    ) -> Result<(), Malformed> {
        let written = match request.answer {
            Some(at) => memory.write(at, &[answer]).map_or(0, |()| 1),
            None => 0,
        };

        self.ring.complete(memory, request, written)
    }
}

/// The conditions under which a command is sent to the daemon, and a call waits for the answer.
struct Limits {
    /// Whether a daemon has the device open.
    is_open: bool,
    /// Whether there is time left to wait.
    has_time: bool,
    /// Maximum number of virtqueue pairs that a command may set.
    max_pairs: u16,
}

/// The mutable state of a shadow.
struct State {
    /// Whether a daemon has the device open.
    is_open: bool,
    active: Option<KBox<Active>>,
    /// The number of virtqueues that have been shadowed so far.
    count: u64,
    /// Whether a call waits for [`Shadow::answered`].
    waiting: bool,
    /// The time that the driver may still wait for commands.
    budget: Budget,
}

impl State {
    /// Returns the shadowed virtqueue with the given `id`, or [`None`] if that virtqueue is no
    /// longer shadowed.
    fn active(&mut self, id: u64) -> Option<&mut Active> {
        self.active.as_deref_mut().filter(|active| active.id == id)
    }
}

/// The shadow of a network card's control virtqueue.
#[pin_data]
pub(crate) struct Shadow {
    /// The number of virtqueue pairs of the card if the driver accepts `VIRTIO_NET_F_MQ`.
    max_pairs: u16,
    /// The index of the virtqueue that is shadowed, or [`NONE`].
    index: Atomic<u32>,
    /// The map of the driver's memory, which contains the driver's virtqueue and its commands.
    memory: Arc<DirectMap>,
    #[pin]
    state: Mutex<State>,
    /// The completion on which a call of [`Shadow::serve`] waits for the daemon's answer. It is
    /// completed when that call must check whether the daemon has answered.
    #[pin]
    answered: Completion,
    /// The time at which the shadow was created. The times of the budget are counted from this
    /// time.
    start: Instant<Monotonic>,
}

impl Shadow {
    /// Returns an initialiser for the shadow of a card's control virtqueue. The card has up to
    /// `max_pairs` virtqueue pairs, and its driver waits no longer than `limit` for a command.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`] if memory is short.
    pub(super) fn new(max_pairs: u16, limit: Delta) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            max_pairs,
            index: Atomic::new(NONE),
            memory: Arc::pin_init(DirectMap::new(), GFP_KERNEL_ACCOUNT)?,
            state <- new_mutex!(State {
                is_open: false,
                active: None,
                count: 0,
                waiting: false,
                budget: Budget::new(limit.as_nanos(), 0),
            }),
            answered <- Completion::new(),
            start: Instant::now(),
        })
    }

    /// Returns the time since the shadow was created, in nanoseconds.
    fn now(&self) -> i64 {
        self.start.elapsed().as_nanos()
    }

    /// Returns the map of the driver's memory.
    pub(super) fn memory(&self) -> &Arc<DirectMap> {
        &self.memory
    }

    /// Returns the index of the virtqueue that is shadowed, or [`None`] if no virtqueue is
    /// shadowed.
    pub(super) fn index(&self) -> Option<u32> {
        Some(self.index.load(Relaxed)).filter(|&index| index != NONE)
    }

    /// Returns whether the virtqueue `index` is shadowed.
    #[inline]
    pub(super) fn is_at(&self, index: u32) -> bool {
        self.index.load(Relaxed) == index
    }

    /// Selects the virtqueue to shadow: the control virtqueue of a kernel driver that has accepted
    /// `features` (virtio 1.3, section 5.1.2). Without the feature of a control virtqueue, no
    /// virtqueue is shadowed.
    pub(super) fn select(&self, features: u64) {
        let index = if features & feature::NET_CTRL_VQ == 0 {
            NONE
        } else if features & feature::NET_MQ == 0 {
            2
        } else {
            2 * u32::from(self.max_pairs)
        };

        self.index.store(index, Relaxed);
    }

    /// Begins to shadow the driver's virtqueue, which has `num` descriptors and is at `address`.
    /// Creates the daemon's virtqueue in `domain`, with at most `max_size` descriptors, and returns
    /// that virtqueue's size and address.
    ///
    /// `features` are those that the driver has accepted. `mac` is the MAC address that the driver
    /// has read from the configuration space.
    ///
    /// # Errors
    ///
    /// - [`EINVAL`] if a virtqueue cannot have `num` descriptors, or if `max_size` is too small for
    ///   a command.
    /// - [`ENOMEM`] if memory is short, or if there is no room in the domain.
    pub(super) fn begin(
        &self,
        num: u32,
        address: VqAddress,
        max_size: u16,
        features: u64,
        mac: [u8; 6],
        domain: &Arc<Domain>,
    ) -> Result<(u32, VqAddress)> {
        let layout = Layout::new(num, address.desc, address.driver, address.device);
        // The size of a split virtqueue is a power of two.
        let size = 1 << max_size.min(MAX_SIZE).checked_ilog2().ok_or(EINVAL)?;
        let can_set_mac = feature::NET_MAC | feature::NET_CTRL_MAC_ADDR;
        let mac = (features & can_set_mac == can_set_mac).then_some(mac);
        let (daemon, address) = DaemonSide::new(size, domain.clone())?;
        let buffer = || KVVec::from_elem(0, net_ctrl::MAX_LEN, GFP_KERNEL_ACCOUNT);
        let mut active = KBox::new(
            Active {
                id: 0,
                ring: DeviceSide::new(layout.ok_or(EINVAL)?),
                daemon,
                in_flight: InFlight::None,
                serving: false,
                settings: Settings::new(buffer()?, mac),
                features,
                buf: buffer()?,
                len: 0,
            },
            GFP_KERNEL_ACCOUNT,
        )?;

        let old = {
            let mut state = self.state.lock();
            state.count = state.count.wrapping_add(1);
            active.id = state.count;
            state.active.replace(active)
        };
        drop(old);

        Ok((size, address))
    }

    /// Ceases to shadow the virtqueue, which the driver is about to free. A call that waits for the
    /// daemon's answer returns.
    pub(super) fn end(&self) {
        let old = {
            let mut state = self.state.lock();
            self.wake(&mut state);
            state.active.take()
        };

        drop(old);
        self.memory.forget_buffers();
    }

    /// Wakes the call that waits for the daemon's answer, if there is one.
    fn wake(&self, state: &mut State) {
        if core::mem::take(&mut state.waiting) {
            self.answered.complete();
        }
    }

    /// Records that a daemon has opened the device. Makes the driver's command available to that
    /// daemon if a call waits for the answer, and withdraws any other request. Must be called after
    /// the previous daemon is gone.
    pub(super) fn opened(&self) {
        let mut state = self.state.lock();
        state.is_open = true;

        let Some(active) = &mut state.active else {
            return;
        };
        match active.in_flight {
            // The new daemon gets the driver's command, even if the previous daemon has just
            // answered it: the new daemon must know the setting that the command makes, too.
            // `send_again` also rewrites the used index, because the previous daemon may have
            // corrupted that index, and the new daemon begins at it.
            InFlight::Command => {
                if let Some(command) = active.buf.get(..active.len) {
                    let _ = active.daemon.send_again(command);
                }
            }
            InFlight::None | InFlight::GivenUp | InFlight::Restoring => {
                active.daemon.withdraw();
                active.in_flight = InFlight::None;
            }
        }
        active.settings.forgotten();
    }

    /// Records that the daemon has closed the device, or died.
    pub(super) fn closed(&self) {
        self.state.lock().is_open = false;
    }

    /// Checks whether the daemon has answered the request in flight. Wakes the call that waits for
    /// the answer, if there is one. If the driver is ready (`is_ready`), also sends the next
    /// command that restores a stale setting.
    ///
    /// Called when the daemon interrupts the driver or sets the kick eventfd, and when the driver
    /// changes the device status.
    pub(super) fn advance(&self, vq: &Arc<Vq>, is_ready: bool) {
        let mut state = self.state.lock();

        if let Some(active) = &mut state.active {
            active.look();
            if is_ready {
                active.restore(vq);
            }
        }
        self.wake(&mut state);
    }

    /// Handles and answers all commands that the driver has made available. Does nothing if another
    /// call of this function is handling commands. `vq` is the virtqueue through which the daemon
    /// is kicked.
    ///
    /// May sleep for as long as the budget lasts.
    pub(super) fn serve(&self, vq: &Arc<Vq>) {
        let mut id = None;

        loop {
            let mut state = self.state.lock();
            let Some(active) = &mut state.active else {
                return;
            };
            // If another call is handling commands, that call takes this command, too.
            if *id.get_or_insert(active.id) != active.id || active.serving {
                return;
            }
            let Active { id, ring, buf, .. } = &mut **active;
            let id = *id;
            let Ok(Some(request)) = ring.take(&*self.memory, buf) else {
                active.look();
                active.restore(vq);
                return;
            };

            active.serving = true;
            drop(state);
            let answer = if self.command(vq, id, request.len) {
                net_ctrl::OK
            } else {
                net_ctrl::ERR
            };

            if let Some(active) = self.state.lock().active(id) {
                active.serving = false;
                let _ = active.answer(&self.memory, request, answer);
            }
        }
    }

    /// Sends the driver's command to the daemon, and waits for the answer. The command is in the
    /// first `len` bytes of the buffer of the shadowed virtqueue `id`. Returns true if the driver
    /// must get the answer [`net_ctrl::OK`], and false if it must get the answer [`net_ctrl::ERR`].
    ///
    /// May sleep for as long as the budget lasts.
    fn command(&self, vq: &Arc<Vq>, id: u64, len: usize) -> bool {
        let start = self.now();
        let mut is_killed = false;

        loop {
            let time = {
                let mut state = self.state.lock();
                let now = self.now();
                let left = match is_killed {
                    true => 0,
                    false => {
                        let waited = now.saturating_sub(start);

                        state.budget.left(start).saturating_sub(waited)
                    }
                };
                let limits = Limits {
                    is_open: state.is_open,
                    has_time: left > 0,
                    max_pairs: self.max_pairs,
                };
                let outcome = match state.active(id) {
                    Some(active) => active.command(vq, len, &limits),
                    None => ControlFlow::Break(false),
                };

                if let ControlFlow::Break(is_done) = outcome {
                    state.waiting = false;
                    state.budget.spend(start, now);
                    return is_done;
                }
                state.waiting = true;
                Delta::from_nanos(left)
            };

            let wait = self
                .answered
                .wait_killable_timeout(Delta::min(time, LOOK_INTERVAL));
            is_killed = wait == WaitResult::Killed;
        }
    }
}
