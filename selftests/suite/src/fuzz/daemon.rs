// SPDX-License-Identifier: GPL-2.0

//! Daemons: those that serve a device well, those that do not, and those that look at all they can.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use vduse::blk::Disk;
use vduse::device::Region;
use vduse::eventfd::EventFd;
use vduse::request::{Answer, Kind, Request};
use vduse::server::{Backend, Chain, Memory, Server};
use vduse::{Device, Mapping};
use vduse_uapi::{
    ioctl, DevRequest, DevResponse, IotlbEntryV2, IovaInfo, IovaUmem, VqConfig, VqEventfd,
};

use crate::fuzz::board::Wait;
use crate::fuzz::controller::{DISK, GROUPS, QUEUES, SPACES};
use crate::fuzz::rings;
use crate::fuzz::stage::Stage;
use crate::lab::daemon::regions::find_raw;
use crate::lab::device::spaces::set_up;
use crate::lab::kernel::file_mapping::FileMapping;
use crate::lab::kernel::late_page::{LatePage, Manner};
use crate::lab::kernel::memory::PAGE;
use crate::lab::kernel::probe::Prober;
use crate::lab::kernel::raw::{self, Bytes, Edge};

/// Opening a device.
const OPEN: &[Errno] = &[Errno::NOENT, Errno::BUSY, Errno::NODEV, Errno::NXIO];

/// What any ioctl of a device that has been given up says.
const BROKEN: Errno = Errno::PERM;

const INVALID: &[Errno] = &[BROKEN, Errno::INVAL];

/// How many virtqueues a device has.
fn queues(device: &Device) -> u32 {
    let there = |&index: &u32| device.vq_info(index).is_ok();
    (0..=u32::from(u16::MAX)).take_while(there).count() as u32
}

/// Opens any of the devices, and sets its virtqueues up if they are not yet.
fn open(stage: &mut Stage) -> Option<(&'static str, Arc<Device>)> {
    let name = stage.device();
    let device = stage.call("open a device", Wait::Short, OPEN, || {
        Device::open_nonblocking(name)
    })?;
    let count = queues(&device);
    if !stage.dice.one_in(12) {
        // A size that a vhost client can use, and a group that may be there. On a device of version
        // 1 that is on the bus it is refused.
        for index in 0..count {
            let group = match name.ends_with('1') {
                true => stage.dice.below(GROUPS) as u32,
                false => 0,
            };
            let refused = stage.call("VQ_SETUP", Wait::Short, INVALID, || {
                set_up(&device, index, group)
            });
            if refused.is_none() {
                stage.call("VQ_SETUP", Wait::Short, INVALID, || {
                    set_up(&device, index, 0)
                });
            }
        }
    }
    Some((name, Arc::new(device)))
}

/// Takes packets and gives none.
struct Sink;

impl Backend for Sink {
    fn serve(&mut self, _queue: u16, _chain: Chain, _memory: &Memory) -> u32 {
        0
    }
}

/// Serves a device as it should be, for a while.
fn serve(stage: &mut Stage, name: &str, device: Device, milliseconds: u64) {
    let count = queues(&device) as usize;
    if name.starts_with("fuzz-disk") {
        let path = stage.path(name);
        let open = || {
            let mut options = OpenOptions::new();
            let file = options.read(true).write(true).create(true).open(&path)?;
            file.set_len(DISK)?;
            Ok(file)
        };
        let Some(file) = stage.call("open the disk's file", Wait::Short, &[], open) else {
            return;
        };
        serve_with(
            stage,
            device,
            count,
            Disk::new(Arc::new(file)),
            milliseconds,
        );
    } else {
        serve_with(stage, device, count, Sink, milliseconds);
    }
}

fn serve_with<B: Backend>(
    stage: &mut Stage,
    device: Device,
    count: usize,
    backend: B,
    milliseconds: u64,
) {
    let begin = || Server::take_over(device, count, backend);
    let Some(mut server) = stage.call("take over", Wait::Short, &[BROKEN], begin) else {
        return;
    };
    let handle = server.handle();
    std::thread::scope(|scope| {
        let (sender, ended) = std::sync::mpsc::channel::<()>();
        scope.spawn(move || {
            let _ = ended.recv_timeout(Duration::from_millis(milliseconds));
            handle.stop();
        });
        stage.call("serve", Wait::Daemon, INVALID, || server.run());
        drop(sender);
    });
}

