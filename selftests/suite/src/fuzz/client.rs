// SPDX-License-Identifier: GPL-2.0

//! Clients of vhost-vdpa, such as virtual machines. They behave well or badly, and may end at any
//! time.

use std::fs::File;
use std::os::fd::AsFd;

use rustix::fs::FlockOperation;
use rustix::io::Errno;
use vduse::eventfd::EventFd;
use vduse::Mapping;
use vduse_uapi::ACCESS_RW;
use vm_memory::Bytes;

use crate::fuzz::actor::Actor;
use crate::fuzz::controller::{GROUPS, QUEUES, SPACES};
use crate::fuzz::records::Wait;
use crate::fuzz::rings;
use crate::lab::device::bus;
use crate::lab::device::virtio::feature;
use crate::lab::device::virtio::status::{
    ACKNOWLEDGE, DRIVER, FAILED, RESET, UP_TO_DRIVER_OK, UP_TO_FEATURES_OK,
};
use crate::lab::driver::vhost::{access, RingAddress, Vhost};
use crate::lab::kernel::memory::{self, PAGE};
use crate::lab::kernel::reserved_range::ReservedRange;

/// Size in bytes of the address range in which a client maps files.
const RANGE: usize = 1 << 20;

/// Number of descriptors of a virtqueue.
const SIZE: u32 = 16;

/// IOVA of the memory of a client's virtqueues.
const RINGS: u64 = 0x10_0000;

/// The resources of a client.
struct Client {
    vhost: Vhost,
    range: ReservedRange,
    files: Vec<File>,
    rings: Mapping,
    event: EventFd,
}

/// Acts as one client: opens a device through vhost-vdpa, makes random calls, and closes the
/// device.
pub fn live(actor: &mut Actor) {
    actor.pause(30);
    let name = actor.device();
    let Some(path) = bus::vhost_path(name) else {
        return;
    };
    let Some(lock) = actor.lock(name, FlockOperation::NonBlockingLockShared) else {
        return;
    };
    let open = actor.attempt("open vhost-vdpa", Wait::Daemon, || Vhost::open(&path));
    drop(lock);
    let Some(vhost) = open else {
        return;
    };
    let (Ok(range), Ok(event)) = (ReservedRange::new(RANGE), EventFd::new()) else {
        return;
    };
    // The daemon may see the files, so the files do not contain the secret word. The daemon must
    // not see the memory `hidden`, so `hidden` is full of the secret word.
    let files: Vec<_> = (0..3).map(|_| memory::file(32 * PAGE)).collect();
    for file in &files {
        let fill = [0x11; PAGE as usize];
        for page in 0..32 {
            let _ = std::os::unix::fs::FileExt::write_at(file, &fill, page * PAGE);
        }
    }
    let hidden = Mapping::anonymous(16 * PAGE as usize);
    if let Ok(hidden) = &hidden {
        for at in (0..hidden.len()).step_by(8) {
            let _ = hidden.bytes().write_obj(actor.secret, at);
        }
    }
    let file = memory::file(rings::LEN);
    let Ok(rings) = Mapping::of_file(file.as_fd(), 0, rings::LEN, ACCESS_RW) else {
        return;
    };
    let client = Client {
        vhost,
        range,
        files,
        rings,
        event,
    };
    let milliseconds = actor.dice.below(1000);
    actor.go_on_for(milliseconds);
    if !actor.dice.one_in(3) {
        begin(actor, &client);
    }
    while actor.goes_on() {
        act(actor, &client);
    }
    if actor.dice.one_in(2) {
        set_status(actor, &client, RESET);
    }
}

fn set_status(actor: &mut Actor, client: &Client, status: u8) {
    actor.attempt("SET_STATUS", Wait::Daemon, || {
        client.vhost.set_status(status)
    });
}

/// Values of the device status, both valid and invalid.
const STATUSES: &[u8] = &[
    RESET,
    ACKNOWLEDGE,
    ACKNOWLEDGE | DRIVER,
    UP_TO_FEATURES_OK,
    UP_TO_DRIVER_OK,
    UP_TO_DRIVER_OK,
    0x40,
    FAILED,
    0xff,
];

