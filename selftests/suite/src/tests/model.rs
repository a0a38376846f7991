// SPDX-License-Identifier: GPL-2.0

//! Calls, messages and bus operations in random order, with a small model of the protocol that
//! predicts each result.
//!
//! The model describes our driver. What the in-tree driver does differently is in [`Model`] as
//! well, at `in_tree`, and each difference is the subject of a test of its own in `DIFFERENCES.md`.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::Instant;

use rustix::io::Errno;
use vduse::request::{Answer, Kind};
use vduse::{Control, Device, Mapping};
use vduse_uapi::ACCESS_RW;
use vduse_uapi::{IovaInfo, IovaUmem, VqConfig};

use crate::differences;
use crate::lab::assert::random::Random;
use crate::lab::daemon::answered::agree;
use crate::lab::daemon::regions;
use crate::lab::daemon::responder::Responder;
use crate::lab::device::bus::{self, Driver, OnBus};
use crate::lab::device::spaces;
use crate::lab::device::test_device::TestDevice;
use crate::lab::device::virtio::feature;
use crate::lab::device::virtio::status::{
    ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, RESET, UP_TO_DRIVER_OK, UP_TO_FEATURES_OK,
};
use crate::lab::driver::vhost::{RingAddress, Vhost};
use crate::lab::kernel::memory::{self, PAGE};
use crate::lab::kernel::rcu::Expedited;
use crate::lab::run::report::note;
use crate::lab::run::settings::{driver, seed};

tests![random_operations_answer_as_the_model_says => 60];

const QUEUES: u32 = 3;
const GROUPS: u32 = 4;
const SPACES: u32 = 3;
const FILES: usize = 4;

/// The number of operations.
const OPERATIONS: usize = 5000;

/// The statuses that a client writes.
const STATUSES: [u8; 6] = [
    RESET,
    RESET,
    ACKNOWLEDGE,
    ACKNOWLEDGE | DRIVER,
    UP_TO_FEATURES_OK,
    UP_TO_DRIVER_OK,
];

/// An operation.
#[derive(Clone, Debug)]
enum Op {
    // Operations of the control device.
    CreateAgain,
    CreateBad {
        groups: u32,
        spaces: u32,
        version: u64,
    },
    Destroy,
    Renew,
    // Operations of the daemon.
    OpenAgain,
    SetUp {
        queue: u32,
        size: u16,
        group: u32,
        reserved: bool,
    },
    QueueInfo {
        queue: u32,
    },
    Features,
    Interrupt {
        queue: u32,
    },
    Find {
        asid: u32,
        first: u64,
        last: u64,
        reserved: bool,
    },
    FindOld {
        first: u64,
        last: u64,
    },
    Info {
        asid: u32,
        first: u64,
        last: u64,
    },
    Register {
        asid: u32,
    },
    Deregister {
        asid: u32,
    },
    /// Whether requests fail from now on.
    Refuse(bool),
    // Operations of the bus.
    Attach,
    Open,
    Close,
    // Operations of the driver.
    Own,
    Backend,
    Group {
        queue: u32,
    },
    Move {
        group: u32,
        asid: u32,
    },
    Map {
        asid: u32,
        iova: u64,
        file: usize,
        pages: u64,
        access: u8,
    },
    Unmap {
        asid: u32,
        iova: u64,
        pages: u64,
    },
    Begin {
        asid: u32,
    },
    End {
        asid: u32,
    },
    Status(u8),
    SetFeatures(u64),
    Size {
        queue: u32,
        size: u32,
    },
    Address {
        queue: u32,
        at: u64,
    },
    Base {
        queue: u32,
        base: u32,
    },
    State {
        queue: u32,
    },
    Enable {
        queue: u32,
    },
}

/// The result of an operation, numbers or an error, and the requests that the daemon had to answer.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    answer: Result<Vec<u64>, Errno>,
    requests: Vec<Kind>,
}

/// A mapping.
#[derive(Clone, Copy, Debug)]
struct Map {
    pages: u64,
    file: usize,
    access: u8,
}

impl Map {
    fn last(&self, first: u64) -> u64 {
        first + self.pages * PAGE - 1
    }
}

type Maps = BTreeMap<u64, Map>;

