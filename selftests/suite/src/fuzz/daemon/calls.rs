// SPDX-License-Identifier: GPL-2.0

//! Single random calls that a daemon makes on its device.

use std::os::fd::{AsFd, AsRawFd};

use rustix::io::Errno;
use vduse::eventfd::EventFd;
use vduse::Device;
use vduse_uapi::{ioctl, IovaInfo, VqConfig, VqEventfd};

use crate::fuzz::actor::Actor;
use crate::fuzz::daemon::arguments::{asid, queue, range};
use crate::fuzz::daemon::errors::{BROKEN, INVALID};
use crate::fuzz::daemon::regions::look;
use crate::fuzz::daemon::torn::{torn_ioctl, torn_read, torn_write};
use crate::fuzz::daemon::umem::umem;
use crate::fuzz::records::Wait;
use crate::lab::kernel::raw::{Bytes, Edge};

/// Makes one random call on a device, as the device's daemon.
pub fn act(actor: &mut Actor, device: &Device) {
    match actor.dice.below(26) {
        0 => torn_read(actor, device),
        1 => torn_write(actor, device),
        2 => torn_ioctl(actor, device),
        3 => {
            // Each size except 0 is large enough for one request of a kernel driver. With a smaller
            // virtqueue, the virtio core would log a warning.
            let config = VqConfig {
                index: queue(actor),
                max_size: actor.dice.pick(&[0, 64, 65, 256, 1024, 0x8000, 0xffff]),
                reserved1: actor.dice.one_in(8).into(),
                group: actor.dice.below(4) as u32,
                ..Default::default()
            };
            actor.call("VQ_SETUP (odd)", Wait::Short, INVALID, || {
                device.vq_setup_raw(&config)
            });
        }
        4 => {
            let index = queue(actor);
            actor.call("VQ_GET_INFO", Wait::Short, INVALID, || {
                device.vq_info(index)
            });
        }
        5 => {
            actor.call("DEV_GET_FEATURES", Wait::Short, &[BROKEN], || {
                device.features()
            });
        }
        6 => set_config(actor, device),
        7..=8 => kickfd(actor, device),
        9..=12 => {
            let index = queue(actor);
            actor.call("VQ_INJECT_IRQ", Wait::Short, INVALID, || {
                device.inject_vq_irq(index)
            });
        }
        13 => {
            actor.call("INJECT_CONFIG_IRQ", Wait::Short, INVALID, || {
                device.inject_config_irq()
            });
        }
        14..=17 => umem(actor, device),
        18..=22 => look(actor, device),
        23 => {
            let (start, last) = range(actor);
            let info = IovaInfo {
                start,
                last,
                asid: asid(actor),
                reserved: [0, 0, 0, 0, actor.dice.one_in(8).into()],
                ..Default::default()
            };
            actor.call("IOTLB_GET_INFO", Wait::Short, INVALID, || {
                device.iotlb_info(info)
            });
        }
        24 => {
            use rustix::event::{poll, PollFd, PollFlags, Timespec};
            let timeout = Timespec {
                tv_sec: 0,
                tv_nsec: actor.dice.below(20_000_000) as i64,
            };
            actor.call("poll", Wait::Short, &[], || {
                let flags = PollFlags::IN | PollFlags::OUT;
                let mut fds = [PollFd::from_borrowed_fd(device.as_fd(), flags)];
                Ok(poll(&mut fds, Some(&timeout))?)
            });
        }
        _ => actor.pause(5),
    }
}

/// Writes random data to the configuration space.
fn set_config(actor: &mut Actor, device: &Device) {
    let offset = match actor.dice.below(4) {
        0 => actor.dice.next() as u32,
        1 => u32::MAX - actor.dice.below(8) as u32,
        _ => actor.dice.below(64) as u32,
    };
    let len = actor.dice.pick(&[0, 1, 2, 8, 64, 4096, 5000]);
    let mut data = vec![0; len];
    actor.dice.fill(&mut data);
    if actor.dice.one_in(4) {
        let bytes = Bytes::new().u32(offset).u32(actor.dice.next() as u32);
        let errors = &[BROKEN, Errno::INVAL, Errno::FAULT];
        actor.call("DEV_SET_CONFIG (torn)", Wait::Short, errors, || {
            Edge::new().call(device, ioctl::DEV_SET_CONFIG, &bytes.0)
        });
    } else {
        actor.call("DEV_SET_CONFIG", Wait::Short, INVALID, || {
            device.set_config(offset, &data)
        });
    }
}

/// Sets the kick eventfd of a virtqueue, removes the eventfd, or passes a file descriptor that is
/// no eventfd.
fn kickfd(actor: &mut Actor, device: &Device) {
    let index = queue(actor);
    let Some(event) = actor.call("eventfd", Wait::Short, &[], EventFd::new) else {
        return;
    };
    let fd = match actor.dice.below(8) {
        0 => -1,
        1 => i32::MIN,
        2 => device.as_fd().as_raw_fd(),
        3 => 100_000,
        _ => event.as_fd().as_raw_fd(),
    };
    let errors = &[BROKEN, Errno::INVAL, Errno::BADF];
    actor.call("VQ_SETUP_KICKFD", Wait::Short, errors, || {
        device.set_kick_raw(&VqEventfd { index, fd })
    });
    if actor.dice.one_in(2) {
        actor.pause(3);
    }
}
