// SPDX-License-Identifier: GPL-2.0

//! A network card that does nothing: it only counts the frames that are sent; of a frame that it
//! receives, only the header is made up.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::Arc;

use rustix::event::{eventfd, EventfdFlags};
use vduse::net::{Groups, Shape};
use vduse::server::Chain;
use vduse::Control;
use vduse_selftests::lab::daemon::card::MAC;
use vduse_selftests::lab::device::test_device::{unique_name, TestDevice};
use virtio_bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::Queue;
use vm_memory::Bytes;

use crate::clock;
use crate::null::device::{NullDevice, Work};

/// The virtqueue for received frames; the next virtqueue is for sent frames.
const RECEIVE: u32 = 0;

/// The length in bytes of the header before a frame, `struct virtio_net_hdr`: zeros, except for the
/// number of buffers that hold the frame.
const HEADER: usize = 12;
const NUM_BUFFERS: usize = 10;

/// The length in bytes of a frame's own header: destination, source, and type.
const ETHERNET: usize = 14;

/// The type of frames that nothing waits for, reserved for experiments.
pub const OTHER: u16 = 0x88b5;

/// The type of the last of several frames, for a socket that waits for that frame.
pub const LAST: u16 = 0x88b6;

/// Returns the own header of a frame of this type to the card.
pub fn ethernet(ether_type: u16) -> [u8; ETHERNET] {
    let mut header = [0; ETHERNET];
    header[..6].copy_from_slice(&MAC);
    header[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 2]);
    header[12..].copy_from_slice(&ether_type.to_be_bytes());
    header
}

/// A null card that is bound to virtio_net.
#[derive(Debug)]
pub struct NullCard {
    device: NullDevice,
    frames: Arc<Frames>,
}

impl NullCard {
    /// Creates a card, serves it, and binds it to virtio_net.
    pub fn new() -> Self {
        let mut shape = Shape::new(&unique_name(), MAC);
        shape.groups = Groups::One;
        let mut config = shape.config();
        // Features of cards that are made to be fast.
        config.features |= 1 << VIRTIO_RING_F_INDIRECT_DESC
            | 1 << VIRTIO_RING_F_EVENT_IDX
            | 1 << VIRTIO_NET_F_MRG_RXBUF;
        let control = Control::open_v1().expect("the control device");
        control.create(&config).expect("creating a card");
        let frames = Arc::new(Frames {
            to_send: AtomicU64::new(0),
            all_sent: eventfd(0, EventfdFlags::CLOEXEC).expect("an eventfd"),
            to_receive: AtomicU64::new(0),
            bytes: AtomicU32::new(0),
        });
        let device = TestDevice::adopt(&config.name);
        Self {
            device: NullDevice::new(device, config.queues, frames.clone()),
            frames,
        }
    }

    /// Returns the device's name.
    pub fn name(&self) -> &str {
        self.device.device.name()
    }

    /// Counts the frames that are sent from now on, up to `count`.
    pub fn expect(&self, count: u64) {
        self.frames.to_send.store(count, Ordering::Release);
    }

    /// Waits until the expected number of frames has been sent.
    pub fn wait_sent(&self) {
        clock::read(&self.frames.all_sent, &mut [0; 8]);
    }

    /// Receives `count` frames of `bytes` bytes, as fast as the driver has room for them. The last
    /// frame is of type [`LAST`].
    pub fn receive(&self, count: u64, bytes: u32) {
        self.frames.bytes.store(bytes, Ordering::Relaxed);
        self.frames.to_receive.store(count, Ordering::Release);
        self.device.shared.wake(RECEIVE);
    }
}

/// The frames that are still expected.
#[derive(Debug)]
struct Frames {
    /// How many frames are still to be sent.
    to_send: AtomicU64,
    /// Readable when all frames have been sent.
    all_sent: OwnedFd,
    /// How many frames are still to be received.
    to_receive: AtomicU64,
    /// The length of the received frames, in bytes.
    bytes: AtomicU32,
}

impl Frames {
    /// Returns the counter of a virtqueue's remaining frames. Only the virtqueue's thread counts
    /// down.
    fn left(&self, index: u32) -> &AtomicU64 {
        match index {
            RECEIVE => &self.to_receive,
            _ => &self.to_send,
        }
    }
}

impl Work for Frames {
    fn wants(&self, index: u32) -> bool {
        index != RECEIVE || self.to_receive.load(Ordering::Acquire) != 0
    }

    fn serve(
        &self,
        index: u32,
        _queue: &Queue,
        mut chain: Chain,
    ) -> Result<u32, virtio_queue::Error> {
        let left = self.left(index);
        let last = match left.load(Ordering::Acquire) {
            // A frame that the measurement did not send.
            0 => return Ok(0),
            count => {
                left.store(count - 1, Ordering::Release);
                count == 1
            }
        };
        if index != RECEIVE {
            if last {
                rustix::io::write(&self.all_sent, &1u64.to_ne_bytes()).expect("telling of it");
            }
            return Ok(0);
        }
        let mut headers = [0; HEADER + ETHERNET];
        headers[NUM_BUFFERS] = 1;
        headers[HEADER..].copy_from_slice(&ethernet(if last { LAST } else { OTHER }));
        let buffer = chain.next().ok_or(virtio_queue::Error::InvalidChain)?;
        let memory = chain.memory();
        memory
            .write_slice(&headers, buffer.addr())
            .map_err(virtio_queue::Error::GuestMemoryError)?;
        Ok(HEADER as u32 + self.bytes.load(Ordering::Relaxed))
    }
}