/// Returns the first mapping that overlaps a range of addresses.
fn find(maps: &Maps, first: u64, last: u64) -> Option<(u64, Map)> {
    let mut overlapping = maps
        .iter()
        .filter(|&(&at, map)| at <= last && map.last(at) >= first);
    overlapping.next().map(|(&at, &map)| (at, map))
}

/// A virtqueue.
#[derive(Clone, Copy, Debug, Default)]
struct Queue {
    max_size: u16,
    group: u32,
    num: u64,
    at: u64,
    base: u64,
    ready: u64,
}

impl Queue {
    fn reset(&mut self) {
        *self = Self {
            max_size: self.max_size,
            group: self.group,
            ..Self::default()
        };
    }
}

/// A client of vhost.
#[derive(Clone, Debug, Default)]
struct Client {
    owned: bool,
    asids: bool,
    /// The mappings that the client asked for, by address space; `None` before vhost has created
    /// the address space.
    wanted: [Option<Maps>; SPACES as usize],
    batch: Option<u32>,
    max_size: u16,
}

/// The expected state.
#[derive(Debug)]
struct Model {
    in_tree: bool,
    refuse: bool,
    attached: bool,
    client: Option<Client>,
    status: u8,
    features: u64,
    queues: [Queue; QUEUES as usize],
    /// The mappings that the daemon sees.
    maps: [Maps; SPACES as usize],
    requests: Vec<Kind>,
}

/// Returns the features that the device offers.
fn offered() -> u64 {
    vduse::blk::FEATURES
}

impl Model {
    fn new(in_tree: bool) -> Self {
        Self {
            in_tree,
            refuse: false,
            attached: false,
            client: None,
            status: 0,
            features: 0,
            queues: Default::default(),
            maps: Default::default(),
            requests: Vec::new(),
        }
    }

    /// Sends a request to the daemon, and returns whether the daemon agrees.
    fn ask(&mut self, kind: Kind) -> bool {
        self.requests.push(kind);
        !self.refuse
    }

    fn reset(&mut self) -> bool {
        let agreed = self.ask(Kind::SetStatus(RESET));
        self.status = 0;
        self.features = 0;
        for queue in &mut self.queues {
            queue.reset();
        }
        agreed
    }

    fn client(&mut self) -> &mut Client {
        self.client.as_mut().expect("a client")
    }

    /// Hands the device the mappings that the client asks for, and returns whether the daemon
    /// agrees.
    fn set_map(&mut self, asid: u32) -> bool {
        let wanted = self.client().wanted[asid as usize]
            .clone()
            .unwrap_or_default();
        let agreed = self.ask(Kind::UpdateIotlb {
            first: 0,
            last: u64::MAX,
            asid,
        });
        let maps = &mut self.maps[asid as usize];
        if agreed {
            *maps = wanted;
        } else if self.in_tree {
            // spaces::set_map_that_the_daemon_refuses_leaves_what_was_there
            maps.clear();
        } else {
            // Mappings that were there and are still wanted stay.
            maps.retain(|at, _| wanted.contains_key(at));
        }
        agreed
    }

    fn region(found: Option<(u64, Map)>) -> Result<Vec<u64>, Errno> {
        let (at, map) = found.ok_or(Errno::INVAL)?;
        Ok(vec![
            at,
            map.last(at),
            0,
            map.access.into(),
            map.file as u64,
        ])
    }

    /// Returns a virtqueue by its index, with the checks of vhost.
    fn vhost_queue(&mut self, queue: u32) -> Result<&mut Queue, Errno> {
        if !self.client().owned {
            return Err(Errno::PERM);
        }
        self.queues.get_mut(queue as usize).ok_or(Errno::NOBUFS)
    }

    /// Returns the address space that a message about mappings names.
    fn message(&mut self, asid: u32, makes: bool) -> Result<usize, Errno> {
        let client = self.client();
        let asid = if client.asids { asid } else { 0 };
        if !client.owned || asid >= SPACES {
            return Err(Errno::FAULT);
        }
        let wanted = &mut client.wanted[asid as usize];
        if makes {
            wanted.get_or_insert_with(Maps::new);
        }
        if wanted.is_none() || client.batch.is_some_and(|batch| batch != asid) {
            return Err(Errno::FAULT);
        }
        Ok(asid as usize)
    }

