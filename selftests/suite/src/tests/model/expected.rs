// SPDX-License-Identifier: GPL-2.0

//! The model, which predicts the outcome of each operation.
//!
//! The model describes vduse_rs. If `in_tree` is set, [`Model`] describes the in-tree driver
//! instead. `DIFFERENCES.md` lists a separate test for each difference.

use std::collections::BTreeMap;

use rustix::io::Errno;
use vduse::request::Kind;

use crate::lab::device::virtio::status::{DRIVER_OK, FEATURES_OK, RESET};
use crate::lab::kernel::memory::PAGE;
use crate::tests::model::operation::{Op, Outcome, Support, GROUPS, QUEUES, SPACES};

/// A mapping in an address space.
#[derive(Clone, Copy, Debug)]
pub(super) struct Map {
    pages: u64,
    file: usize,
    access: u8,
}

impl Map {
    fn last(&self, first: u64) -> u64 {
        first + self.pages * PAGE - 1
    }
}

pub(super) type Maps = BTreeMap<u64, Map>;

/// Returns the first mapping that overlaps a range of addresses.
fn find(maps: &Maps, first: u64, last: u64) -> Option<(u64, Map)> {
    let mut overlapping = maps
        .iter()
        .filter(|&(&at, map)| at <= last && map.last(at) >= first);
    overlapping.next().map(|(&at, &map)| (at, map))
}

/// A virtqueue.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Queue {
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
pub(super) struct Client {
    pub(super) owned: bool,
    pub(super) asids: bool,
    /// The mappings that the client has requested, by address space. `None` means that vhost has
    /// not created the address space yet.
    pub(super) wanted: [Option<Maps>; SPACES as usize],
    pub(super) batch: Option<u32>,
    pub(super) max_size: u16,
    /// Whether vhost regards the device as suspended. After `DRIVER_OK`, vhost lets the client
    /// change the addresses and positions of virtqueues only while this flag is set.
    pub(super) suspended: bool,
}

/// The expected state of the device, of its daemon, and of its client.
#[derive(Debug)]
pub(super) struct Model {
    pub(super) in_tree: bool,
    pub(super) support: Support,
    pub(super) refuse: bool,
    pub(super) attached: bool,
    pub(super) client: Option<Client>,
    pub(super) status: u8,
    pub(super) suspended: bool,
    pub(super) features: u64,
    pub(super) queues: [Queue; QUEUES as usize],
    /// The mappings that the daemon can look up, by address space.
    pub(super) maps: [Maps; SPACES as usize],
    pub(super) requests: Vec<Kind>,
}

impl Model {
    pub(super) fn new(in_tree: bool, support: Support) -> Self {
        Self {
            in_tree,
            support,
            refuse: false,
            attached: false,
            client: None,
            status: 0,
            suspended: false,
            features: 0,
            queues: Default::default(),
            maps: Default::default(),
            requests: Vec::new(),
        }
    }

    /// Adds a request to those that the daemon is expected to receive. Returns whether the daemon
    /// agrees to the request.
    fn ask(&mut self, kind: Kind) -> bool {
        self.requests.push(kind);
        !self.refuse
    }

    fn reset(&mut self) -> bool {
        let agreed = self.ask(Kind::SetStatus(RESET));
        self.status = 0;
        self.suspended = false;
        self.features = 0;
        for queue in &mut self.queues {
            queue.reset();
        }
        agreed
    }

    fn client(&mut self) -> &mut Client {
        self.client.as_mut().expect("a client")
    }

    /// Passes all requested mappings of an address space to the device. Returns whether the daemon
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
            // The in-tree driver differs: see the test
            // spaces::set_map_that_the_daemon_refuses_leaves_what_was_there.
            maps.clear();
        } else {
            // Existing mappings stay if the client still requests them.
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

    /// Returns a virtqueue by its index, after the checks that vhost makes.
    fn vhost_queue(&mut self, queue: u32) -> Result<&mut Queue, Errno> {
        if !self.client().owned {
            return Err(Errno::PERM);
        }
        self.queues.get_mut(queue as usize).ok_or(Errno::NOBUFS)
    }

    /// Returns the address space of an IOTLB message. If `makes` is set, vhost creates a missing
    /// address space.
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
    pub(super) fn apply(&mut self, op: &Op) -> Outcome {
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
                *self = Self::new(self.in_tree, self.support);
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
                    // The in-tree driver differs: see the test
                    // groups::vq_setup_is_refused_once_attached_unless_it_repeats_what_is_there.
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
                if queue < QUEUES && self.status & DRIVER_OK != 0 && !self.suspended {
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
                // The in-tree driver differs: see the test
                // spaces::get_info_of_an_asid_out_of_range_is_einval.
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
                // The in-tree driver differs: see the test
                // spaces::closing_the_client_empties_all_spaces.
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
                    // vhost drops the refused mapping, and passes the other mappings to the device
                    // once more.
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
                    // vhost sets its maximum queue size to 0 before the reset.
                    self.client().max_size = 0;
                    self.client().suspended = false;
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
                let ready = self.status & DRIVER_OK != 0 && !self.client().suspended;
                let queue = self.vhost_queue(queue)?;
                if ready {
                    return Err(Errno::INVAL);
                }
                queue.at = at;
                ok
            }
            Op::Base { queue, base } => {
                let ready = self.status & DRIVER_OK != 0 && !self.client().suspended;
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
            Op::Enable { queue, ready } => {
                self.vhost_queue(queue)?;
                if self.support.queue_ready {
                    let agreed = self.ask(Kind::SetVqReady {
                        index: queue,
                        ready,
                    });
                    assert!(agreed, "a refusal breaks the device");
                }
                self.vhost_queue(queue)?.ready = ready.into();
                ok
            }
            Op::Suspend => {
                if self.status & DRIVER_OK == 0 {
                    return ok;
                }
                if !self.support.suspend {
                    return Err(Errno::OPNOTSUPP);
                }
                if !self.ask(Kind::Suspend) {
                    return Err(Errno::IO);
                }
                self.suspended = true;
                self.client().suspended = true;
                ok
            }
            Op::Resume => {
                if self.status & DRIVER_OK == 0 {
                    return ok;
                }
                if !self.support.resume {
                    return Err(Errno::OPNOTSUPP);
                }
                if self.suspended && !self.ask(Kind::Resume) {
                    return Err(Errno::IO);
                }
                self.suspended = false;
                self.client().suspended = false;
                ok
            }
        }
    }
}
