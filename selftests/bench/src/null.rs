// SPDX-License-Identifier: GPL-2.0

//! A disk that does nothing: requests succeed without their data being looked at, so that what is
//! measured is the way there and back. Each virtqueue has a thread.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

use rustix::event::{eventfd, EventfdFlags};
use vduse::iotlb::{AddressSpace, SpaceOf};
use vduse::request::{Answer, Kind, Request};
use vduse::{blk, Control, Device, DeviceConfig};
use vduse_selftests::lab::bus::{Driver, OnBus};
use vduse_selftests::lab::device::{unique_name, TestDevice};
use vduse_selftests::lab::responder::Responder;
use vduse_selftests::lab::sysfs;
use virtio_bindings::virtio_config::VIRTIO_CONFIG_S_DRIVER_OK;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};

use crate::clock;

/// How long a virtqueue is, in descriptors.
pub const QUEUE_SIZE: u16 = 256;

/// The capacity of a disk, in bytes.
pub const CAPACITY: u64 = 1 << 30;

/// What a disk is to be.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// How many virtqueues it has.
    pub queues: u16,
    /// How many groups it has; virtqueues are in group 0.
    pub groups: u32,
    /// How many address spaces it has.
    pub spaces: u32,
    /// The size of the bounce area in bytes, of all address spaces together; 0 is the default.
    pub bounce: u64,
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            queues: 1,
            groups: 1,
            spaces: 1,
            bounce: 0,
        }
    }
}

impl Shape {
    /// Creates a device of version 1 like this.
    pub fn create(&self) -> TestDevice {
        let mut config: DeviceConfig = blk::device_config(&unique_name(), CAPACITY, self.queues);
        config.groups = self.groups;
        config.address_spaces = self.spaces;
        let control = Control::open_v1().expect("the control device");
        control.create(&config).expect("creating a device");
        let device = TestDevice::adopt(&config.name);
        if self.bounce != 0 {
            let path = sysfs::attribute(device.name(), "bounce_size");
            sysfs::write(&path, &self.bounce.to_string()).expect("setting bounce_size");
        }
        device
    }
}

/// A null disk that virtio_blk has. The fields are dropped in this order.
#[derive(Debug)]
pub struct NullDisk {
    /// On the bus.
    _on_bus: OnBus,
    /// Answers requests, and starts the virtqueues' threads.
    _responder: Responder,
    shared: Arc<Shared>,
    /// Created.
    device: TestDevice,
}

/// What a disk's threads share.
#[derive(Debug)]
struct Shared {
    device: Arc<Device>,
    queues: u16,
    threads: Mutex<Vec<QueueThread>>,
    stamps: Stamps,
    gate: Gate,
}

/// When the last request came and went. Taken only when asked for.
#[derive(Debug, Default)]
pub struct Stamps {
    wanted: AtomicBool,
    woken: AtomicU64,
    injecting: AtomicU64,
}

impl Stamps {
    /// Takes them from now on.
    pub fn want(&self) {
        self.wanted.store(true, Ordering::Relaxed);
    }

    /// When a virtqueue's thread was woken by a kick, in ns.
    pub fn woken(&self) -> u64 {
        self.woken.load(Ordering::Acquire)
    }

    /// When it was about to interrupt the driver, in ns.
    pub fn injecting(&self) -> u64 {
        self.injecting.load(Ordering::Acquire)
    }

    fn take(&self, which: &AtomicU64) {
        if self.wanted.load(Ordering::Relaxed) {
            which.store(clock::now(), Ordering::Release);
        }
    }
}

/// A gate before which the virtqueues' threads wait, when it is closed.
#[derive(Debug, Default)]
pub struct Gate {
    closed: Mutex<bool>,
    changed: Condvar,
}

impl Gate {
    /// Closes it, until what is returned is dropped.
    pub fn close(&self) -> Closed<'_> {
        self.set_closed(true);
        Closed(self)
    }

    fn set_closed(&self, closed: bool) {
        *self.closed.lock().unwrap_or_else(PoisonError::into_inner) = closed;
        self.changed.notify_all();
    }

    fn pass(&self) {
        let closed = self.closed.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.changed.wait_while(closed, |closed| *closed));
    }
}

/// A gate that is closed.
#[derive(Debug)]
pub struct Closed<'a>(&'a Gate);

impl Drop for Closed<'_> {
    fn drop(&mut self) {
        self.0.set_closed(false);
    }
}

/// A virtqueue's thread.
#[derive(Debug)]
struct QueueThread {
    stop: Arc<AtomicBool>,
    kick: Arc<OwnedFd>,
    thread: JoinHandle<()>,
}

impl Shared {
    fn answer(self: &Arc<Self>, request: &Request) -> Answer {
        match request.kind {
            Kind::GetVqState { index } => Answer::SplitState {
                index,
                next_avail: 0,
            },
            Kind::SetStatus(0) => {
                self.stop();
                Answer::Ok
            }
            Kind::SetStatus(status) if u32::from(status) & VIRTIO_CONFIG_S_DRIVER_OK != 0 => {
                self.start().map_or(Answer::Failed, |()| Answer::Ok)
            }
            _ => Answer::Ok,
        }
    }