    /// Applies an operation, and returns the expected outcome.
    fn apply(&mut self, op: &Op) -> Outcome {
        let answer = self.answer(op);
        Outcome {
            answer,
            requests: std::mem::take(&mut self.requests),
        }
    }

    fn answer(&mut self, op: &Op) -> Result<Vec<u64>, Errno> {
        let ok = Ok(Vec::new());
        match *op {
            Op::CreateAgain => Err(Errno::EXIST),
            Op::CreateBad { .. } => Err(Errno::INVAL),
            Op::Destroy | Op::OpenAgain => Err(Errno::BUSY),
            Op::Renew => {
                if self.client.is_some() {
                    self.reset();
                }
                self.requests.clear();
                *self = Self::new(self.in_tree);
                ok
            }
            Op::SetUp {
                queue,
                size,
                group,
                reserved,
            } => {
                let (attached, ready) = (self.attached, self.status & DRIVER_OK != 0);
                let old = self
                    .queues
                    .get_mut(queue as usize)
                    .filter(|_| group < GROUPS && !reserved)
                    .ok_or(Errno::INVAL)?;
                let refused = if self.in_tree {
                    // groups::vq_setup_is_refused_once_attached_unless_it_repeats_what_is_there
                    ready
                } else {
                    attached && (old.max_size, old.group) != (size, group)
                };
                if refused {
                    return Err(Errno::INVAL);
                }
                (old.max_size, old.group) = (size, group);
                ok
            }
            Op::QueueInfo { queue } => {
                let queue = self.queues.get(queue as usize).ok_or(Errno::INVAL)?;
                Ok(vec![queue.num, queue.at, queue.base, queue.ready])
            }
            Op::Features => Ok(vec![self.features]),
            Op::Interrupt { queue } => {
                if queue < QUEUES && self.status & DRIVER_OK != 0 {
                    ok
                } else {
                    Err(Errno::INVAL)
                }
            }
            Op::Find {
                asid,
                first,
                last,
                reserved,
            } => {
                let maps = self.maps.get(asid as usize).ok_or(Errno::INVAL)?;
                if reserved || first > last {
                    return Err(Errno::INVAL);
                }
                Self::region(find(maps, first, last))
            }
            Op::FindOld { first, last } => {
                if first > last {
                    return Err(Errno::INVAL);
                }
                Self::region(find(&self.maps[0], first, last))
            }
            Op::Info { asid, first, last } => {
                // spaces::get_info_of_an_asid_out_of_range_is_einval
                let none = if self.in_tree {
                    Errno::FAULT
                } else {
                    Errno::INVAL
                };
                let maps = self.maps.get(asid as usize).ok_or(none)?;
                if first > last {
                    return Err(Errno::INVAL);
                }
                let found = Self::region(find(maps, first, last))?;
                Ok(vec![found[0], found[1], 0])
            }
            // Only a kernel driver has a bounce area.
            Op::Register { .. } => Err(Errno::INVAL),
            Op::Deregister { asid } => Err(if asid < SPACES {
                Errno::NOENT
            } else {
                Errno::INVAL
            }),
            Op::Refuse(refuse) => {
                self.refuse = refuse;
                ok
            }
            Op::Attach => {
                if self.attached {
                    return Err(Errno::EXIST);
                }
                if self.queues.iter().any(|queue| queue.max_size == 0) {
                    return Err(Errno::INVAL);
                }
                self.attached = true;
                ok
            }
            Op::Open => {
                if self.client.is_some() {
                    return Err(Errno::BUSY);
                }
                if !self.reset() {
                    return Err(Errno::IO);
                }
                let sizes = self.queues.iter().map(|queue| queue.max_size);
                self.client = Some(Client {
                    max_size: sizes.max().unwrap_or(0),
                    ..Default::default()
                });
                ok
            }
            Op::Close => {
                let client = self.client.take().expect("a client");
                self.reset();
                // spaces::closing_the_client_empties_all_spaces
                if !self.in_tree {
                    for (maps, wanted) in self.maps.iter_mut().zip(client.wanted) {
                        if wanted.is_some() {
                            maps.clear();
                        }
                    }
                }
                ok
            }
            Op::Own => {
                if std::mem::replace(&mut self.client().owned, true) {
                    return Err(Errno::BUSY);
                }
                ok
            }
            Op::Backend => {
                self.client().asids = true;
                ok
            }
            Op::Group { queue } => {
                let group = self.vhost_queue(queue)?.group;
                Ok(vec![group.into()])
            }
            Op::Move { group, asid } => {
                self.vhost_queue(group)?;
                if group >= GROUPS || asid >= SPACES {
                    return Err(Errno::INVAL);
                }
                if self.status & DRIVER_OK != 0 {
                    return Err(Errno::BUSY);
                }
                if self.ask(Kind::SetGroupAsid { group, asid }) {
                    ok
                } else {
                    Err(Errno::IO)
                }
            }
            Op::Map {
                asid,
                iova,
                file,
                pages,
                access,
            } => {
                let asid = self.message(asid, true)?;
                let client = self.client.as_mut().expect("a client");
                let wanted = client.wanted[asid].as_mut().expect("an address space");
                let map = Map {
                    pages,
                    file,
                    access,
                };
                if find(wanted, iova, map.last(iova)).is_some() {
                    return Err(Errno::FAULT);
                }
                wanted.insert(iova, map);
                if client.batch.is_none() && !self.set_map(asid as u32) {
                    let wanted = &mut self.client().wanted[asid];
                    wanted.as_mut().expect("an address space").remove(&iova);
                    // vhost hands the device the remaining mappings.
                    self.set_map(asid as u32);
                    return Err(Errno::FAULT);
                }
                ok
            }
            Op::Unmap { asid, iova, pages } => {
                let asid = self.message(asid, false)?;
                let client = self.client.as_mut().expect("a client");
                let wanted = client.wanted[asid].as_mut().expect("an address space");
                let last = iova + pages * PAGE - 1;
                while let Some((at, _)) = find(wanted, iova, last) {
                    wanted.remove(&at);
                }
                if client.batch.is_none() {
                    self.set_map(asid as u32);
                }
                ok
            }
            Op::Begin { asid } => {
                let asid = self.message(asid, true)?;
                self.client().batch = Some(asid as u32);
                ok
            }
            Op::End { asid } => {
                let asid = self.message(asid, false)?;
                if self.client().batch.take().is_some() {
                    self.set_map(asid as u32);
                }
                ok
            }
            Op::Status(status) => {
                if status == 0 {
                    // vhost forgets the largest size first.
                    self.client().max_size = 0;
                    if !self.reset() {
                        return Err(Errno::IO);
                    }
                    let sizes = self.queues.iter().map(|queue| queue.max_size);
                    self.client().max_size = sizes.max().unwrap_or(0);
                } else if self.status & !status != 0 {
                    return Err(Errno::INVAL);
                } else if self.ask(Kind::SetStatus(status)) {
                    self.status = status;
                }
                Ok(vec![self.status.into()])
            }
            Op::SetFeatures(features) => {
                if self.status & FEATURES_OK != 0 {
                    return Err(Errno::BUSY);
                }
                self.features = features;
                ok
            }
            Op::Size { queue, size } => {
                let most = u32::from(self.client().max_size);
                let queue = self.vhost_queue(queue)?;
                if size > most || !size.is_power_of_two() {
                    return Err(Errno::INVAL);
                }
                queue.num = size.into();
                ok
            }
            Op::Address { queue, at } => {
                let ready = self.status & DRIVER_OK != 0;
                let queue = self.vhost_queue(queue)?;
                if ready {
                    return Err(Errno::INVAL);
                }
                queue.at = at;
                ok
            }
            Op::Base { queue, base } => {
                let ready = self.status & DRIVER_OK != 0;
                let queue = self.vhost_queue(queue)?;
                if base > 0xffff || ready {
                    return Err(Errno::INVAL);
                }
                queue.base = base.into();
                ok
            }
            Op::State { queue } => {
                self.vhost_queue(queue)?;
                if self.ask(Kind::GetVqState { index: queue }) {
                    Ok(vec![0])
                } else {
                    Err(Errno::IO)
                }
            }
            Op::Enable { queue } => {
                self.vhost_queue(queue)?.ready = 1;
                ok
            }
        }
    }