/// The life of one that goes where a daemon is missing.
pub fn heal(stage: &mut Stage) {
    stage.pause(5);
    let name = stage.device();
    let open = || Device::open_nonblocking(name);
    if let Some(device) = stage.call("open a device", Wait::Short, OPEN, open) {
        let milliseconds = 100 + stage.dice.below(300);
        serve(stage, name, device, milliseconds);
    }
}

/// A daemon's life.
pub fn live(stage: &mut Stage) {
    stage.pause(50);
    let Some((name, device)) = open(stage) else {
        return;
    };
    match stage.dice.below(8) {
        0..=2 => {
            let milliseconds = 50 + stage.dice.below(1200);
            if let Some(device) = Arc::into_inner(device) {
                serve(stage, name, device, milliseconds);
            }
        }
        // One that reads and waits: the supervisor ends it.
        3 if stage.dice.one_in(4) => {
            drop(device);
            let open = || Device::open(name);
            if let Some(device) = stage.call("open to wait", Wait::Short, OPEN, open) {
                for _ in 0..3 {
                    let read = || device.read_request();
                    let request = stage.call("read and wait", Wait::Endless, &[BROKEN], read);
                    if let Some(request) = request {
                        answer(stage, &device, &request);
                    }
                }
            }
        }
        // Threads that all use the same open file.
        _ => {
            let milliseconds = 100 + stage.dice.below(1000);
            stage.go_on_for(milliseconds);
            let threads = stage.dice.below(3) as usize;
            std::thread::scope(|scope| {
                for thread in 1..=threads {
                    let (mut beside, device) = (stage.beside(thread), device.clone());
                    scope.spawn(move || {
                        while beside.goes_on() {
                            act(&mut beside, &device);
                        }
                    });
                }
                // One in four answers nothing.
                let answers = !stage.dice.one_in(4);
                while stage.goes_on() {
                    if answers {
                        converse(stage, &device);
                    }
                    if name.starts_with("fuzz-net") && stage.dice.one_in(3) {
                        rings::ruin(stage, &device);
                    }
                    act(stage, &device);
                }
            });
        }
    }
}

/// Reads the next request, if there is one, and answers it, mostly well.
fn converse(stage: &mut Stage, device: &Device) {
    let errors = &[BROKEN, Errno::AGAIN];
    let read = || device.read_request();
    if let Some(request) = stage.call("read", Wait::Short, errors, read) {
        answer(stage, device, &request);
    }
}

/// Answers, mostly well.
fn answer(stage: &mut Stage, device: &Device, request: &Request) {
    let right = match request.kind {
        Kind::GetVqState { index } => Answer::SplitState {
            index,
            next_avail: stage.dice.next() as u16,
        },
        _ => Answer::Ok,
    };
    let mut response = right.to_abi(request.id);
    match stage.dice.below(24) {
        0 => response = Answer::Failed.to_abi(request.id),
        1 => response.request_id = stage.dice.next() as u32,
        2 => response.request_id = response.request_id.wrapping_add(1),
        3 => response.result = stage.dice.next() as u32,
        4 => response.reserved[stage.dice.below(4) as usize] = 1,
        5 => {
            for word in &mut response.body.words {
                *word = stage.dice.next() as u32;
            }
        }
        6 => stage.pause(300),
        // Not at all, for now.
        7 => return,
        _ => {}
    }
    write(stage, device, &response);
    if stage.dice.one_in(16) {
        write(stage, device, &response);
    }
}

fn write(stage: &mut Stage, device: &Device, response: &DevResponse) {
    let errors = &[Errno::NOENT, Errno::INVAL];
    stage.call("write", Wait::Short, errors, || device.write_raw(response));
}

/// An index of a virtqueue, mostly a good one.
fn queue(stage: &mut Stage) -> u32 {
    match stage.dice.below(12) {
        0 => stage.dice.next() as u32,
        1 => stage
            .dice
            .pick(&[QUEUES as u32, u32::MAX, 0x1_0000, 0xffff]),
        _ => stage.dice.below(3) as u32,
    }
}

