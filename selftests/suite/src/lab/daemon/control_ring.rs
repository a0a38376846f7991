// SPDX-License-Identifier: GPL-2.0

//! A network card's control queue, operated by hand as its device.

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

/// The answer that a command was carried out.
pub const OK: u8 = 0;
/// The answer that a command was refused.
pub const ERR: u8 = 1;

/// A control queue that is ready.
#[derive(Debug)]
pub struct ControlRing {
    device: Arc<Device>,
    index: u32,
    info: VqInfo,
    memory: Mapping,
    /// The I/O virtual address at which `memory` begins.
    first: u64,
    kick: EventFd,
    /// The number of commands taken.
    taken: u16,
}

/// A command, and where its answer goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taken {
    /// Class, command, data.
    pub bytes: Vec<u8>,
    head: u32,
    answer: u64,
}

impl ControlRing {
    /// Looks at virtqueue `index` of a device, if it is ready.
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

    /// Uses virtqueue `index` of a device, if it is ready, from the command on that follows `taken`
    /// others.
    pub fn attach(device: &Arc<Device>, index: u32, taken: u16) -> Option<Self> {
        let mut ring = Self::look(device, index)?;
        device.set_kick(index as u16, ring.kick.as_fd()).ok()?;
        ring.taken = taken;
        Some(ring)
    }

    /// Waits until virtqueue `index` of a device is ready, and uses it, unless `stop` is set before.
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

    /// Returns the ring's memory, with what belongs to it.
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

    /// Returns the number of commands that were made available.
    pub fn available(&self) -> u16 {
        let index = u16::from_le_bytes(self.read(self.info.driver_addr + 2));
        fence(Ordering::SeqCst);
        index
    }

    /// Returns the index of the used ring.
    pub fn used(&self) -> u16 {
        u16::from_le_bytes(self.read(self.info.device_addr + 2))
    }

    /// Takes the next command, if there is one.
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

    /// Writes an answer, and no more.
    pub fn write_answer(&self, taken: &Taken, answer: u8) {
        self.write(taken.answer, &[answer]);
    }

    /// Writes an answer and completes the command, without interrupting the driver.
    fn complete(&self, taken: &Taken, answer: u8) {
        self.write_answer(taken, answer);
        self.use_id(taken.head);
        self.set_used(self.taken);
    }

    /// Writes the id of the next used element.
    pub fn use_id(&self, id: u32) {
        let slot = u64::from(self.taken.wrapping_sub(1) % self.info.num as u16);
        let at = self.info.device_addr + 4 + 8 * slot;
        self.write(at, &id.to_le_bytes());
        // Some devices do not write the number of bytes here.
        self.write(at + 4, &77_u32.to_le_bytes());
    }

    /// Writes the index of the used ring.
    pub fn set_used(&self, index: u16) {
        fence(Ordering::SeqCst);
        self.write(self.info.device_addr + 2, &index.to_le_bytes());
    }

    /// Interrupts the driver.
    pub fn interrupt(&self) {
        // Fails if the driver is gone by now.
        let _ = self.device.inject_vq_irq(self.index);
    }

    /// Answers a command, and interrupts the driver.
    pub fn answer(&self, taken: &Taken, answer: u8) {
        self.complete(taken, answer);
        self.interrupt();
    }
}

/// A thread that does something with a control queue, from when it is ready until this is dropped.
#[derive(Debug)]
pub struct Controller {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Controller {
    /// Calls `turn` again and again with the queue, until it returns false.
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

    /// Answers commands as `answer` says; `None` leaves a command, and all that follow, without an
    /// answer.
    pub fn answering(
        device: &Arc<Device>,
        index: u32,
        answer: impl FnMut(&[u8]) -> Option<u8> + Send + 'static,
    ) -> Self {
        Self::from(device, index, 0, answer)
    }

    /// Does the same as [`answering`](Self::answering) from the command on that follows `taken`
    /// others.
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
            // A panic in the thread is that of the test.
            if thread.join().is_err() && !std::thread::panicking() {
                panic!("the thread of the control queue has failed");
            }
        }
    }
}