    /// Chooses an operation.
    fn choose(&self, random: &mut Random) -> Op {
        let mut below = |end: u64| random.below(end);
        // Mostly a valid index.
        let queue = below(u64::from(QUEUES) * 4) as u32;
        let queue = match queue / QUEUES {
            3 => [QUEUES, u32::MAX, 0x1_0000, GROUPS][(queue % QUEUES) as usize],
            _ => queue % QUEUES,
        };
        let asid = below(u64::from(SPACES) * 6) as u32;
        let asid = match asid / SPACES {
            5 => [SPACES, u32::MAX, 0x1_0000][(asid % SPACES) as usize],
            _ => asid % SPACES,
        };
        let group = below(u64::from(GROUPS) + 1) as u32;
        let iova = (1 + below(16)) * PAGE;
        let (first, last) = (below(20) * PAGE, below(20) * PAGE + PAGE - 1);
        let bit = |n: u64| n == 0;
        if self.client.is_none() && below(4) == 0 {
            return if self.attached { Op::Open } else { Op::Attach };
        }
        if let Some(client) = &self.client {
            if !client.owned && below(4) == 0 {
                return Op::Own;
            }
            if !client.asids && below(4) == 0 {
                return Op::Backend;
            }
            if below(3) != 0 {
                return match below(34) {
                    0 => Op::Close,
                    1 => Op::Own,
                    2 => Op::Group { queue },
                    3..=6 => Op::Move {
                        group: if below(8) == 0 {
                            queue
                        } else {
                            below(3) as u32
                        },
                        asid,
                    },
                    7..=13 => Op::Map {
                        asid,
                        iova,
                        file: below(FILES as u64) as usize,
                        pages: 1 + below(3),
                        access: 1 + below(3) as u8,
                    },
                    14..=17 => Op::Unmap {
                        asid,
                        iova,
                        pages: 1 + below(6),
                    },
                    18 => Op::Begin { asid },
                    // Batches should not last.
                    19..=21 => Op::End {
                        asid: client.batch.unwrap_or(asid),
                    },
                    22..=25 => Op::Status(STATUSES[below(6) as usize]),
                    26 => Op::SetFeatures(offered() & (feature::ACCESS_PLATFORM | below(1 << 32))),
                    27 => Op::Size {
                        queue,
                        size: [0, 1, 3, 8, 256, 512, 0x1_0000][below(7) as usize],
                    },
                    28..=29 => Op::Address { queue, at: iova },
                    30 => Op::Base {
                        queue,
                        base: below(0x1_1000) as u32,
                    },
                    31 => Op::State { queue },
                    _ => Op::Enable { queue },
                };
            }
        }
        match below(40) {
            0 => Op::CreateAgain,
            1 => Op::CreateBad {
                groups: [0, 1, 0x1_0000][below(3) as usize],
                spaces: [0, 0x1_0000, u32::MAX][below(3) as usize],
                version: below(2),
            },
            2 => Op::Destroy,
            3 => Op::OpenAgain,
            4 if below(4) == 0 => Op::Renew,
            5..=11 => Op::SetUp {
                queue,
                size: [64, 128, 256][below(3) as usize],
                group,
                reserved: bit(below(8)),
            },
            12..=15 => Op::QueueInfo { queue },
            16 => Op::Features,
            17..=18 => Op::Interrupt { queue },
            19..=26 => Op::Find {
                asid,
                first,
                last,
                reserved: bit(below(8)),
            },
            27..=29 => Op::FindOld { first, last },
            30..=33 => Op::Info { asid, first, last },
            34 => Op::Register { asid },
            35 => Op::Deregister { asid },
            36 => Op::Refuse(true),
            _ => Op::Refuse(false),
        }
    }
}

