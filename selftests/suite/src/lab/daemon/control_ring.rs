// SPDX-License-Identifier: GPL-2.0

//! A network card's control queue, which the test operates in the role of the device.

use std::os::fd::AsFd;
use std::sync::atomic::{fence, AtomicBool, Ordering};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use vduse::eventfd::EventFd;
use vduse::{Device, Mapping};
use vduse_uapi::VqInfo;
use vm_memory::Bytes;

use crate::lab::device::virtio::descriptor::{INDIRECT, NEXT, WRITE};

/// The answer to a command that the device has carried out.
pub const OK: u8 = 0;
/// The answer to a command that the device has refused.
pub const ERR: u8 = 1;

/// A control queue that the driver has made ready.
#[derive(Debug)]
pub struct ControlRing {
    device: Arc<Device>,
    index: u32,
    info: VqInfo,
    memory: Mapping,
    /// The IOVA at which `memory` begins.
    first: u64,
    kick: EventFd,
    /// Number of commands that this value has taken from the available ring, modulo 2^16.
    taken: u16,
}

/// A command that was taken from the available ring, and the address for its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taken {
    /// The command's class, its code and its data.
    pub bytes: Vec<u8>,
    head: u32,
    answer: u64,
}

impl ControlRing {
    /// Returns virtqueue `index` of a device if the virtqueue is ready. Sets no kick eventfd.
    pub fn look(device: &Arc<Device>, index: u32) -> Option<Self> {
        let info = device.vq_info(index).ok().filter(|info| info.ready == 1)?;
        let region = device.iotlb_fd(info.desc_addr, info.desc_addr).ok()?;
        let len = region.last - region.first + 1;
        let memory = Mapping::of_file(region.file.as_fd(), region.offset, len, region.access);
        Some(Self {
            device: device.clone(),
            index,
            info,
            memory: memory.ok()?,
            first: region.first,
            kick: EventFd::new().ok()?,
            taken: 0,
        })
    }

    /// Returns virtqueue `index` of a device if the virtqueue is ready, and sets a kick eventfd.
    /// Skips the first `taken` commands, which were taken earlier.
    pub fn attach(device: &Arc<Device>, index: u32, taken: u16) -> Option<Self> {
        let mut ring = Self::look(device, index)?;
        device.set_kick(index as u16, ring.kick.as_fd()).ok()?;
        ring.taken = taken;
        Some(ring)
    }