/// An address space, mostly a good one.
fn asid(stage: &mut Stage) -> u32 {
    match stage.dice.below(8) {
        0 => stage.dice.pick(&[SPACES as u32, u32::MAX, 0x1_0000]),
        _ => stage.dice.below(SPACES) as u32,
    }
}

/// A first and a last address.
fn range(stage: &mut Stage) -> (u64, u64) {
    let mut address = || match stage.dice.below(8) {
        0..=2 => stage.dice.below(64) * PAGE,
        3 => stage.dice.below(1 << 31),
        4 => u64::MAX - stage.dice.below(2 * PAGE),
        5 => stage.dice.next(),
        6 => 0,
        _ => u64::MAX,
    };
    (address(), address())
}

/// How a page comes.
fn manner(stage: &mut Stage) -> Manner {
    Manner {
        delay: Duration::from_millis(stage.dice.below(20)),
        comes: !stage.dice.one_in(3),
    }
}

/// One call of a daemon, of any kind.
fn act(stage: &mut Stage, device: &Device) {
    match stage.dice.below(26) {
        0 => torn_read(stage, device),
        1 => torn_write(stage, device),
        2 => torn_ioctl(stage, device),
        3 => {
            // Not as few as one request of the kernel's drivers takes: the virtio core warns of that.
            let config = VqConfig {
                index: queue(stage),
                max_size: stage.dice.pick(&[0, 64, 65, 256, 1024, 0x8000, 0xffff]),
                reserved1: stage.dice.one_in(8).into(),
                group: stage.dice.below(4) as u32,
                ..Default::default()
            };
            stage.call("VQ_SETUP (odd)", Wait::Short, INVALID, || {
                device.vq_setup_raw(&config)
            });
        }
        4 => {
            let index = queue(stage);
            stage.call("VQ_GET_INFO", Wait::Short, INVALID, || {
                device.vq_info(index)
            });
        }
        5 => {
            stage.call("DEV_GET_FEATURES", Wait::Short, &[BROKEN], || {
                device.features()
            });
        }
        6 => set_config(stage, device),
        7..=8 => kickfd(stage, device),
        9..=12 => {
            let index = queue(stage);
            stage.call("VQ_INJECT_IRQ", Wait::Short, INVALID, || {
                device.inject_vq_irq(index)
            });
        }
        13 => {
            stage.call("INJECT_CONFIG_IRQ", Wait::Short, INVALID, || {
                device.inject_config_irq()
            });
        }
        14..=17 => umem(stage, device),
        18..=22 => look(stage, device),
        23 => {
            let (start, last) = range(stage);
            let info = IovaInfo {
                start,
                last,
                asid: asid(stage),
                reserved: [0, 0, 0, 0, stage.dice.one_in(8).into()],
                ..Default::default()
            };
            stage.call("IOTLB_GET_INFO", Wait::Short, INVALID, || {
                device.iotlb_info(info)
            });
        }
        24 => {
            use rustix::event::{poll, PollFd, PollFlags, Timespec};
            let timeout = Timespec {
                tv_sec: 0,
                tv_nsec: stage.dice.below(20_000_000) as i64,
            };
            stage.call("poll", Wait::Short, &[], || {
                let flags = PollFlags::IN | PollFlags::OUT;
                let mut fds = [PollFd::from_borrowed_fd(device.as_fd(), flags)];
                Ok(poll(&mut fds, Some(&timeout))?)
            });
        }
        _ => stage.pause(5),
    }
}

const REQUEST: usize = size_of::<DevRequest>();
const RESPONSE: usize = size_of::<DevResponse>();

/// Reads into too little memory, or into memory that is not there.
fn torn_read(stage: &mut Stage, device: &Device) {
    let errors = &[BROKEN, Errno::AGAIN, Errno::FAULT];
    match stage.dice.below(3) {
        0 => {
            let mut buffer = vec![0; stage.dice.below(REQUEST as u64) as usize];
            stage.call("read (short)", Wait::Short, &[Errno::INVAL], || {
                Ok(rustix::io::read(device, &mut buffer)?)
            });
        }
        1 => {
            let len = stage.dice.below(REQUEST as u64) as usize;
            stage.call("read (torn)", Wait::Short, errors, || {
                Edge::new().read(device, len, REQUEST)
            });
        }
        _ => {
            let manner = manner(stage);
            if let Some(page) = LatePage::get() {
                stage.call("read (late)", Wait::Short, errors, || {
                    page.read(device, REQUEST, manner)
                });
            }
        }
    }
}