/// The real device. The fields are dropped in this order.
struct Real {
    vhost: Option<Vhost>,
    on_bus: Option<OnBus>,
    responder: Responder,
    refuse: Arc<AtomicBool>,
    file: Arc<Device>,
    device: TestDevice,
    config: vduse::DeviceConfig,
}

/// Files to be mapped. Each is identified by its inode, and mapped with 1, 2 and 3 pages.
struct Files {
    inodes: Vec<u64>,
    mappings: Vec<[Mapping; 3]>,
}

impl Files {
    #[track_caller]
    fn new() -> Self {
        let files: Vec<_> = (0..FILES).map(|_| memory::file(3 * PAGE)).collect();
        let map = |file: &std::fs::File, pages: u64| {
            Mapping::of_file(file.as_fd(), 0, pages * PAGE, ACCESS_RW).expect("mapping")
        };
        Self {
            inodes: files
                .iter()
                .map(|file| rustix::fs::fstat(file).expect("a file").st_ino)
                .collect(),
            mappings: files
                .iter()
                .map(|file| [1, 2, 3].map(|pages| map(file, pages)))
                .collect(),
        }
    }
}

impl Real {
    #[track_caller]
    fn new() -> Self {
        let config = spaces::config(QUEUES as u16, GROUPS, SPACES);
        let device = spaces::create(&config).expect("creating");
        let file = Arc::new(device.open_nonblocking());
        let refuse = Arc::new(AtomicBool::new(false));
        let theirs = refuse.clone();
        let responder = Responder::new(&file, move |request| {
            if theirs.load(Ordering::Relaxed) {
                return Some(Answer::Failed);
            }
            agree(request)
        });
        Self {
            vhost: None,
            on_bus: None,
            responder,
            refuse,
            file,
            device,
            config,
        }
    }

