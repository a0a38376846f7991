// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A network card (virtio 1.3, section 5.1), with or without a control queue.
//!
//! Each pair of virtqueues has a [`Port`], where frames come from and go to: a [`Tap`], or a
//! [`Loopback`]. What the driver says through the control queue changes the card's [`State`],
//! which another thread can look at; whoever wants to know what happened, and when, gets
//! [`Event`]s.
//!
//! There are no offloads: the card puts the header before a frame, and takes it off.

use std::fmt;
use std::io::{Read, Write};
use std::os::fd::BorrowedFd;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use virtio_bindings::virtio_config::{VIRTIO_F_ACCESS_PLATFORM, VIRTIO_F_VERSION_1};
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CTRL_MAC_ADDR, VIRTIO_NET_F_CTRL_RX, VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_MAC,
    VIRTIO_NET_F_MQ, VIRTIO_NET_F_STATUS, VIRTIO_NET_S_LINK_UP,
};
use vm_memory::GuestMemory;

use crate::server::{Backend, Chain, Memory};
use crate::DeviceConfig;

mod command;
mod filter;
mod port;

pub use command::Command;
pub use filter::Filter;
pub use port::{Loopback, Port, Tap};

/// The size of every virtqueue. QEMU takes no other for the data queues, and gives this one to the
/// control queue without asking.
pub const QUEUE_SIZE: u16 = 1024;

/// The virtqueue group of the control queue, if it is in one of its own.
pub const CONTROL_GROUP: u32 = 1;

/// The header before each frame (virtio 1.3, section 5.1.6), in bytes.
const HEADER: usize = 12;

/// A header that says nothing but that the frame is in one buffer.
const PLAIN: [u8; HEADER] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];

/// The longest frame, in bytes; longer ones are cut or dropped.
const FRAME: usize = 65_550;

/// The longest command, in bytes: a table of some 10,000 addresses.
const COMMAND: u64 = 64 << 10;

/// An Ethernet address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// Reads one as people write it.
    pub fn parse(text: &str) -> Option<Self> {
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            *byte = u8::from_str_radix(parts.next()?, 16).ok()?;
        }
        parts.next().is_none().then_some(Self(bytes))
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// What a card is to be.
#[derive(Clone, Debug)]
pub struct Shape {
    /// The device's name.
    pub name: String,
    /// The card's own address.
    pub mac: Mac,
    /// How many pairs of virtqueues there are, at least 1.
    pub pairs: u16,
    /// Whether there is a control queue.
    pub control: bool,
    /// Whether the control queue is in a group of its own, which can have an address space of its
    /// own. Such a device is of version 1.
    pub isolated: bool,
}

impl Shape {
    /// A card with one pair of virtqueues and a control queue.
    pub fn new(name: &str, mac: Mac) -> Self {
        Self {
            name: name.to_owned(),
            mac,
            pairs: 1,
            control: true,
            isolated: false,
        }
    }

    /// The features that the card offers.
    pub fn features(&self) -> u64 {
        let bits = |bits: &[u32]| bits.iter().fold(0, |sum, bit| sum | 1u64 << bit);
        let mut features = bits(&[
            VIRTIO_F_VERSION_1,
            VIRTIO_F_ACCESS_PLATFORM,
            VIRTIO_NET_F_MAC,
            VIRTIO_NET_F_STATUS,
        ]);
        if self.control {
            features |= bits(&[
                VIRTIO_NET_F_CTRL_VQ,
                VIRTIO_NET_F_CTRL_RX,
                VIRTIO_NET_F_CTRL_MAC_ADDR,
            ]);
            if self.pairs > 1 {
                features |= bits(&[VIRTIO_NET_F_MQ]);
            }
        }
        features
    }

    /// The size and the group of each virtqueue, for [`Server::with_groups`](crate::server::Server).
    pub fn queues(&self) -> Vec<(u16, u32)> {
        let mut queues = vec![(QUEUE_SIZE, 0); usize::from(self.pairs) * 2];
        if self.control {
            queues.push((QUEUE_SIZE, if self.isolated { CONTROL_GROUP } else { 0 }));
        }
        queues
    }

    /// How many groups there are, and as many address spaces.
    pub fn spaces(&self) -> u32 {
        1 + u32::from(self.isolated)
    }

    /// The configuration to create the device from. It is of version 1.
    pub fn device_config(&self) -> DeviceConfig {
        let mut config = DeviceConfig::new(&self.name, VIRTIO_ID_NET);
        config.features = self.features();
        // There are at most 2 * 65535 + 1 by the numbers, but of those no device can be made.
        config.queues = u16::try_from(self.queues().len()).unwrap_or(u16::MAX);
        config.groups = self.spaces();
        config.address_spaces = self.spaces();
        config.space = config_space(self.mac, self.pairs);
        config
    }
}

