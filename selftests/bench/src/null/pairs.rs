// SPDX-License-Identifier: GPL-2.0

//! A null network card with several queue pairs. It counts the frames that the driver sends through
//! all pairs.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::Arc;

use rustix::event::{eventfd, EventfdFlags};
use vduse::net::{Groups, Shape};
use vduse::virtqueue::Chain;
use vduse_selftests::lab::daemon::card::MAC;
use vduse_selftests::lab::device::test_device::{unique_name, TestDevice};
use virtio_bindings::virtio_net::VIRTIO_NET_OK;

use crate::clock;
use crate::null::device::{NullDevice, Work};

/// A null network card with several queue pairs that is bound to virtio_net.
#[derive(Debug)]
pub struct NullPairs {
    device: NullDevice,
    frames: Arc<Frames>,
}

impl NullPairs {
    /// Creates a card with `pairs` queue pairs, serves it, and binds it to virtio_net. The in-tree
    /// driver rejects cards with a control queue. With that driver, the card has no control queue
    /// and virtio_net uses one pair.
    pub fn new(pairs: u16) -> Self {
        let mut shape = Shape::new(&unique_name(), MAC);
        shape.pairs = pairs;
        shape.control = pairs > 1;
        shape.suspend = false;
        // Makes this a device of API version 1, as the other null devices are.
        shape.groups = Groups::One;
        if shape.create().is_err() {
            shape.control = false;
            shape.create().expect("creating a card");
        }
        let frames = Arc::new(Frames {
            control: shape.control.then_some(2 * pairs),
            left: AtomicI64::new(0),
            all_sent: eventfd(0, EventfdFlags::CLOEXEC).expect("an eventfd"),
        });
        let device = TestDevice::adopt(&shape.name);
        Self {
            device: NullDevice::new(device, shape.config().queues, frames.clone()),
            frames,
        }
    }

    /// Returns the device's name.
    pub fn name(&self) -> &str {
        self.device.device.name()
    }

    /// Counts the frames that the driver sends from now on, up to `count`.
    pub fn expect(&self, count: u64) {
        self.frames.left.store(count as i64, Ordering::SeqCst);
    }

    /// Waits until the driver has sent the expected number of frames.
    pub fn wait_sent(&self) {
        clock::read(&self.frames.all_sent, &mut [0; 8]);
    }
}

/// The frames that the driver still has to send.
#[derive(Debug)]
struct Frames {
    /// Index of the control queue, if the card has one.
    control: Option<u16>,
    /// Number of frames that the driver still has to send. The number can become negative, because
    /// frames outside a measurement are subtracted too.
    left: AtomicI64,
    /// An eventfd that becomes readable when the driver has sent all frames.
    all_sent: OwnedFd,
}

impl Work for Frames {
    fn wants(&self, index: u16) -> bool {
        index % 2 != 0 || self.control == Some(index)
    }

    fn serve(&self, index: u16, chain: &Chain) -> u32 {
        if self.control == Some(index) {
            let answer = chain.writer().write(&[VIRTIO_NET_OK as u8]);
            return answer.map_or(0, |written| written as u32);
        }
        if self.left.fetch_sub(1, Ordering::SeqCst) == 1 {
            rustix::io::write(&self.all_sent, &1u64.to_ne_bytes()).expect("telling of it");
        }
        0
    }
}