    fn apply(&mut self, op: &Op, files: &Files) -> Outcome {
        let answer = self.answer(op, files);
        let answer = answer.map_err(|error| {
            Errno::from_io_error(&error).unwrap_or_else(|| panic!("{op:?}: {error}"))
        });
        Outcome {
            answer,
            requests: self.responder.take_kinds(),
        }
    }

    fn region(region: vduse::device::Region, files: &Files) -> io::Result<Vec<u64>> {
        let inode = rustix::fs::fstat(&region.file)?.st_ino;
        let file = files.inodes.iter().position(|&known| known == inode);
        Ok(vec![
            region.first,
            region.last,
            region.offset,
            region.access.into(),
            file.map_or(u64::MAX, |file| file as u64),
        ])
    }

    fn answer(&mut self, op: &Op, files: &Files) -> io::Result<Vec<u64>> {
        let none = |()| Vec::new();
        let file = &self.file;
        let vhost = || self.vhost.as_ref().expect("a client");
        match *op {
            Op::CreateAgain => Control::open_v1()?.create(&self.config).map(none),
            Op::CreateBad {
                groups,
                spaces,
                version,
            } => {
                let mut config = spaces::config(1, groups, spaces);
                if version == 0 && groups == 0 && spaces == 0 {
                    config.groups = 1;
                }
                let control = Control::open()?;
                control.set_api_version(version)?;
                control.create(&config).map(none)
            }
            Op::Destroy => Control::open()?.destroy(self.device.name()).map(none),
            Op::Renew => {
                self.refuse.store(false, Ordering::Relaxed);
                self.vhost = None;
                self.on_bus = None;
                *self = Self::new();
                Ok(Vec::new())
            }
            Op::OpenAgain => Device::open(self.device.name()).map(|_| Vec::new()),
            Op::SetUp {
                queue,
                size,
                group,
                reserved,
            } => {
                let mut config = VqConfig {
                    index: queue,
                    max_size: size,
                    group,
                    ..Default::default()
                };
                config.reserved2[4] = reserved.into();
                file.vq_setup_raw(&config).map(none)
            }
            Op::QueueInfo { queue } => {
                let info = file.vq_info(queue)?;
                Ok(vec![
                    info.num.into(),
                    info.desc_addr,
                    info.state.split().into(),
                    info.ready.into(),
                ])
            }
            Op::Features => Ok(vec![file.features()?]),
            Op::Interrupt { queue } => file.inject_vq_irq(queue).map(none),
            Op::Find {
                asid,
                first,
                last,
                reserved,
            } => {
                let found = if reserved {
                    regions::find_reserved(file, asid, first, last)
                } else {
                    file.iotlb_fd2(asid, first, last)
                };
                Self::region(found?, files)
            }
            Op::FindOld { first, last } => Self::region(file.iotlb_fd(first, last)?, files),
            Op::Info { asid, first, last } => {
                let info = file.iotlb_info(IovaInfo {
                    start: first,
                    last,
                    asid,
                    ..Default::default()
                })?;
                Ok(vec![info.start, info.last, info.capability])
            }
            Op::Register { asid } => {
                let umem = umem(asid);
                // SAFETY: The registration is refused, as there is nothing to be backed.
                unsafe { file.register_umem(&umem) }.map(none)
            }
            Op::Deregister { asid } => file.deregister_umem(&umem(asid)).map(none),
            Op::Refuse(refuse) => {
                self.refuse.store(refuse, Ordering::Relaxed);
                Ok(Vec::new())
            }
            Op::Attach => {
                let on_bus = OnBus::add(self.device.name())?;
                on_bus.bind(Driver::Vhost)?;
                self.on_bus = Some(on_bus);
                Ok(Vec::new())
            }
            Op::Open => {
                let path = bus::vhost_path(self.device.name()).expect("a node");
                let vhost = Vhost::open(&path)?;
                self.vhost = Some(vhost);
                Ok(Vec::new())
            }
            Op::Close => {
                self.vhost = None;
                Ok(Vec::new())
            }
            Op::Own => vhost().set_owner().map(none),
            Op::Backend => vhost().set_backend_features_asid().map(none),
            Op::Group { queue } => Ok(vec![vhost().group_of(queue)?.into()]),
            Op::Move { group, asid } => vhost().set_group_asid(group, asid).map(none),
            Op::Map {
                asid,
                iova,
                file,
                pages,
                access,
            } => {
                let mapping = &files.mappings[file][pages as usize - 1];
                vhost().map_in(asid, iova, mapping, access).map(none)
            }
            Op::Unmap { asid, iova, pages } => vhost().unmap_in(asid, iova, pages * PAGE).map(none),
            Op::Begin { asid } => vhost().batch_begin(asid).map(none),
            Op::End { asid } => vhost().batch_end(asid).map(none),
            Op::Status(status) => {
                vhost().set_status(status)?;
                Ok(vec![vhost().status()?.into()])
            }
            Op::SetFeatures(features) => vhost().set_features(features).map(none),
            Op::Size { queue, size } => vhost().set_queue_size(queue, size).map(none),
            Op::Address { queue, at } => {
                let address = RingAddress {
                    desc: at,
                    avail: at,
                    used: at,
                };
                vhost().set_queue_address(queue, address).map(none)
            }
            Op::Base { queue, base } => vhost().set_queue_base(queue, base).map(none),
            Op::State { queue } => Ok(vec![vhost().queue_base(queue)?.into()]),
            Op::Enable { queue } => vhost().enable_queue(queue).map(none),
        }
    }
}

