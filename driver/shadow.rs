// SPDX-License-Identifier: GPL-2.0

//! The shadow of a network card's control virtqueue, for the kernel's own driver.
//!
//! virtio_net waits for the answer to a command in a loop that nothing else ends, with the lock of
//! all network configuration (RTNL) held. So this driver stands in between: it is the device of
//! the virtqueue that virtio_net has made, in memory that no daemon reaches, and the driver of
//! another virtqueue, which the daemon finds in its place. A command is checked and copied over;
//! the daemon's answer is one bit; and virtio_net is always answered, in time.
//!
//! - A command waits no longer than a [budget](Budget), which also bounds what all commands of the
//!   device together wait. Without any left, commands fail at once.
//! - A command that was given up stays with the daemon, so that commands fail at once until the
//!   daemon has answered. If it dies before, the command is withdrawn.
//! - What virtio_net believes to be set and the daemon may not have, as it is a new one or has
//!   answered too late, is [set again](Settings), with nobody waiting.
//!
//! vhost drives the daemon's virtqueue itself, and has no shadow.
//!
//! # Context
//!
//! Process context. virtio_net sends a command with a mutex held, and so can sleep.
//!
//! # Lock order
//!
//! The locks of virtio_net, [`Dev::usage`](super::dev::Dev), then [`Shadow::state`], then a
//! virtqueue's lock, or the mappings of a domain or of the driver's memory.