/// Answers with too little, or out of memory that is not there.
fn torn_write(stage: &mut Stage, device: &Device) {
    let mut bytes = [0; 256];
    bytes[0] = stage.dice.below(32) as u8;
    let errors = &[Errno::NOENT, Errno::INVAL];
    let len = stage.dice.below(bytes.len() as u64) as usize;
    match stage.dice.below(3) {
        0 => {
            stage.call("write (any length)", Wait::Short, errors, || {
                Ok(rustix::io::write(device, &bytes[..len])?)
            });
        }
        1 => {
            let len = len % RESPONSE;
            stage.call("write (torn)", Wait::Short, errors, || {
                Edge::new().write(device, len, RESPONSE)
            });
        }
        _ => {
            let manner = manner(stage);
            if let Some(page) = LatePage::get() {
                stage.call("write (late)", Wait::Short, errors, || {
                    page.write(device, &bytes[..RESPONSE], manner)
                });
            }
        }
    }
}

/// The ioctls that have an argument.
const IOCTLS: &[u32] = &[
    ioctl::IOTLB_GET_FD,
    ioctl::DEV_GET_FEATURES,
    ioctl::DEV_SET_CONFIG,
    ioctl::VQ_SETUP,
    ioctl::VQ_GET_INFO,
    ioctl::VQ_SETUP_KICKFD,
    ioctl::VQ_INJECT_IRQ,
    ioctl::IOTLB_REG_UMEM,
    ioctl::IOTLB_DEREG_UMEM,
    ioctl::IOTLB_GET_INFO,
    ioctl::IOTLB_GET_FD2,
];

/// The size of an ioctl's argument.
fn size(number: u32) -> usize {
    (number >> 16) as usize & 0x3fff
}

/// Calls an ioctl with an argument that is not there, comes late, or makes no sense.
fn torn_ioctl(stage: &mut Stage, device: &Device) {
    let number = stage.dice.pick(IOCTLS);
    let fault = &[BROKEN, Errno::FAULT, Errno::NOTTY];
    match stage.dice.below(4) {
        0 => {
            stage.call("ioctl at nothing", Wait::Short, fault, || {
                raw::call_at_nothing(device, number)
            });
        }
        1 => {
            let bytes = vec![0; stage.dice.below(size(number) as u64) as usize];
            stage.call("ioctl (torn)", Wait::Short, fault, || {
                Edge::new().call(device, number, &bytes)
            });
        }
        2 => {
            let mut bytes = [0; 256];
            stage.dice.fill(&mut bytes);
            if stage.dice.one_in(2) {
                bytes[1..].fill(0);
            }
            let manner = manner(stage);
            if let Some(page) = LatePage::get() {
                let late = || {
                    let fd = page.call(device, number, &bytes, manner)?;
                    close(number, fd);
                    Ok(())
                };
                stage.attempt("ioctl (late)", Wait::Short, late);
            }
        }
        _ => {
            // Of VDUSE, and with another number or another size.
            let other = number ^ 1 << stage.dice.below(32);
            let kind = (other >> 8) & 0xff;
            if !IOCTLS.contains(&other) && kind == number >> 8 & 0xff {
                let mut bytes = vec![0; size(other).max(PAGE as usize)];
                stage.attempt("ioctl (unknown)", Wait::Short, || {
                    raw::call(device, other, &mut bytes)
                });
            }
        }
    }
}

/// Closes what an ioctl answered, if that is a descriptor.
fn close(number: u32, fd: i32) {
    if [ioctl::IOTLB_GET_FD, ioctl::IOTLB_GET_FD2].contains(&number) {
        // SAFETY: The ioctl answers with a descriptor made for this call, which nobody else has.
        drop(unsafe { <File as std::os::fd::FromRawFd>::from_raw_fd(fd) });
    }
}

