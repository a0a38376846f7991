// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The network card's backend, which serves the receive, transmit and control queues.

#[cfg(test)]
mod tests;

use std::io::{self, Read, Write};
use std::os::fd::BorrowedFd;

use virtio_bindings::virtio_net::{
    VIRTIO_NET_ERR, VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_MQ, VIRTIO_NET_OK, VIRTIO_NET_S_ANNOUNCE,
    VIRTIO_NET_S_LINK_UP,
};

use crate::net::control::{Command, Mac, Settings};
use crate::net::event::{Event, Observer, What};
use crate::net::port::Port;
use crate::server::Backend;
use crate::virtqueue::Chain;
use crate::Device;

/// Length in bytes of `struct virtio_net_hdr`, which precedes each frame in a virtqueue.
const HEADER: usize = 12;

/// Offset of `num_buffers` in `struct virtio_net_hdr`. A received frame always uses one buffer.
const NUM_BUFFERS: usize = 10;

/// Maximum length of a frame in bytes, including the header.
const LONGEST: usize = HEADER + 65_550;

/// Maximum length of a command in bytes, enough for about 10,000 addresses.
const LONGEST_COMMAND: usize = 1 << 16;

/// Maximum number of frames that one call of `fetch` drops because the driver's filter rejects
/// them.
const PATIENCE: usize = 64;

/// Offset of the status in the configuration space.
const STATUS_OFFSET: u32 = 6;

/// Offset of the card's MAC address in the configuration space.
const MAC_OFFSET: u32 = 0;

/// Asks the driver to announce itself on the network. The driver must have accepted
/// [`shape::GUEST_ANNOUNCE`](crate::net::shape::GUEST_ANNOUNCE).
///
/// # Errors
///
/// Returns the error of the ioctl that failed: `EINVAL` when no driver is ready.
pub fn announce(device: &Device) -> io::Result<()> {
    let status = (VIRTIO_NET_S_LINK_UP | VIRTIO_NET_S_ANNOUNCE) as u16;
    device.set_config(STATUS_OFFSET, &status.to_le_bytes())?;
    device.inject_config_irq()
}

/// A queue pair and its port.
struct Pair<P> {
    port: P,
    /// The received frame, preceded by space for the header.
    buffer: Vec<u8>,
    /// Length of the frame in `buffer`, including the header. `None` when there is no frame.
    waiting: Option<usize>,
}

/// The role of a virtqueue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Receive(usize),
    Transmit(usize),
    Control,
    /// The virtqueue has no role: the driver has not started, or the driver has accepted features
    /// with which this virtqueue is not used.
    Unused,
}

/// A network card, as the [`Backend`] of a server.
pub struct Net<P> {
    mac: Mac,
    pairs: Vec<Pair<P>>,
    settings: Settings,
    /// The features that the driver has accepted, or `None` before the driver has started.
    features: Option<u64>,
    /// Pending changes to the configuration space.
    changed: Vec<(u32, Vec<u8>)>,
    /// Whether the ports must be enabled or disabled because the driver has changed the number of
    /// pairs.
    ports_differ: bool,
    scratch: Vec<u8>,
    observer: Option<Observer>,
}

impl<P: Port> Net<P> {
    /// Creates a card with this MAC address and one queue pair for each port.
    ///
    /// # Errors
    ///
    /// Returns the error of a port that cannot be enabled or disabled.
    pub fn new(mac: Mac, ports: Vec<P>) -> io::Result<Self> {
        let pair = |port| Pair {
            port,
            buffer: vec![0; LONGEST],
            waiting: None,
        };
        let mut card = Self {
            mac,
            pairs: ports.into_iter().map(pair).collect(),
            settings: Settings::new(mac),
            features: None,
            changed: Vec::new(),
            ports_differ: false,
            scratch: Vec::new(),
            observer: None,
        };
        card.enable(1)?;
        Ok(card)
    }

    /// Calls `observer` for each event on the card.
    pub fn observed_by(mut self, observer: impl FnMut(Event) + Send + 'static) -> Self {
        self.observer = Some(Box::new(observer));
        self
    }

    fn tell(&mut self, what: What) {
        if let Some(observer) = &mut self.observer {
            observer(Event {
                what,
                settings: self.settings.clone(),
            });
        }
    }

    /// Enables the first `count` pairs and disables all others.
    fn enable(&mut self, count: u16) -> io::Result<()> {
        for (index, pair) in (0..).zip(&mut self.pairs) {
            pair.port.enable(index < count)?;
        }
        Ok(())
    }

    /// Returns the role of a virtqueue (virtio 1.3, section 5.1.2). If the driver has accepted
    /// `VIRTIO_NET_F_MQ`, the control queue comes after all pairs. Otherwise, it comes after the
    /// first pair.
    fn role(&self, queue: u16) -> Role {
        let Some(features) = self.features else {
            return Role::Unused;
        };
        let has = |bit: u32| features & 1 << bit != 0;
        let pairs = if has(VIRTIO_NET_F_MQ) {
            self.pairs.len()
        } else {
            1
        };
        let queue = usize::from(queue);
        match queue / 2 {
            pair if pair < pairs && queue % 2 == 0 => Role::Receive(pair),
            pair if pair < pairs => Role::Transmit(pair),
            _ if queue == 2 * pairs && has(VIRTIO_NET_F_CTRL_VQ) => Role::Control,
            _ => Role::Unused,
        }
    }

    /// Returns whether the driver uses a pair.
    fn is_used(&self, pair: usize) -> bool {
        pair < self.settings.pairs.into()
    }