use super::{
    budget::Budget,
    config::feature,
    domain::Domain,
    net_ctrl::{
        self,
        Command,
        Outcome,
        Settings, //
    },
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

/// Interval at which a command that waits looks for its answer by itself: virtio_net does not ask
/// to be interrupted, so there may be daemons that never interrupt for this virtqueue.
const LOOK_INTERVAL: Delta = Delta::from_millis(10);

/// The size of the driver's virtqueue, in descriptors, whatever that of the daemon's: a command has
/// up to five.
pub(super) const SIZE: u16 = 16;

/// Maximum size of the daemon's virtqueue, of which two descriptors are used.
const MAX_SIZE: u16 = 1024;

/// Value of [`Shadow::index`] if no virtqueue is shadowed.
const NONE: u32 = u32::MAX;

/// Which request the daemon has, if it has one.
#[derive(Clone, Copy, PartialEq, Eq)]
enum InFlight {
    /// None.
    None,
    /// A command of the driver's, which waits for the answer.
    Command,
    /// A command that nobody waits for any more, as there was no answer in time: the driver's has
    /// failed by then.
    GivenUp,
    /// A command that sets again what the daemon may not have.
    Restoring,
}

/// The virtqueue that the daemon sees, with the room for a request.
struct DaemonSide {
    ring: DriverSide,
    /// The virtqueue, then the answer, then the command.
    memory: Pages,
    /// The offset of the answer in `memory`, in bytes.
    answer: u64,
    /// The I/O virtual address of `memory`, which has `len` bytes.
    iova: u64,
    len: usize,
    domain: Arc<Domain>,
}

impl DaemonSide {
    /// Creates a virtqueue of `size` descriptors, and maps it into `domain`. Returns its address
    /// with it.
    fn new(size: u32, domain: Arc<Domain>) -> Result<(Self, VqAddress)> {
        let layout = Layout::contiguous(size).ok_or(EINVAL)?;
        let ring = DriverSide::new(layout).ok_or(EINVAL)?;
        let answer = layout.end();
        // At most some 35,000 bytes.
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

    /// Writes a command. Returns the parts of the request, one to read and one to write.
    fn write(&self, command: &[u8]) -> Result<(Buffer, Buffer), Malformed> {
        let readable = Buffer {
            address: self.iova.wrapping_add(self.command()),
            // At most `MAX_LEN`.
            len: command.len() as u32,
        };
        let writable = Buffer {
            address: self.iova.wrapping_add(self.answer),
            len: 1,
        };

        self.memory.write(self.command(), command)?;
        // What a daemon that does not write an answer has answered.
        self.memory.write(self.answer, &[net_ctrl::ERR])?;
        Ok((readable, writable))
    }

    /// Makes a command available to the daemon.
    fn send(&mut self, command: &[u8]) -> Result<(), Malformed> {
        let (readable, writable) = self.write(command)?;

        self.ring.send(&self.memory, readable, writable)
    }

    /// Makes the last command available to a new daemon.
    fn send_again(&self, command: &[u8]) -> Result<(), Malformed> {
        let (readable, writable) = self.write(command)?;

        self.ring.reoffer(&self.memory, readable, writable)
    }

    fn progress(&self) -> Progress {
        self.ring.progress(&self.memory)
    }

    /// Returns whether the daemon has carried out the last command, which it has answered.
    fn is_done(&self) -> bool {
        let mut answer = [net_ctrl::ERR];

        self.memory.read(self.answer, &mut answer).is_ok() && answer == [net_ctrl::OK]
    }

    /// Takes the last command back, so that no daemon carries it out from now on.
    fn withdraw(&self) {
        // A daemon that has its own idea of where it was finds a command that does not exist.
        let _ = self.memory.write(self.command(), &[0xff; 2]);
        let _ = self.ring.withdraw(&self.memory);
    }
}

impl Drop for DaemonSide {
    fn drop(&mut self) {
        self.domain.owner().unmap_coherent(self.iova, self.len);
    }
}

/// A virtqueue that is shadowed.
struct Active {
    /// Tells this one from others before and after it.
    id: u64,
    ring: DeviceSide,
    daemon: DaemonSide,
    in_flight: InFlight,
    /// Whether a call handles the driver's commands.
    serving: bool,
    settings: Settings<KVVec<u8>>,
    features: u64,
    /// The command that the driver or this driver has made last, of `len` bytes.
    buf: KVVec<u8>,
    len: usize,
}

impl Active {
    /// Takes notice of the daemon's answer to a request that nobody waits for.
    fn look(&mut self) {
        if self.in_flight == InFlight::Command || self.daemon.progress() != Progress::Completed {
            return;
        }

        self.in_flight = InFlight::None;
    }

    /// Sends the next command that sets again what the daemon may not have, if the daemon has no
    /// other request.
    fn restore(&mut self, vq: &Arc<Vq>) {
        if self.in_flight != InFlight::None || self.serving {
            return;
        }
        let Some((setting, len)) = self.settings.next_stale(&mut self.buf) else {
            return;
        };

        if self.send(len) {
            // Not once it is answered: the driver may send a newer value before that.
            self.settings.restored(setting);
            self.in_flight = InFlight::Restoring;
            vq.kick();
        }
    }

    /// Sends the command of `len` bytes in the buffer to the daemon. Returns whether there is one.
    fn send(&mut self, len: usize) -> bool {
        self.len = len;
        self.buf
            .get(..len)
            .is_some_and(|command| self.daemon.send(command).is_ok())
    }

    /// Returns the driver's command of `len` bytes in `buf`, if it is a valid one.
    fn parse(buf: &[u8], len: usize, features: u64, max_pairs: u16) -> Option<Command<'_>> {
        Command::parse(buf.get(..len)?, features, max_pairs)
    }

    /// Goes on with the driver's command of `len` bytes in the buffer, until it is decided whether
    /// the driver is told that this was done.
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
            // A daemon that is too slow with what nobody waits for is too slow for this as well.
            (_, Outcome::Unknown) => InFlight::GivenUp,
        };
        let command = Self::parse(&self.buf, len, self.features, limits.max_pairs);
        let is_done = command.is_some_and(|command| self.settings.record(command, outcome));

        ControlFlow::Break(is_done)
    }

    /// Answers the driver's command.
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

/// What decides whether a command is begun, and waited for.
struct Limits {
    /// Whether a daemon has the device open.
    is_open: bool,
    /// Whether there is time left to wait.
    has_time: bool,
    /// The number of pairs of virtqueues.
    max_pairs: u16,
}