/// Writes to the configuration space.
fn set_config(stage: &mut Stage, device: &Device) {
    let offset = match stage.dice.below(4) {
        0 => stage.dice.next() as u32,
        1 => u32::MAX - stage.dice.below(8) as u32,
        _ => stage.dice.below(64) as u32,
    };
    let len = stage.dice.pick(&[0, 1, 2, 8, 64, 4096, 5000]);
    let mut data = vec![0; len];
    stage.dice.fill(&mut data);
    if stage.dice.one_in(4) {
        let bytes = Bytes::new().u32(offset).u32(stage.dice.next() as u32);
        let errors = &[BROKEN, Errno::INVAL, Errno::FAULT];
        stage.call("DEV_SET_CONFIG (torn)", Wait::Short, errors, || {
            Edge::new().call(device, ioctl::DEV_SET_CONFIG, &bytes.0)
        });
    } else {
        stage.call("DEV_SET_CONFIG", Wait::Short, INVALID, || {
            device.set_config(offset, &data)
        });
    }
}

/// Sets the kick eventfd of a virtqueue, or something else, or none.
fn kickfd(stage: &mut Stage, device: &Device) {
    let index = queue(stage);
    let Some(event) = stage.call("eventfd", Wait::Short, &[], EventFd::new) else {
        return;
    };
    let fd = match stage.dice.below(8) {
        0 => -1,
        1 => i32::MIN,
        2 => device.as_fd().as_raw_fd(),
        3 => 100_000,
        _ => event.as_fd().as_raw_fd(),
    };
    let errors = &[BROKEN, Errno::INVAL, Errno::BADF];
    stage.call("VQ_SETUP_KICKFD", Wait::Short, errors, || {
        device.set_kick_raw(&VqEventfd { index, fd })
    });
    if stage.dice.one_in(2) {
        stage.pause(3);
    }
}

/// Registers memory for the bounce area, or for what is none, and mostly takes it back.
fn umem(stage: &mut Stage, device: &Device) {
    let asid = if stage.dice.one_in(3) { asid(stage) } else { 0 };
    let mut umem = IovaUmem {
        asid,
        ..Default::default()
    };
    let info = stage.call("IOTLB_GET_INFO", Wait::Short, INVALID, || {
        device.iotlb_info(IovaInfo {
            asid,
            ..Default::default()
        })
    });
    umem.size = match (info, stage.dice.below(8)) {
        (_, 0) => stage.dice.next(),
        (_, 1) => PAGE,
        (Some(info), _) if info.capability != 0 => info.last - info.start + 1,
        _ => 1 << 20,
    };
    umem.iova = if stage.dice.one_in(12) { PAGE } else { 0 };
    // Twice as much as there is to be, so that what is registered is always inside.
    let len = umem.size.clamp(PAGE, 64 << 20) as usize;
    let anonymous = || Mapping::anonymous(2 * len);
    let Some(memory) = stage.call("mmap umem", Wait::Short, &[Errno::NOMEM], anonymous) else {
        return;
    };
    umem.uaddr = match stage.dice.below(12) {
        0 => 0,
        1 => memory.address() as u64 + 8,
        2 => u64::MAX - PAGE + 1,
        3..=4 => memory.address() as u64 + len as u64 / 2 / PAGE * PAGE,
        _ => memory.address() as u64,
    };
    let errors = &[
        BROKEN,
        Errno::INVAL,
        Errno::EXIST,
        Errno::NOMEM,
        Errno::FAULT,
    ];
    // SAFETY: What is registered is inside this function's own mapping, to whose memory there is
    // volatile access only, or nothing is there.
    let register = || unsafe { device.register_umem(&umem) };
    let registered = stage.call("IOTLB_REG_UMEM", Wait::Short, errors, register);
    if registered.is_some() {
        let pages = len as u64 / PAGE;
        let prober = Prober::new();
        for _ in 0..stage.dice.below(8) {
            let at = stage.dice.below(pages) * PAGE;
            let page = prober.read(memory.address().wrapping_add(at as usize), PAGE as usize);
            stage.inspect(&page.unwrap_or_default(), "registered memory");
        }
        stage.pause(10);
    }
    if stage.dice.one_in(4) {
        umem.size = stage.dice.next();
    }
    let errors = &[BROKEN, Errno::INVAL, Errno::NOENT];
    stage.call("IOTLB_DEREG_UMEM", Wait::Short, errors, || {
        device.deregister_umem(&umem)
    });
}