    /// Receives frames from a pair's port until the driver's filter accepts one. Returns whether
    /// the pair has such a frame.
    fn fetch(&mut self, index: usize) -> bool {
        if !self.is_used(index) {
            return false;
        }
        let pair = &mut self.pairs[index];
        for _ in 0..PATIENCE {
            if pair.waiting.is_some() {
                return true;
            }
            // If `receive` fails, the port has no frame now, but may have one later.
            let Ok(Some(len)) = pair.port.receive(&mut pair.buffer[HEADER..]) else {
                return false;
            };
            let end = HEADER + len;
            if self.settings.wants(&pair.buffer[HEADER..end]) {
                pair.waiting = Some(end);
            }
        }
        false
    }

    /// Sends the frame in a chain to the pair's port.
    fn transmit(&mut self, index: usize, input: &mut impl Read, len: usize) {
        if !(HEADER..=LONGEST).contains(&len) {
            return;
        }
        self.scratch.resize(len, 0);
        if input.read_exact(&mut self.scratch).is_ok() {
            // Ignore the error, because a network may lose frames.
            let _ = self.pairs[index].port.send(&self.scratch[HEADER..]);
        }
    }

    /// Copies the received frame into a chain. Returns the number of bytes written.
    fn receive(&mut self, index: usize, output: &mut impl Write, room: usize) -> u32 {
        let pair = &mut self.pairs[index];
        // Drop a frame that does not fit the chain.
        let Some(len) = pair.waiting.take().filter(|&len| len <= room) else {
            return 0;
        };
        pair.buffer[..HEADER].fill(0);
        pair.buffer[NUM_BUFFERS..HEADER].copy_from_slice(&1u16.to_le_bytes());
        match output.write_all(&pair.buffer[..len]) {
            Ok(()) => len as u32,
            Err(_) => 0,
        }
    }

    /// Executes the command in `bytes`. Returns the command's status.
    fn command(&mut self, bytes: &[u8]) -> u32 {
        let features = self.features.unwrap_or(0);
        let done = Command::parse(bytes, features).filter(|command| self.obey(command));
        match done {
            Some(command) => {
                self.tell(What::Done(command));
                VIRTIO_NET_OK
            }
            None => self.refuse(),
        }
    }

    fn obey(&mut self, command: &Command) -> bool {
        match *command {
            Command::Pairs(count) if !(1..=self.pairs.len()).contains(&count.into()) => {
                return false;
            }
            Command::Pairs(_) => self.ports_differ = true,
            Command::MacAddress(mac) => self.changed.push((MAC_OFFSET, mac.to_vec())),
            Command::AnnounceAck => {
                let status = (VIRTIO_NET_S_LINK_UP as u16).to_le_bytes();
                self.changed.push((STATUS_OFFSET, status.to_vec()));
            }
            _ => {}
        }
        self.settings.apply(command);
        true
    }

    fn refuse(&mut self) -> u32 {
        self.tell(What::Refused);
        VIRTIO_NET_ERR
    }
}

impl<P: Port> Backend for Net<P> {
    fn serve(&mut self, queue: u16, chain: &Chain) -> u32 {
        let (mut input, mut output) = (chain.reader(), chain.writer());
        let (len, room) = (input.available_bytes(), output.available_bytes());
        match self.role(queue) {
            Role::Transmit(pair) => {
                self.transmit(pair, &mut input, len);
                0
            }
            Role::Receive(pair) => self.receive(pair, &mut output, room),
            // A command without space for its status is not executed.
            Role::Control if room == 0 => {
                self.refuse();
                0
            }
            Role::Control => {
                // The driver must provide exactly one device-writable byte, for the command's
                // status.
                let mut bytes = vec![0; len.min(LONGEST_COMMAND + 1)];
                let fits = room == 1 && input.read_exact(&mut bytes).is_ok();
                let answer = if fits && bytes.len() <= LONGEST_COMMAND {
                    self.command(&bytes)
                } else {
                    self.refuse()
                };
                output.write(&[answer as u8]).map_or(0, |n| n as u32)
            }
            Role::Unused => 0,
        }
    }

    fn ready(&mut self, queue: u16) -> bool {
        match self.role(queue) {
            Role::Receive(pair) => self.fetch(pair),
            Role::Transmit(_) | Role::Control => true,
            Role::Unused => false,
        }
    }

    fn source(&self, queue: u16) -> Option<BorrowedFd<'_>> {
        match self.role(queue) {
            Role::Receive(pair) if self.is_used(pair) => self.pairs[pair].port.descriptor(),
            _ => None,
        }
    }

    fn config_changes(&mut self) -> Vec<(u32, Vec<u8>)> {
        std::mem::take(&mut self.changed)
    }

    fn answered(&mut self) {
        // Change the ports only after the card has answered the command. Enabling a queue of a TAP
        // interface takes RTNL, which virtio_net holds until the card answers.
        if std::mem::take(&mut self.ports_differ) {
            if let Err(error) = self.enable(self.settings.pairs) {
                eprintln!("the ports stay as they were: {error}");
            }
        }
    }

    fn start(&mut self, features: u64) {
        // The server calls this function again for each virtqueue that the driver enables later.
        if self.features.is_none() {
            self.features = Some(features);
            self.tell(What::Started(features));
        }
    }

    fn moved(&mut self, group: u32, asid: u32) {
        self.tell(What::Moved { group, asid });
    }

    fn drain(&mut self) {
        self.tell(What::Suspended);
    }

    fn reset(&mut self) {
        self.features = None;
        self.settings = Settings::new(self.mac);
        self.changed = vec![(MAC_OFFSET, self.mac.to_vec())];
        self.ports_differ = false;
        for pair in &mut self.pairs {
            pair.waiting = None;
        }
        if let Err(error) = self.enable(1) {
            eprintln!("the ports stay as they were: {error}");
        }
        self.tell(What::Reset);
    }
}