    fn threads(&self) -> std::sync::MutexGuard<'_, Vec<QueueThread>> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a thread for each virtqueue that the driver has enabled.
    fn start(self: &Arc<Self>) -> io::Result<()> {
        let memory = Arc::new(AddressSpace::new(Arc::new(SpaceOf {
            device: self.device.clone(),
            asid: 0,
        })));
        let event_idx = self.device.features()? & (1 << VIRTIO_RING_F_EVENT_IDX) != 0;
        for index in 0..self.queues {
            let info = self.device.vq_info(index.into())?;
            if info.ready == 0 {
                continue;
            }
            let mut queue = Queue::new(QUEUE_SIZE).map_err(io::Error::other)?;
            queue.set_size(info.num as u16);
            for (set, address) in [
                (
                    Queue::try_set_desc_table_address as fn(&mut Queue, _) -> _,
                    info.desc_addr,
                ),
                (Queue::try_set_avail_ring_address, info.driver_addr),
                (Queue::try_set_used_ring_address, info.device_addr),
            ] {
                set(&mut queue, GuestAddress(address)).map_err(io::Error::other)?;
            }
            queue.set_event_idx(event_idx);
            queue.set_ready(true);

            let kick = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
            self.device.set_kick(index, kick.as_fd())?;
            let stop = Arc::new(AtomicBool::new(false));
            let served = Served {
                shared: self.clone(),
                memory: memory.clone(),
                index: index.into(),
                queue,
                kick: kick.clone(),
                stop: stop.clone(),
            };
            self.threads().push(QueueThread {
                stop,
                kick,
                thread: std::thread::spawn(move || served.run()),
            });
        }
        Ok(())
    }

    /// Ends the threads.
    fn stop(&self) {
        for queue in std::mem::take(&mut *self.threads()) {
            queue.stop.store(true, Ordering::Release);
            rustix::io::write(&queue.kick, &1u64.to_ne_bytes()).expect("waking a thread");
            queue.thread.join().expect("a virtqueue's thread");
        }
    }
}

/// A virtqueue, as its thread has it.
struct Served {
    shared: Arc<Shared>,
    memory: Arc<AddressSpace>,
    index: u32,
    queue: Queue,
    kick: Arc<OwnedFd>,
    stop: Arc<AtomicBool>,
}

impl Served {
    fn run(mut self) {
        loop {
            rustix::io::read(&self.kick, &mut [0; 8]).expect("waiting for a kick");
            self.shared.stamps.take(&self.shared.stamps.woken);
            if self.stop.load(Ordering::Acquire) {
                return;
            }
            self.shared.gate.pass();
            self.process().expect("serving a virtqueue");
        }
    }

    /// Where a request's status is, of which 0 is a good one: the last byte of the last descriptor.
    /// With an indirect table, that does not depend on how many descriptors there are.
    fn status(&self, head: u16) -> Result<GuestAddress, virtio_queue::Error> {
        let read = |address| {
            self.memory
                .read_obj::<Descriptor>(GuestAddress(address))
                .map_err(virtio_queue::Error::GuestMemoryError)
        };
        let size = size_of::<Descriptor>() as u64;
        let mut last = read(self.queue.desc_table() + u64::from(head) * size)?;
        if last.refers_to_indirect_table() {
            last = read(last.addr().0 + u64::from(last.len()) - size)?;
        }
        while last.has_next() {
            last = read(self.queue.desc_table() + u64::from(last.next()) * size)?;
        }
        Ok(GuestAddress(last.addr().0 + u64::from(last.len()) - 1))
    }

    fn process(&mut self) -> Result<(), virtio_queue::Error> {
        let memory = &*self.memory;
        loop {
            self.queue.disable_notification(memory)?;
            let mut any = false;
            while let Some(chain) = self.queue.iter(self.memory.clone())?.next() {
                let head = chain.head_index();
                memory
                    .write_obj(0u8, self.status(head)?)
                    .map_err(virtio_queue::Error::GuestMemoryError)?;
                self.queue.add_used(memory, head, 1)?;
                any = true;
            }
            let more = self.queue.enable_notification(memory)?;
            if any && self.queue.needs_notification(memory)? {
                self.shared.stamps.take(&self.shared.stamps.injecting);
                // Refused while the driver resets the device, when nobody waits for it.
                let _ = self.shared.device.inject_vq_irq(self.index);
            }
            if !more {
                return Ok(());
            }
        }
    }
}

impl NullDisk {
    /// Creates a disk, serves it, and binds it to virtio_blk.
    pub fn new(shape: Shape) -> Self {
        let device = shape.create();
        let file = Arc::new(device.open_nonblocking());
        for index in 0..shape.queues {
            file.vq_setup(index, QUEUE_SIZE).expect("a virtqueue");
        }
        let shared = Arc::new(Shared {
            device: file.clone(),
            queues: shape.queues,
            threads: Mutex::default(),
            stamps: Stamps::default(),
            gate: Gate::default(),
        });
        let ours = shared.clone();
        let responder = Responder::new(&file, move |request| Some(ours.answer(request)));
        let on_bus = OnBus::add(device.name()).expect("adding a disk");
        on_bus.bind(Driver::Virtio).expect("binding a disk");
        Self {
            _on_bus: on_bus,
            _responder: responder,
            shared,
            device,
        }
    }

    /// The device's name.
    pub fn name(&self) -> &str {
        self.device.name()
    }

    /// When requests came and went.
    pub fn stamps(&self) -> &Stamps {
        &self.shared.stamps
    }

    /// The gate that requests go through.
    pub fn gate(&self) -> &Gate {
        &self.shared.gate
    }

    /// The daemon's side of the device.
    pub fn device(&self) -> &Device {
        &self.shared.device
    }
}