/// The configuration space of a card, all of `struct virtio_net_config`.
fn config_space(mac: Mac, pairs: u16) -> Vec<u8> {
    let mut space = vec![0; 24];
    space[0..6].copy_from_slice(&mac.0);
    space[6..8].copy_from_slice(&(VIRTIO_NET_S_LINK_UP as u16).to_le_bytes());
    space[8..10].copy_from_slice(&pairs.to_le_bytes());
    space
}

/// What the driver has made of a card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// The features that it accepted.
    pub features: u64,
    /// Which frames it wants.
    pub filter: Filter,
    /// How many pairs of virtqueues it uses.
    pub pairs: u16,
}

/// Something that happened to a card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The driver enabled virtqueues, having accepted these features.
    Started(u64),
    /// The driver has reset the card.
    Reset,
    /// A virtqueue group went to an address space.
    Moved {
        /// The group.
        group: u32,
        /// The address space.
        asid: u32,
    },
    /// The driver gave a command that was obeyed.
    Command(Command),
    /// The driver gave a command that makes no sense.
    Refused,
}

/// What a virtqueue is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// Frames from the port of this number to the driver.
    Receive(usize),
    /// Frames from the driver to the port of this number.
    Transmit(usize),
    /// Commands.
    Control,
    /// Nothing: the driver has not accepted the feature.
    None,
}

/// A pair of virtqueues.
#[derive(Debug)]
struct Pair<P> {
    port: P,
    /// A frame that came and that the driver has not been given, or nothing.
    pending: Vec<u8>,
}

/// A network card.
#[derive(Debug)]
pub struct Card<P> {
    mac: Mac,
    pairs: Vec<Pair<P>>,
    state: Arc<Mutex<State>>,
    events: Option<Sender<Event>>,
    buffer: Vec<u8>,
}

impl<P: Port> Card<P> {
    /// A card with a port for each of its pairs.
    pub fn new(shape: &Shape, ports: Vec<P>) -> Self {
        let pairs: Vec<_> = ports
            .into_iter()
            .map(|port| Pair {
                port,
                pending: Vec::new(),
            })
            .collect();
        let mut card = Self {
            mac: shape.mac,
            pairs,
            state: Arc::new(Mutex::new(State::initial(shape.mac))),
            events: None,
            buffer: vec![0; FRAME],
        };
        card.use_pairs(1);
        card
    }

    /// Has a thread be told what happens.
    pub fn observed(mut self, events: Sender<Event>) -> Self {
        self.events = Some(events);
        self
    }

    /// What the driver has made of the card, for another thread to look at.
    pub fn state(&self) -> Arc<Mutex<State>> {
        self.state.clone()
    }

    fn locked(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, event: Event) {
        if let Some(events) = &self.events {
            // Who wanted to know may be gone.
            let _ = events.send(event);
        }
    }

    /// What a virtqueue is for. Where the control queue is depends on what was accepted (virtio
    /// 1.3, section 5.1.2).
    fn role(&self, queue: u16) -> Role {
        let features = self.locked().features;
        let has = |bit: u32| features & 1 << bit != 0;
        let pairs = if has(VIRTIO_NET_F_MQ) {
            self.pairs.len()
        } else {
            1
        };
        let queue = usize::from(queue);
        match (queue / 2, queue % 2) {
            (pair, 0) if pair < pairs => Role::Receive(pair),
            (pair, _) if pair < pairs => Role::Transmit(pair),
            (pair, 0) if pair == pairs && has(VIRTIO_NET_F_CTRL_VQ) => Role::Control,
            _ => Role::None,
        }
    }

    /// Has the first so many ports get frames.
    fn use_pairs(&mut self, count: u16) {
        for (index, pair) in self.pairs.iter_mut().enumerate() {
            if let Err(error) = pair.port.enable(index < usize::from(count)) {
                eprintln!("port {index}: {error}");
            }
        }
        self.locked().pairs = count;
    }

    /// Waits for no frame, but takes one that is there. Returns whether there is one for the driver.
    fn receive(&mut self, pair: usize) -> bool {
        let Some(Pair { port, pending }) = self.pairs.get_mut(pair) else {
            return false;
        };
        while pending.is_empty() {
            match port.receive(&mut self.buffer) {
                Ok(Some(len)) => {
                    let frame = &self.buffer[..len.min(FRAME)];
                    let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
                    if state.filter.accepts(frame) {
                        pending.extend_from_slice(frame);
                    }
                }
                Ok(None) => return false,
                Err(error) => {
                    eprintln!("port {pair}: {error}");
                    return false;
                }
            }
        }
        true
    }