/// Everything of a shadow that changes.
struct State {
    /// Whether a daemon has the device open.
    is_open: bool,
    active: Option<KBox<Active>>,
    /// The number of virtqueues that have been shadowed.
    count: u64,
    /// Whether a call waits for [`Shadow::answered`].
    waiting: bool,
    /// What the driver may still wait.
    budget: Budget,
}

impl State {
    /// Returns the virtqueue `id`, if it is still shadowed.
    fn active(&mut self, id: u64) -> Option<&mut Active> {
        self.active.as_deref_mut().filter(|active| active.id == id)
    }
}

/// The shadow of a network card's control virtqueue.
#[pin_data]
pub(crate) struct Shadow {
    /// The number of pairs of virtqueues, if the driver accepts `VIRTIO_NET_F_MQ`.
    max_pairs: u16,
    /// The index of the virtqueue that is shadowed, or [`NONE`].
    index: Atomic<u32>,
    /// The memory of the driver's virtqueue.
    memory: Arc<DirectMap>,
    #[pin]
    state: Mutex<State>,
    /// Completed when there may be an answer.
    #[pin]
    answered: Completion,
    /// The origin of the budget's time.
    start: Instant<Monotonic>,
}

impl Shadow {
    /// Returns an initialiser for the shadow of the control virtqueue of a card of `max_pairs`
    /// pairs, whose driver waits no longer than `limit` for a command.
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

    /// Returns the index of the virtqueue that is shadowed, if there is one.
    pub(super) fn index(&self) -> Option<u32> {
        Some(self.index.load(Relaxed)).filter(|&index| index != NONE)
    }

    /// Returns whether this is the virtqueue that is shadowed.
    #[inline]
    pub(super) fn is_at(&self, index: u32) -> bool {
        self.index.load(Relaxed) == index
    }

    /// Decides which virtqueue is shadowed for a driver of the kernel that has accepted `features`
    /// (virtio 1.3, section 5.1.2).
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

    /// Begins to shadow the virtqueue of `num` descriptors that the driver has put at `address`.
    /// Returns the size and the address of the virtqueue for the daemon, of at most `max_size`
    /// descriptors, which is in `domain`. The driver has accepted `features`, and believes that the
    /// card has `mac` for its address.
    ///
    /// # Errors
    ///
    /// - [`EINVAL`] if a virtqueue cannot have that size, or is too short for a command.
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
        // As for any driver, a power of two.
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

    /// Ceases to shadow the virtqueue: the driver is about to free it. A command that waits ends.
    pub(super) fn end(&self) {
        let old = {
            let mut state = self.state.lock();
            self.wake(&mut state);
            state.active.take()
        };

        drop(old);
        self.memory.forget_buffers();
    }

    /// Wakes the call that waits, if there is one.
    fn wake(&self, state: &mut State) {
        if core::mem::take(&mut state.waiting) {
            self.answered.complete();
        }
    }

    /// Records that a daemon has opened the device, after the previous one is gone.
    pub(super) fn opened(&self) {
        let mut state = self.state.lock();
        state.is_open = true;

        let Some(active) = &mut state.active else {
            return;
        };
        match active.in_flight {
            // The new daemon answers, in place of the previous one, even if that has just done so:
            // the new one has to know the setting. It begins at what is in the used ring, which the
            // previous one may have spoilt.
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

    /// Goes on with what the daemon is to be told: it has interrupted the driver, or can be kicked
    /// from now on. Nothing is sent unless the driver `is_ready`.
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

    /// Handles the driver's commands, each of which is answered when this returns. `vq` is the
    /// virtqueue by which the daemon is told.
    ///
    /// May sleep for as long as the budget lasts.
    pub(super) fn serve(&self, vq: &Arc<Vq>) {
        let mut id = None;

        loop {
            let mut state = self.state.lock();
            let Some(active) = &mut state.active else {
                return;
            };
            // If another call is in progress, it takes this command, too.
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

    /// Has the daemon carry out the command of `len` bytes in the buffer of the active virtqueue
    /// `id`, and waits for the answer. Returns whether the driver is to be told that this was done.
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