    /// Waits until virtqueue `index` of a device is ready, then does what [`attach`](Self::attach)
    /// does. Returns `None` once `stop` is set.
    fn attach_soon(
        device: &Arc<Device>,
        index: u32,
        taken: u16,
        stop: &AtomicBool,
    ) -> Option<Self> {
        while !stop.load(Ordering::Relaxed) {
            if let Some(ring) = Self::attach(device, index, taken) {
                return Some(ring);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        None
    }

    /// Returns the mapped region that contains the descriptor table and the rings.
    pub fn memory(&self) -> &Mapping {
        &self.memory
    }

    fn read<const N: usize>(&self, address: u64) -> [u8; N] {
        let mut bytes = [0; N];
        let at = (address - self.first) as usize;
        let read = self.memory.bytes().read_slice(&mut bytes, at);
        read.expect("inside the region");
        bytes
    }

    fn write(&self, address: u64, bytes: &[u8]) {
        let at = (address - self.first) as usize;
        let written = self.memory.bytes().write_slice(bytes, at);
        written.expect("inside the region");
    }

    /// Returns the index of the available ring, which is the number of commands so far, modulo
    /// 2^16.
    pub fn available(&self) -> u16 {
        let index = u16::from_le_bytes(self.read(self.info.driver_addr + 2));
        fence(Ordering::SeqCst);
        index
    }

    /// Returns the index of the used ring, modulo 2^16.
    pub fn used(&self) -> u16 {
        u16::from_le_bytes(self.read(self.info.device_addr + 2))
    }

    /// Takes the next command from the available ring. Returns `None` if there is no new command.
    pub fn take(&mut self) -> Option<Taken> {
        if self.available() == self.taken {
            return None;
        }
        let slot = u64::from(self.taken % self.info.num as u16);
        let head = u16::from_le_bytes(self.read(self.info.driver_addr + 4 + 2 * slot));
        self.taken = self.taken.wrapping_add(1);
        let mut taken = Taken {
            bytes: Vec::new(),
            head: head.into(),
            answer: 0,
        };
        let mut index = head;
        loop {
            let at = self.info.desc_addr + 16 * u64::from(index);
            let address = u64::from_le_bytes(self.read(at));
            let len = u32::from_le_bytes(self.read(at + 8));
            let flags = u16::from_le_bytes(self.read(at + 12));
            assert_eq!(flags & INDIRECT, 0, "an indirect descriptor");
            if flags & WRITE != 0 {
                assert_eq!(len, 1, "the length of the answer");
                taken.answer = address;
            } else {
                assert_eq!(taken.answer, 0, "a command after its answer");
                let bytes = (0..u64::from(len)).map(|i| self.read::<1>(address + i)[0]);
                taken.bytes.extend(bytes);
            }
            if flags & NEXT == 0 {
                return Some(taken);
            }
            index = u16::from_le_bytes(self.read(at + 14));
        }
    }

    /// Writes an answer without completing the command.
    pub fn write_answer(&self, taken: &Taken, answer: u8) {
        self.write(taken.answer, &[answer]);
    }

    /// Writes an answer and completes the command, but does not interrupt the driver.
    fn complete(&self, taken: &Taken, answer: u8) {
        self.write_answer(taken, answer);
        self.use_id(taken.head);
        self.set_used(self.taken);
    }

    /// Writes `id` to the next element of the used ring, without making the element visible to the
    /// driver.
    pub fn use_id(&self, id: u32) {
        let slot = u64::from(self.taken.wrapping_sub(1) % self.info.num as u16);
        let at = self.info.device_addr + 4 + 8 * slot;
        self.write(at, &id.to_le_bytes());
        // Like some real devices, reports a wrong number of written bytes.
        self.write(at + 4, &77_u32.to_le_bytes());
    }

    /// Writes the index of the used ring, which makes elements visible to the driver.
    pub fn set_used(&self, index: u16) {
        fence(Ordering::SeqCst);
        self.write(self.info.device_addr + 2, &index.to_le_bytes());
    }

    /// Interrupts the driver.
    pub fn interrupt(&self) {
        // This fails if the driver has been removed in the meantime.
        let _ = self.device.inject_vq_irq(self.index);
    }

    /// Answers a command and interrupts the driver.
    pub fn answer(&self, taken: &Taken, answer: u8) {
        self.complete(taken, answer);
        self.interrupt();
    }
}

/// A thread that operates a control queue as soon as the virtqueue is ready. Dropping this value
/// ends the thread.
#[derive(Debug)]
pub struct Controller {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Controller {
    /// Starts a thread that calls `turn` with the control queue repeatedly, until `turn` returns
    /// false.
    pub fn new(
        device: &Arc<Device>,
        index: u32,
        turn: impl FnMut(&mut ControlRing) -> bool + Send + 'static,
    ) -> Self {
        Self::run(device, index, 0, turn)
    }

    fn run(
        device: &Arc<Device>,
        index: u32,
        taken: u16,
        mut turn: impl FnMut(&mut ControlRing) -> bool + Send + 'static,
    ) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (ours, device) = (stop.clone(), device.clone());
        let thread = std::thread::spawn(move || {
            let Some(mut ring) = ControlRing::attach_soon(&device, index, taken, &ours) else {
                return;
            };
            while !ours.load(Ordering::Relaxed) && turn(&mut ring) {
                std::thread::sleep(Duration::from_micros(200));
            }
        });
        Self {
            stop,
            thread: Some(thread),
        }
    }

    /// Starts a thread that answers each command with the result of `answer`. Once `answer` returns
    /// `None`, the thread answers neither that command nor any later one.
    pub fn answering(
        device: &Arc<Device>,
        index: u32,
        answer: impl FnMut(&[u8]) -> Option<u8> + Send + 'static,
    ) -> Self {
        Self::from(device, index, 0, answer)
    }

    /// Variant of [`answering`](Self::answering) that skips the first `taken` commands.
    pub fn from(
        device: &Arc<Device>,
        index: u32,
        taken: u16,
        mut answer: impl FnMut(&[u8]) -> Option<u8> + Send + 'static,
    ) -> Self {
        Self::run(device, index, taken, move |ring| {
            let Some(taken) = ring.take() else {
                return true;
            };
            let answer = answer(&taken.bytes);
            if let Some(answer) = answer {
                ring.answer(&taken, answer);
            }
            answer.is_some()
        })
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic in the thread must fail the test.
            if thread.join().is_err() && !std::thread::panicking() {
                panic!("the thread of the control queue has failed");
            }
        }
    }
}