/// Takes the device through all steps of its initialisation, up to `DRIVER_OK`.
fn begin(actor: &mut Actor, client: &Client) {
    let vhost = &client.vhost;
    actor.call("SET_OWNER", Wait::Short, &[], || vhost.set_owner());
    actor.call("SET_BACKEND_FEATURES", Wait::Daemon, &[], || {
        vhost.set_backend_features_asid()
    });
    set_status(actor, client, ACKNOWLEDGE | DRIVER);
    let offered = actor.call("GET_FEATURES", Wait::Short, &[], || vhost.features());
    let accepted = offered.unwrap_or(0)
        & actor
            .dice
            .pick(&[u64::MAX, !feature::RING_EVENT_IDX, !feature::RING_PACKED]);
    actor.attempt("SET_FEATURES", Wait::Short, || vhost.set_features(accepted));
    set_status(actor, client, UP_TO_FEATURES_OK);
    actor.call("map the rings", Wait::Daemon, &[Errno::FAULT], || {
        vhost.map(RINGS, &client.rings, access::RW)
    });
    let queues = actor.dice.below(3) as u32;
    for queue in 0..=queues {
        set_up(actor, client, queue);
    }
    set_status(actor, client, UP_TO_DRIVER_OK);
}

/// Sets up a virtqueue. All virtqueues share the same memory.
fn set_up(actor: &mut Actor, client: &Client, queue: u32) {
    let vhost = &client.vhost;
    let address = RingAddress {
        desc: RINGS + rings::DESC,
        avail: RINGS + rings::AVAIL,
        used: RINGS + rings::USED,
    };
    actor.attempt("SET_VRING_NUM", Wait::Short, || {
        vhost.set_queue_size(queue, SIZE)
    });
    actor.attempt("SET_VRING_ADDR", Wait::Short, || {
        vhost.set_queue_address(queue, address)
    });
    actor.attempt("SET_VRING_BASE", Wait::Short, || {
        vhost.set_queue_base(queue, 0)
    });
    actor.attempt("SET_VRING_KICK", Wait::Short, || {
        vhost.set_kick(queue, client.event.as_fd())
    });
    actor.attempt("SET_VRING_CALL", Wait::Short, || {
        vhost.set_call(queue, Some(client.event.as_fd()))
    });
    actor.attempt("SET_VRING_ENABLE", Wait::Daemon, || {
        vhost.enable_queue(queue)
    });
}

/// Returns a random number that is usually below `end`, but sometimes `end` or larger.
fn below(actor: &mut Actor, end: u64) -> u32 {
    if actor.dice.one_in(12) {
        actor.dice.pick(&[end as u32, 0xffff, 0x1_0000, u32::MAX])
    } else {
        actor.dice.below(end) as u32
    }
}

/// Returns a random IOVA.
fn iova(actor: &mut Actor) -> u64 {
    match actor.dice.below(16) {
        0 => actor.dice.next(),
        1 => u64::MAX - actor.dice.below(4 * PAGE),
        2 => actor.dice.below(64 * PAGE),
        3 => RINGS + actor.dice.below(8) * PAGE,
        _ => actor.dice.below(64) * PAGE,
    }
}

/// Returns a random length in bytes.
fn length(actor: &mut Actor) -> u64 {
    match actor.dice.below(16) {
        0 => actor.dice.next(),
        1 => 0,
        2 => u64::MAX,
        3 => actor.dice.below(PAGE),
        _ => (1 + actor.dice.below(8)) * PAGE,
    }
}

