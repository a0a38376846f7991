// SPDX-License-Identifier: GPL-2.0

//! A network card that virtio_net drives, and whose control queue the test operates in the role of
//! the device.

use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use vduse::{Device, DeviceConfig};

use crate::lab::assert::timing::soon;
use crate::lab::daemon::control_ring::{ControlRing, Controller, Taken, OK};
use crate::lab::daemon::responder::Responder;
use crate::lab::device::bus::{self, Driver, OnBus};
use crate::lab::device::test_device::{net_config, TestDevice};
use crate::lab::device::virtio::{feature, link};
use crate::lab::kernel::modules::tool;
use crate::lab::kernel::sysfs;

/// The features of a [`HandCard`].
const CONTROL: u64 = feature::NET_STATUS
    | feature::NET_CTRL_VQ
    | feature::NET_CTRL_RX
    | feature::NET_CTRL_VLAN
    | feature::NET_MQ
    | feature::NET_CTRL_MAC_ADDR;

/// Number of queue pairs of a [`HandCard`].
const PAIRS: u16 = 2;
/// Index of the control queue of a [`HandCard`].
pub const INDEX: u32 = 2 * PAIRS as u32;

/// Returns the configuration of a [`HandCard`].
pub fn hand_config() -> DeviceConfig {
    let mut config = net_config();
    config.features |= CONTROL;
    config.queues = 2 * PAIRS + 1;
    config.space[6..8].copy_from_slice(&link::UP.to_le_bytes());
    config.space[8..10].copy_from_slice(&PAIRS.to_le_bytes());
    config
}

/// A card whose control queue the test operates in the role of the device. The fields are dropped
/// in declaration order.
pub struct HandCard {
    /// The device on the bus.
    pub on_bus: OnBus,
    /// The thread that operates the control queue, or `None` if no thread operates it.
    pub controller: Option<Controller>,
    responder: Option<Responder>,
    file: Option<Arc<Device>>,
    /// The created device.
    pub device: TestDevice,
}

impl HandCard {
    /// Creates a card, calls `controller` to start the thread of the control queue, and binds the
    /// card to virtio_net.
    #[track_caller]
    pub fn new(
        config: &DeviceConfig,
        controller: impl FnOnce(&Arc<Device>) -> Option<Controller>,
    ) -> Self {
        tool("modprobe", &["virtio_net"]).expect("loading virtio_net");
        let device = TestDevice::new(config);
        let file = Arc::new(device.open_ready(config.queues));
        let responder = Responder::ok(&file);
        let controller = controller(&file);
        let on_bus = OnBus::add(device.name()).expect("adding");
        on_bus.bind(Driver::Virtio).expect("binding");
        Self {
            on_bus,
            controller,
            responder: Some(responder),
            file: Some(file),
            device,
        }
    }

    /// Creates a card and a thread that answers each command with the result of `answer`. Once
    /// `answer` returns `None`, the thread answers neither that command nor any later one.
    #[track_caller]
    pub fn answering(answer: impl FnMut(&[u8]) -> Option<u8> + Send + 'static) -> Self {
        Self::new(&hand_config(), |file| {
            Some(Controller::answering(file, INDEX, answer))
        })
    }

    /// Creates a card, brings its interface up, and waits until virtio_net sends no more commands.
    /// Then stops the thread of the control queue. Returns the card and the control queue.
    #[track_caller]
    pub fn taken() -> (Self, ControlRing) {
        let mut card = Self::answering(|_| Some(OK));
        card.ip("up");
        soon("no command is left for a while", || {
            let before = card.counters();
            std::thread::sleep(Duration::from_millis(100));
            before.0 == before.1 && card.counters() == before
        });
        card.controller = None;
        let ring = card.attach();
        (card, ring)
    }

    /// Returns the daemon's open device.
    pub fn file(&self) -> &Arc<Device> {
        self.file.as_ref().expect("a daemon")
    }

    /// Returns the name of the card's network interface.
    #[track_caller]
    pub fn interface(&self) -> String {
        bus::interface(self.device.name()).expect("an interface")
    }

    /// Returns the number of commands that the driver has made available in the control queue, and
    /// the number of commands that the device has completed. Both numbers are modulo 2^16.
    #[track_caller]
    pub fn counters(&self) -> (u16, u16) {
        let ring = ControlRing::look(self.file(), INDEX).expect("a control queue");
        (ring.available(), ring.used())
    }

    /// Returns the control queue, positioned after the commands that the device has already
    /// completed.
    #[track_caller]
    pub fn attach(&self) -> ControlRing {
        let (_, used) = self.counters();
        ControlRing::attach(self.file(), INDEX, used).expect("a control queue")
    }

    /// Ends the daemon and starts a new daemon that ignores the control queue.
    #[track_caller]
    pub fn replace(&mut self) {
        self.end_daemon();
        self.begin_daemon();
    }

    /// Starts a daemon that ignores the control queue.
    #[track_caller]
    pub fn begin_daemon(&mut self) {
        let file = Arc::new(self.device.open_nonblocking());
        self.responder = Some(Responder::ok(&file));
        self.file = Some(file);
    }

    /// Ends the daemon and the thread of the control queue.
    pub fn end_daemon(&mut self) {
        self.controller = None;
        self.responder = None;
        self.file = None;
    }

    /// Runs `ip link set` on the card's interface. Returns whether the program succeeded.
    pub fn ip(&self, words: &str) -> bool {
        let interface = self.interface();
        let arguments: Vec<_> = ["link", "set", "dev", &interface]
            .into_iter()
            .chain(words.split(' '))
            .collect();
        tool("ip", &arguments).is_ok()
    }

    /// Starts an `ip` process that changes the card's MAC address. virtio_net then sends a single
    /// command, the one that [`address`] returns for `last`. If that command fails, `ip` fails as
    /// well.
    #[track_caller]
    pub fn set_address(&self, last: u8) -> Child {
        // This address differs from the card's initial address.
        let address = format!("02:00:00:00:77:{last:02x}");
        Command::new("ip")
            .args(["link", "set", "dev", &self.interface(), "address", &address])
            .stderr(Stdio::null())
            .spawn()
            .expect("starting ip")
    }
}

/// Returns the control-queue command that sets the card's MAC address to `02:00:00:00:77:XX`, where
/// `XX` is `last`.
pub fn address(last: u8) -> Vec<u8> {
    vec![1, 1, 2, 0, 0, 0, 0x77, last]
}

/// Waits for the command `wanted` and returns it unanswered. Answers all other commands with
/// success, because virtio_net may send further commands at any time.
#[track_caller]
pub fn next(ring: &mut ControlRing, wanted: &[u8]) -> Taken {
    let mut found = None;
    soon("a command", || {
        while let Some(taken) = ring.take() {
            if taken.bytes == wanted {
                found = Some(taken);
                return true;
            }
            ring.answer(&taken, OK);
        }
        false
    });
    found.expect("a command")
}

/// Waits until a program has ended. Returns whether the program succeeded.
#[track_caller]
pub fn ended(mut child: Child) -> bool {
    let mut status = None;
    soon("a program ends", || {
        status = child.try_wait().expect("waiting");
        status.is_some()
    });
    status.expect("a status").success()
}

/// Returns the features that the virtio driver of a device has accepted.
#[track_caller]
pub fn accepted(name: &str) -> u64 {
    let directory = bus::virtio_directory(name).expect("a virtio device");
    let bits = sysfs::read(&directory.join("features")).expect("the features");
    let bits = (0..64).zip(bits.chars()).filter(|&(_, bit)| bit == '1');
    bits.fold(0, |features, (bit, _)| features | 1 << bit)
}