/// Finds a region, maps it in one way or another, and looks at it.
fn look(stage: &mut Stage, device: &Device) {
    let (start, last) = if stage.dice.one_in(2) {
        (stage.dice.pick(&[0, 64 << 20, 1 << 30]), u64::MAX)
    } else {
        range(stage)
    };
    let errors = &[BROKEN, Errno::INVAL, Errno::NOTTY];
    let region = if stage.dice.one_in(2) {
        stage.call("IOTLB_GET_FD", Wait::Short, errors, || {
            device.iotlb_fd(start, last)
        })
    } else {
        let entry = IotlbEntryV2 {
            start,
            last,
            asid: asid(stage),
            offset: stage.dice.next(),
            ..Default::default()
        };
        stage.call("IOTLB_GET_FD2", Wait::Short, errors, || {
            find_raw(device, &entry)
        })
    };
    if let Some(region) = region {
        // At 0 there is the bounce area, or a client's memory. Rings of the kernel's drivers, which
        // come behind, are not for scribbling: see `rings::ruin`.
        let may_scribble = region.first == 0;
        look_at(stage, &region, may_scribble);
    }
}

/// Mapping a region: the access may be more than the file allows, the length more than there is.
const MMAP: &[Errno] = &[Errno::INVAL, Errno::ACCESS, Errno::NOMEM, Errno::OVERFLOW];

fn look_at(stage: &mut Stage, region: &Region, may_scribble: bool) {
    let whole = (region.last - region.first).saturating_add(1);
    let beyond = stage.dice.below(2) * stage.dice.below(16) * PAGE;
    let offset = region.offset / PAGE * PAGE + beyond;
    let len = match stage.dice.below(4) {
        0 => PAGE,
        1 => 16 * PAGE,
        2 => whole.min(1 << 32),
        _ => 1 << 31,
    };
    let writable = stage.dice.one_in(2);
    let map = || FileMapping::new(region.file.as_fd(), offset, len as usize, writable);
    let Some(mut mapping) = stage.call("mmap a region", Wait::Short, MMAP, map) else {
        return;
    };
    let prober = Prober::new();
    for _ in 0..1 + stage.dice.below(6) {
        let pages = mapping.len() as u64 / PAGE;
        let first = stage.dice.pick(&[4, 64, u64::MAX]);
        let page = stage.dice.below(pages.min(first));
        let at = (page * PAGE) as usize;
        // Nothing of a client's file beyond what it has mapped is looked at: that file is the
        // daemon's to have.
        let inside = offset + page * PAGE < region.offset.saturating_add(whole);
        match stage.dice.below(12) {
            0..=5 => {
                let address = mapping.address().wrapping_add(at);
                let read = || prober.read(address, PAGE as usize);
                let read = stage.call("look at a page", Wait::Daemon, &[Errno::FAULT], read);
                if let Some(bytes) = read.filter(|_| inside) {
                    stage.inspect(&bytes, "a region");
                }
            }
            6..=7 => {
                let byte = mapping
                    .address()
                    .wrapping_add(at + stage.dice.below(PAGE) as usize);
                if writable && may_scribble {
                    let value = stage.dice.next() as u8;
                    let write = || prober.write(byte, value);
                    stage.call("scribble", Wait::Daemon, &[Errno::FAULT], write);
                }
            }
            8 => {
                let len = (1 + stage.dice.below(64) * PAGE).next_multiple_of(PAGE) as usize;
                let errors = &[Errno::NOMEM, Errno::FAULT, Errno::INVAL];
                stage.call("mremap", Wait::Short, errors, || mapping.resize(len));
            }
            9 => {
                stage.call("madvise", Wait::Short, &[Errno::INVAL], || mapping.forget());
            }
            10 => {
                stage.call("look in a child", Wait::Daemon, &[], || {
                    mapping.touch_in_child(at)
                });
            }
            _ => stage.pause(20),
        }
    }
    // Of a file of a client, all of it can be had; of the driver's own, nothing.
    let file = File::from(match region.file.try_clone() {
        Ok(file) => file,
        Err(_) => return,
    });
    let mut bytes = [0; 16];
    stage.attempt("read a region's file", Wait::Short, || {
        file.read_at(&mut bytes, offset)
    });
}