    /// Gives the driver the frame that it has not been given. Returns how much was written.
    fn deliver(&mut self, pair: usize, mut output: impl Write) -> u32 {
        let Some(pair) = self.pairs.get_mut(pair) else {
            return 0;
        };
        let frame = std::mem::take(&mut pair.pending);
        // A buffer that is too short loses the frame.
        match output
            .write_all(&PLAIN)
            .and_then(|()| output.write_all(&frame))
        {
            // A frame has less than 2^32 bytes.
            Ok(()) => (HEADER + frame.len()) as u32,
            Err(_) => 0,
        }
    }

    /// Sends a frame of the driver's.
    fn transmit(&mut self, pair: usize, input: impl Read) {
        let mut frame = Vec::new();
        let limit = (HEADER + FRAME) as u64;
        if input.take(limit).read_to_end(&mut frame).is_err() {
            return;
        }
        let (Some(frame), Some(pair)) = (frame.get(HEADER..), self.pairs.get_mut(pair)) else {
            return;
        };
        // A network may lose frames.
        let _ = pair.port.send(frame);
    }

    /// Obeys a command, or does not.
    fn command(&mut self, input: impl Read) -> bool {
        let mut bytes = Vec::new();
        let read = input.take(COMMAND + 1).read_to_end(&mut bytes);
        let command = match read {
            Ok(len) if len as u64 <= COMMAND => Command::parse(&bytes),
            _ => None,
        };
        let Some(command) = command.filter(|command| self.obey(command)) else {
            self.tell(Event::Refused);
            return false;
        };
        self.tell(Event::Command(command));
        true
    }

    fn obey(&mut self, command: &Command) -> bool {
        match command {
            Command::Pairs(count) => {
                let valid = (1..=self.pairs.len()).contains(&usize::from(*count))
                    && self.locked().features & 1 << VIRTIO_NET_F_MQ != 0;
                if valid {
                    self.use_pairs(*count);
                }
                valid
            }
            Command::Announced => true,
            command => self.locked().filter.change(command),
        }
    }

    /// Serves a request whose buffers are in any memory.
    fn serve_in<M, T>(
        &mut self,
        queue: u16,
        chain: virtio_queue::DescriptorChain<T>,
        memory: &M,
    ) -> u32
    where
        M: GuestMemory<Bitmap = ()>,
        T: std::ops::Deref<Target = M> + Clone,
    {
        let (Ok(input), Ok(mut output)) = (
            virtio_queue::Reader::<()>::new(memory, chain.clone()),
            virtio_queue::Writer::<()>::new(memory, chain),
        ) else {
            return 0;
        };
        match self.role(queue) {
            Role::Receive(pair) => self.deliver(pair, output),
            Role::Transmit(pair) => {
                self.transmit(pair, input);
                0
            }
            Role::Control => {
                let done = self.command(input);
                u32::from(output.write_all(&[u8::from(!done)]).is_ok())
            }
            Role::None => 0,
        }
    }
}

impl State {
    fn initial(mac: Mac) -> Self {
        Self {
            features: 0,
            filter: Filter::new(mac),
            pairs: 1,
        }
    }
}

impl<P: Port> Backend for Card<P> {
    fn serve(&mut self, queue: u16, chain: Chain, memory: &Memory) -> u32 {
        self.serve_in(queue, chain, &**memory)
    }

    fn ready(&mut self, queue: u16) -> bool {
        match self.role(queue) {
            Role::Receive(pair) => self.receive(pair),
            _ => true,
        }
    }

    fn source(&self, queue: u16) -> Option<BorrowedFd<'_>> {
        match self.role(queue) {
            Role::Receive(pair) => self.pairs.get(pair)?.port.readable(),
            _ => None,
        }
    }

    fn start(&mut self, features: u64) {
        self.locked().features = features;
        self.tell(Event::Started(features));
    }

    fn reset(&mut self) {
        *self.locked() = State::initial(self.mac);
        self.use_pairs(1);
        for pair in &mut self.pairs {
            pair.pending.clear();
        }
        self.tell(Event::Reset);
    }

    fn moved(&mut self, group: u32, asid: u32) {
        self.tell(Event::Moved { group, asid });
    }
}

#[cfg(test)]
mod tests;
