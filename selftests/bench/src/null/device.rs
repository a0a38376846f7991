// SPDX-License-Identifier: GPL-2.0

//! A null device. Each of its virtqueues has its own thread.

use std::fmt::Debug;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use rustix::event::{eventfd, EventfdFlags};
use vduse::iotlb::{AddressSpace, SpaceOf};
use vduse::request::{Answer, Kind, Request};
use vduse::server::Chain;
use vduse::Device;
use vduse_selftests::lab::daemon::responder::Responder;
use vduse_selftests::lab::device::bus::{Driver, OnBus};
use vduse_selftests::lab::device::test_device::TestDevice;
use virtio_bindings::virtio_config::VIRTIO_CONFIG_S_DRIVER_OK;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::GuestAddress;

use crate::null::pause::Pause;
use crate::null::stamps::Stamps;

/// Maximum size of a virtqueue, in descriptors.
const QUEUE_SIZE: u16 = 256;

/// The part of a null device that serves the requests of its virtqueues.
pub(super) trait Work: Send + Sync + Debug {
    /// Returns whether the device should serve the next request of a virtqueue now.
    fn wants(&self, _index: u32) -> bool {
        true
    }

    /// Serves a request of a virtqueue. Returns the number of bytes written to the chain.
    fn serve(&self, index: u32, queue: &Queue, chain: Chain) -> Result<u32, virtio_queue::Error>;
}

/// A null device that is bound to the kernel's virtio driver. The fields are dropped in this order.
#[derive(Debug)]
pub(super) struct NullDevice {
    /// The device on the vDPA bus.
    _on_bus: OnBus,
    /// The thread that answers the kernel's requests and starts the virtqueues' threads.
    _responder: Responder,
    pub(super) shared: Arc<Shared>,
    /// The created device.
    pub(super) device: TestDevice,
}

/// The state that the threads of a device share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) device: Arc<Device>,
    work: Arc<dyn Work>,
    queues: u16,
    threads: Mutex<Vec<QueueThread>>,
    pub(super) stamps: Stamps,
    pub(super) pause: Pause,
}

/// The thread of a virtqueue, and the means to wake and stop it.
#[derive(Debug)]
struct QueueThread {
    index: u32,
    stop: Arc<AtomicBool>,
    kick: Arc<OwnedFd>,
    thread: JoinHandle<()>,
}

impl QueueThread {
    fn wake(&self) {
        rustix::io::write(&self.kick, &1u64.to_ne_bytes()).expect("waking a thread");
    }
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
                index: index.into(),
                stop,
                kick,
                thread: std::thread::spawn(move || served.run()),
            });
        }
        Ok(())
    }

    /// Wakes a virtqueue's thread, so that it looks for requests.
    pub(super) fn wake(&self, index: u32) {
        let threads = self.threads();
        let thread = threads.iter().find(|thread| thread.index == index);
        thread.expect("a virtqueue that is served").wake();
    }

    /// Stops the virtqueues' threads and waits until they have ended.
    fn stop(&self) {
        for queue in std::mem::take(&mut *self.threads()) {
            queue.stop.store(true, Ordering::Release);
            queue.wake();
            queue.thread.join().expect("a virtqueue's thread");
        }
    }
}

/// The data that a virtqueue's thread owns.
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
            self.shared.stamps.take_woken();
            if self.stop.load(Ordering::Acquire) {
                return;
            }
            self.shared.pause.wait();
            self.process().expect("serving a virtqueue");
        }
    }

    fn process(&mut self) -> Result<(), virtio_queue::Error> {
        let memory = &*self.memory;
        loop {
            self.queue.disable_notification(memory)?;
            let mut any = false;
            let work = &self.shared.work;
            while work.wants(self.index) {
                let Some(chain) = self.queue.iter(self.memory.clone())?.next() else {
                    break;
                };
                let head = chain.head_index();
                let written = work.serve(self.index, &self.queue, chain)?;
                self.queue.add_used(memory, head, written)?;
                any = true;
            }
            let more = self.queue.enable_notification(memory)?;
            if any && self.queue.needs_notification(memory)? {
                self.shared.stamps.take_injecting();
                // The ioctl fails while the driver resets the device. The driver needs no interrupt
                // then.
                let _ = self.shared.device.inject_vq_irq(self.index);
            }
            if !(more && self.shared.work.wants(self.index)) {
                return Ok(());
            }
        }
    }
}

impl NullDevice {
    /// Serves a created device with `queues` virtqueues, adds it to the vDPA bus, and binds it to
    /// the kernel's virtio driver.
    pub(super) fn new(device: TestDevice, queues: u16, work: Arc<dyn Work>) -> Self {
        let file = Arc::new(device.open_nonblocking());
        for index in 0..queues {
            file.vq_setup(index, QUEUE_SIZE).expect("a virtqueue");
        }
        let shared = Arc::new(Shared {
            device: file.clone(),
            work,
            queues,
            threads: Mutex::default(),
            stamps: Stamps::default(),
            pause: Pause::default(),
        });
        let ours = shared.clone();
        let responder = Responder::new(&file, move |request| Some(ours.answer(request)));
        let on_bus = OnBus::add(device.name()).expect("adding a device");
        on_bus.bind(Driver::Virtio).expect("binding a device");
        Self {
            _on_bus: on_bus,
            _responder: responder,
            shared,
            device,
        }
    }
}
