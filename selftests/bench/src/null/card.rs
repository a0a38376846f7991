// SPDX-License-Identifier: GPL-2.0

//! A null network card. It only counts the frames that the driver sends. When the driver receives a
//! frame, the card writes only the frame's headers.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::Arc;

use rustix::event::{eventfd, EventfdFlags};
use vduse::net::{Groups, Shape};
use vduse::virtqueue::Chain;
use vduse::Control;
use vduse_selftests::lab::daemon::card::MAC;
use vduse_selftests::lab::device::test_device::{unique_name, TestDevice};
use virtio_bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use crate::clock;
use crate::null::device::{NullDevice, Work};

/// Index of the receive virtqueue. The transmit virtqueue has the next index.
const RECEIVE: u16 = 0;

/// Length in bytes of `struct virtio_net_hdr`, which precedes a frame. All of its bytes are 0,
/// except in `num_buffers`.
const HEADER: usize = 12;
const NUM_BUFFERS: usize = 10;

/// Length in bytes of the Ethernet header: destination, source and type.
const ETHERNET: usize = 14;

/// An Ethernet type that is reserved for experiments. No socket waits for frames of this type.
pub const OTHER: u16 = 0x88b5;

/// The Ethernet type of the last frame in a series. A socket waits for this frame.
pub const LAST: u16 = 0x88b6;

/// Returns the Ethernet header of a frame of the type `ether_type` that is addressed to the card.
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
        // Feature bits that fast network cards usually offer.
        config.features |= 1 << VIRTIO_RING_F_INDIRECT_DESC
            | 1 << VIRTIO_RING_F_EVENT_IDX
            | 1 << VIRTIO_NET_F_MRG_RXBUF;
        let control = Control::open_v1().expect("the control device");
        control.offer_all().expect("the features of VDUSE");
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

    /// Counts the frames that the driver sends from now on, up to `count`.
    pub fn expect(&self, count: u64) {
        self.frames.to_send.store(count, Ordering::Release);
    }

    /// Waits until the driver has sent the expected number of frames.
    pub fn wait_sent(&self) {
        clock::read(&self.frames.all_sent, &mut [0; 8]);
    }

    /// Passes `count` frames to the driver, as fast as the driver provides buffers. Each frame has
    /// `bytes` bytes. The last frame has the type [`LAST`].
    pub fn receive(&self, count: u64, bytes: u32) {
        self.frames.bytes.store(bytes, Ordering::Relaxed);
        self.frames.to_receive.store(count, Ordering::Release);
        self.device.wake(RECEIVE);
    }
}

/// The frames that are still to be sent or received.
#[derive(Debug)]
struct Frames {
    /// Number of frames that the driver has still to send.
    to_send: AtomicU64,
    /// An eventfd that becomes readable when the driver has sent all frames.
    all_sent: OwnedFd,
    /// Number of frames that the driver has still to receive.
    to_receive: AtomicU64,
    /// Length of each received frame in bytes.
    bytes: AtomicU32,
}

impl Frames {
    /// Returns the counter of a virtqueue's remaining frames. Only the virtqueue's thread
    /// decrements the counter.
    fn left(&self, index: u16) -> &AtomicU64 {
        match index {
            RECEIVE => &self.to_receive,
            _ => &self.to_send,
        }
    }
}

impl Work for Frames {
    fn wants(&self, index: u16) -> bool {
        index != RECEIVE || self.to_receive.load(Ordering::Acquire) != 0
    }

    fn serve(&self, index: u16, chain: &Chain) -> u32 {
        let left = self.left(index);
        let last = match left.load(Ordering::Acquire) {
            // The frame is not part of the measurement.
            0 => return 0,
            count => {
                left.store(count - 1, Ordering::Release);
                count == 1
            }
        };
        if index != RECEIVE {
            if last {
                rustix::io::write(&self.all_sent, &1u64.to_ne_bytes()).expect("telling of it");
            }
            return 0;
        }
        let mut headers = [0; HEADER + ETHERNET];
        headers[NUM_BUFFERS] = 1;
        headers[HEADER..].copy_from_slice(&ethernet(if last { LAST } else { OTHER }));
        let mut buffer = chain.writer();
        buffer.write_all(&headers).expect("a buffer for a frame");
        HEADER as u32 + self.bytes.load(Ordering::Relaxed)
    }
}
