// SPDX-License-Identifier: GPL-2.0

//! A null device. Each of its virtqueues has its own thread.

use std::fmt::Debug;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use vduse::server::{Handle, ServedQueue, Threads, Worker};
use vduse::virtqueue::Chain;
use vduse::Device;
use vduse_selftests::lab::device::bus::{Driver, OnBus};
use vduse_selftests::lab::device::test_device::TestDevice;

use crate::null::pause::Pause;
use crate::null::stamps::Stamps;

/// Maximum size of a virtqueue, in descriptors.
const QUEUE_SIZE: u16 = 256;

/// The part of a null device that serves the requests of its virtqueues.
pub(super) trait Work: Send + Sync + Debug {
    /// Returns whether the device should serve the next request of a virtqueue now.
    fn wants(&self, _index: u16) -> bool {
        true
    }

    /// Serves a request of a virtqueue. Returns the number of bytes written to the chain.
    fn serve(&self, index: u16, chain: &Chain) -> u32;
}

/// A null device that is bound to the kernel's virtio driver. The fields are dropped in this order.
#[derive(Debug)]
pub(super) struct NullDevice {
    /// The device on the vDPA bus.
    _on_bus: OnBus,
    server: Server,
    pub(super) shared: Arc<Shared>,
    /// The created device.
    pub(super) device: TestDevice,
}

/// The state that the threads of a device share.
#[derive(Debug)]
pub(super) struct Shared {
    work: Arc<dyn Work>,
    pub(super) stamps: Stamps,
    pub(super) pause: Pause,
}

/// The server of a device, with a thread that answers the kernel's requests. Dropping a `Server`
/// stops it.
#[derive(Debug)]
struct Server {
    handle: Handle,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.handle.stop();
        let served = self.thread.take().map(JoinHandle::join);
        if !std::thread::panicking() {
            let served = served.expect("a thread").expect("the server's thread");
            served.expect("serving a null device");
        }
    }
}

/// The worker of a virtqueue.
#[derive(Debug)]
struct Served {
    shared: Arc<Shared>,
    chain: Chain,
}

impl Worker for Served {
    fn serve(&mut self, queue: &mut ServedQueue) -> io::Result<()> {
        self.process(queue)?;
        while !queue.is_stopped() {
            queue.wait()?;
            self.shared.stamps.take_woken();
            if queue.is_stopped() {
                break;
            }
            self.shared.pause.wait();
            self.process(queue)?;
        }
        Ok(())
    }
}

impl Served {
    fn process(&mut self, queue: &mut ServedQueue) -> io::Result<()> {
        let index = queue.index();
        let work = &self.shared.work;
        loop {
            queue.vq.disable_kicks();
            let mut wants_interrupt = false;
            while work.wants(index) && queue.vq.pop(&mut self.chain)? {
                let written = work.serve(index, &self.chain);
                queue.vq.push(&self.chain, written);
                // A card's driver frees what was sent while it sends more.
                wants_interrupt |= queue.vq.publish();
            }
            let more = queue.vq.enable_kicks();
            if wants_interrupt {
                self.shared.stamps.take_injecting();
                queue.interrupt();
            }
            if !(more && self.shared.work.wants(index)) {
                return Ok(());
            }
        }
    }
}

impl NullDevice {
    /// Serves a created device with `queues` virtqueues, adds it to the vDPA bus, and binds it to
    /// the kernel's virtio driver.
    pub(super) fn new(device: TestDevice, queues: u16, work: Arc<dyn Work>) -> Self {
        let shared = Arc::new(Shared {
            work,
            stamps: Stamps::default(),
            pause: Pause::default(),
        });
        let workers = (0..queues).map(|_| Served {
            shared: shared.clone(),
            chain: Chain::new(),
        });
        let shape = vec![(QUEUE_SIZE, 0); queues.into()];
        let file = device.open_nonblocking();
        let server = Threads::with_groups(file, &shape, 1, workers.collect());
        let mut server = server.expect("serving a device");
        let server = Server {
            handle: server.handle(),
            thread: Some(std::thread::spawn(move || server.run())),
        };
        let on_bus = OnBus::add(device.name()).expect("adding a device");
        on_bus.bind(Driver::Virtio).expect("binding a device");
        Self {
            _on_bus: on_bus,
            server,
            shared,
            device,
        }
    }

    /// Returns the daemon's open device.
    pub(super) fn file(&self) -> &Device {
        self.server.handle.device()
    }

    /// Wakes a virtqueue's thread, so that it looks for requests.
    pub(super) fn wake(&self, index: u16) {
        self.server.handle.kick(index);
    }
}