/// Makes a random call of a client.
fn act(actor: &mut Actor, client: &Client) {
    let vhost = &client.vhost;
    // A length of 0 causes `EINVAL`. Any other mistake in a mapping causes `EFAULT`.
    let fault = &[Errno::FAULT, Errno::INVAL];
    match actor.dice.below(32) {
        0..=2 => arrange(actor, client),
        3..=7 => {
            let (asid, iova, size) = (below(actor, SPACES), iova(actor), length(actor));
            let at = client.range.address() + actor.dice.below(64) * PAGE;
            // Of this process's memory, the device must see only `client.range`. So if a mapping is
            // long enough to reach beyond that range, it starts at an address without memory.
            let at = if size <= 128 * PAGE { at } else { 1 << 63 };
            let access = actor.dice.pick(&[0, 1, 2, 3, 3, 3, 5, 0xff]);
            actor.call("map", Wait::Daemon, fault, || {
                vhost.map_raw(asid, iova, size, at, access)
            });
        }
        8..=10 => {
            let (asid, iova, size) = (below(actor, SPACES), iova(actor), length(actor));
            actor.call("unmap", Wait::Daemon, fault, || {
                vhost.unmap_in(asid, iova, size)
            });
        }
        11 => {
            let asid = below(actor, SPACES);
            actor.call("begin a batch", Wait::Daemon, fault, || {
                vhost.batch_begin(asid)
            });
        }
        12..=13 => {
            let asid = below(actor, SPACES);
            actor.call("end a batch", Wait::Daemon, fault, || vhost.batch_end(asid));
        }
        14 => {
            let (group, asid) = (below(actor, GROUPS), below(actor, SPACES));
            actor.attempt("SET_GROUP_ASID", Wait::Daemon, || {
                vhost.set_group_asid(group, asid)
            });
        }
        15 => {
            let queue = below(actor, QUEUES);
            set_up(actor, client, queue);
        }
        16..=20 => {
            rings::fill_with_bad_chains(actor, &client.rings, RINGS, SIZE.into());
            actor.attempt("kick", Wait::Short, || client.event.signal());
        }
        21 => {
            let status = actor.dice.pick(STATUSES);
            set_status(actor, client, status);
        }
        22 => {
            let queue = below(actor, QUEUES);
            actor.attempt("GET_VRING_BASE", Wait::Daemon, || vhost.queue_base(queue));
        }
        23 => {
            let (queue, size) = (below(actor, QUEUES), below(actor, 512));
            actor.attempt("SET_VRING_NUM", Wait::Short, || {
                vhost.set_queue_size(queue, size)
            });
            let address = RingAddress {
                desc: iova(actor),
                avail: iova(actor),
                used: iova(actor),
            };
            actor.attempt("SET_VRING_ADDR", Wait::Short, || {
                vhost.set_queue_address(queue, address)
            });
            let base = below(actor, 512);
            actor.attempt("SET_VRING_BASE", Wait::Short, || {
                vhost.set_queue_base(queue, base)
            });
        }
        24 => {
            let (offset, len) = (below(actor, 64), actor.dice.below(5000) as usize);
            actor.attempt("GET_CONFIG", Wait::Short, || vhost.config(offset, len));
        }
        25 => {
            let offset = below(actor, 64);
            actor.attempt("SET_CONFIG", Wait::Short, || {
                vhost.set_config(offset, &[0xff; 64])
            });
        }
        26 => {
            let features = actor.dice.next();
            actor.attempt("SET_FEATURES", Wait::Short, || vhost.set_features(features));
        }
        27 => {
            let queue = below(actor, QUEUES);
            let none = actor.dice.one_in(2);
            actor.attempt("SET_VRING_CALL", Wait::Short, || {
                vhost.set_call(queue, (!none).then(|| client.event.as_fd()))
            });
            actor.attempt("SET_CONFIG_CALL", Wait::Short, || {
                vhost.set_config_call(client.event.as_fd())
            });
        }
        28 => {
            actor.attempt("get everything", Wait::Short, || {
                vhost.status()?;
                vhost.queues()?;
                vhost.groups()?;
                vhost.address_spaces()?;
                vhost.max_queue_size()?;
                vhost.iova_range()?;
                vhost.device_id()
            });
            let queue = below(actor, QUEUES);
            actor.attempt("GET_VRING_GROUP", Wait::Short, || vhost.group_of(queue));
        }
        29 => {
            // Changes the size of a file that may be mapped at the same time.
            let file = &client.files[actor.dice.below(3) as usize];
            let pages = actor.dice.below(33);
            actor.attempt("truncate", Wait::Short, || file.set_len(pages * PAGE));
        }
        30 => match actor.dice.below(4) {
            0 => {
                let queue = below(actor, QUEUES);
                actor.attempt("SET_VRING_ENABLE", Wait::Daemon, || {
                    vhost.disable_queue(queue)
                });
            }
            1 => {
                actor.attempt("RESUME", Wait::Daemon, || vhost.resume());
            }
            _ => {
                actor.attempt("SUSPEND", Wait::Daemon, || vhost.suspend());
            }
        },
        _ => actor.pause(10),
    }
}

/// Maps a file at a random place in the client's address range, or removes the mappings at such a
/// place.
fn arrange(actor: &mut Actor, client: &Client) {
    let at = (actor.dice.below(96) * PAGE) as usize;
    let len = ((1 + actor.dice.below(32)) * PAGE) as usize;
    let file = &client.files[actor.dice.below(3) as usize];
    let range = &client.range;
    if actor.dice.one_in(3) {
        actor.call("munmap", Wait::Daemon, &[], || range.clear(at, len));
    } else {
        let writable = !actor.dice.one_in(4);
        actor.call("mmap", Wait::Daemon, &[], || {
            range.put(file, at, len, writable)
        });
    }
}