fn umem(asid: u32) -> IovaUmem {
    IovaUmem {
        size: PAGE,
        asid,
        ..Default::default()
    }
}

fn random_operations_answer_as_the_model_says() {
    let _expedited = Expedited::new();
    let mut random = Random::new(seed());
    let files = Files::new();
    let mut model = Model::new(driver() == differences::Driver::C);
    let mut real = Real::new();
    let mut last = VecDeque::new();
    let mut kinds = HashSet::new();
    let mut good = 0;
    let begin = Instant::now();
    for number in 0..OPERATIONS {
        let op = model.choose(&mut random);
        let found = real.apply(&op, &files);
        let before = format!("{model:?}");
        let expected = model.apply(&op);
        last.push_back(format!("{number}: {op:?} -> {found:?}"));
        if last.len() > 12 {
            last.pop_front();
        }
        if found != expected {
            let history: Vec<_> = last.into();
            panic!(
                "operation {number} was to answer {expected:?}; the last ones:\n{}\nbefore it:\n{before}",
                history.join("\n")
            );
        }
        good += u32::from(found.answer.is_ok());
        kinds.insert(std::mem::discriminant(&op));
    }
    note(format_args!(
        "{OPERATIONS} operations of {} kinds, {good} of them carried out, in {:?}",
        kinds.len(),
        begin.elapsed()
    ));
}
