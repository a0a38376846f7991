// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The part of a server that follows the driver: which virtqueues it has enabled, where their
//! memory is, whether it has suspended the device. Servers differ in how they serve the virtqueues.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::event::Timespec;
use virtio_bindings::virtio_config::{VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_F_RING_PACKED};

use crate::eventfd::EventFd;
use crate::iotlb::{AddressSpace, SpaceOf};
use crate::request::{Answer, Kind, Request};
use crate::server::handle::{Command, Handle, Served};
use crate::server::virtqueue::{differ, State, VirtQueue};
use crate::state::DeviceState;
use crate::uapi;
use crate::umem::Umem;
use crate::virtqueue::{InFlightLog, Memory, Position, Settings, Virtqueue, MAX_SIZE};
use crate::{Device, Mapping};

/// Interval at which a server looks for what the kernel sends no message about, if that is to be
/// expected soon.
pub(super) const SOON: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 10_000_000,
};

/// The interval if it is not.
const LATER: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};

/// How often a server looks at the shorter interval for the mapping of the bounce area.
const SOON_TRIES: u32 = 100;

/// An event that concerns the whole device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// The server begins to serve the driver, or the driver has enabled more virtqueues. The driver
    /// has accepted these feature bits.
    Started(u64),
    /// The driver has moved a virtqueue group to an address space.
    Moved { group: u32, asid: u32 },
    /// The driver suspends the device.
    Suspending,
    /// The driver has reset the device.
    Reset,
}

/// The receiver of the events of a session.
pub(super) type OnEvent<'a> = &'a mut dyn FnMut(Event);

/// The virtqueues and the address spaces of a device.
#[derive(Clone, Copy, Debug)]
pub(super) enum Shape<'a> {
    /// The device has one address space. The slice has the maximum size of each virtqueue.
    Sizes(&'a [u16]),
    /// The device is on the vDPA bus, so this number of virtqueues is set up already.
    TakeOver(usize),
    /// The device is of version 1. The slice has the maximum size and the group of each virtqueue.
    /// The number is that of the address spaces.
    Groups(&'a [(u16, u32)], u32),
}

/// A device and what its driver has set.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) device: Arc<Device>,
    /// The address spaces, indexed by ASID.
    spaces: Vec<Memory>,
    pub(super) queues: Vec<VirtQueue>,
    features: u64,
    /// Whether the driver has set `DRIVER_OK`. If the VDUSE driver does not show the status in
    /// sysfs, a server that takes a device over starts with false until the status next changes.
    driver_ok: bool,
    /// Whether the kernel sends a `SET_VQ_READY` request to this server before a virtqueue becomes
    /// ready.
    asked: bool,
    /// Whether the driver has suspended the device.
    suspended: bool,
    umem: Option<Umem>,
    /// Whether the server still has to register memory of its own, once that is possible.
    umem_is_due: bool,
    /// How often the server has tried that for this driver.
    umem_tries: u32,
    /// Whether the server registers memory of its own for each driver.
    uses_umem: bool,
    /// The log of the requests in flight, if the server completes requests in any order.
    log: Option<InFlightLog>,
    /// Creates a virtqueue's kick eventfd.
    new_kick: fn() -> io::Result<EventFd>,
    pub(super) control: Served,
}

impl Session {
    /// Creates a session for a device. `kick` creates the virtqueues' kick eventfds.
    pub(super) fn new(
        device: Device,
        shape: Shape<'_>,
        log: Option<InFlightLog>,
        kick: fn() -> io::Result<EventFd>,
        on: OnEvent<'_>,
    ) -> io::Result<Self> {
        let device = Arc::new(device);
        let in_group_0 = |size: &u16| (*size, 0);
        let (queues, spaces) = match shape {
            Shape::Sizes(sizes) => (sizes.iter().map(in_group_0).collect(), None),
            Shape::TakeOver(queues) => (vec![(MAX_SIZE, 0); queues], None),
            Shape::Groups(queues, spaces) => (queues.to_vec(), Some(spaces)),
        };
        let space = |asid| {
            let device = device.clone();
            Arc::new(AddressSpace::new(Arc::new(SpaceOf { device, asid })))
        };
        let spaces = match spaces {
            Some(spaces) => (0..spaces).map(space).collect(),
            None => vec![Arc::new(AddressSpace::new(device.clone()))],
        };
        if !matches!(shape, Shape::TakeOver(_)) {
            set_up(&device, &queues)?;
        }
        Self::with_memory(device, &queues, spaces, log, kick, on)
    }

    fn with_memory(
        device: Arc<Device>,
        queues: &[(u16, u32)],
        spaces: Vec<Memory>,
        log: Option<InFlightLog>,
        kick: fn() -> io::Result<EventFd>,
        on: OnEvent<'_>,
    ) -> io::Result<Self> {
        let queues = queues
            .iter()
            .map(|&(max_size, group)| VirtQueue {
                rings: None,
                max_size,
                group,
                unmapped: false,
                kick: None,
                state: State::Idle,
                enabled: None,
                settings: None,
            })
            .collect();
        let known = DeviceState::read(device.name())?.unwrap_or_default();
        let moved = (0..).zip(known.asids.iter().copied());
        let moved = moved.filter(|&(_, asid)| (asid as usize) < spaces.len());
        let moved = moved.collect();
        let mut session = Self {
            device,
            spaces,
            queues,
            features: 0,
            driver_ok: u32::from(known.status) & VIRTIO_CONFIG_S_DRIVER_OK != 0,
            asked: known.asks_for_ready(),
            suspended: known.suspended,
            umem: None,
            umem_is_due: false,
            umem_tries: 0,
            uses_umem: false,
            log,
            new_kick: kick,
            control: Served::new(moved)?,
        };
        session.activate(true, on)?;
        Ok(session)
    }

    /// Returns a session without virtqueues, for tests.
    #[cfg(test)]
    pub(super) fn without_queues(device: Device) -> Self {
        Self {
            device: Arc::new(device),
            spaces: Vec::new(),
            queues: Vec::new(),
            features: 0,
            driver_ok: false,
            asked: false,
            suspended: false,
            umem: None,
            umem_is_due: false,
            umem_tries: 0,
            uses_umem: false,
            log: None,
            new_kick: EventFd::new,
            control: Served::new(Default::default()).unwrap(),
        }
    }

    /// Returns a session with one virtqueue that a driver uses, for tests.
    #[cfg(test)]
    pub(super) fn with_queue(device: Device, memory: Memory, rings: Virtqueue) -> Self {
        Self {
            spaces: vec![memory],
            queues: vec![VirtQueue {
                rings: Some(rings),
                max_size: MAX_SIZE,
                group: 0,
                unmapped: false,
                kick: Some(Arc::new(EventFd::new().unwrap())),
                state: State::Active,
                enabled: None,
                settings: None,
            }],
            driver_ok: true,
            ..Self::without_queues(device)
        }
    }

    /// Returns a handle for another thread.
    pub(super) fn handle(&self) -> Handle {
        Handle {
            device: self.device.clone(),
            control: self.control.share(),
        }
    }

    /// Returns whether the server should serve a virtqueue now.
    pub(super) fn is_served(&self, index: usize) -> bool {
        self.queues[index].state == State::Active && !self.suspended
    }

    /// Returns whether the driver may enable further virtqueues without telling the server, so that
    /// the server must [look](Self::activate) for them from time to time.
    pub(super) fn may_grow(&self) -> bool {
        self.driver_ok && !self.asked && self.queues.iter().any(|vq| vq.state == State::Idle)
    }

    /// Interrupts the driver on behalf of all virtqueues that are in use, as a server begins. An
    /// earlier server may have added entries to the used ring and ended before it interrupted the
    /// driver. Nothing records that.
    pub(super) fn interrupt_all(&self) {
        for index in 0..self.queues.len() {
            if self.is_served(index) {
                interrupt(&self.device, index as u32);
            }
        }
    }

    /// Reads one request of the kernel, if there is one, and answers it. Returns the indices of the
    /// virtqueues that the server now begins to serve.
    ///
    /// No virtqueue may be served meanwhile.
    pub(super) fn answer_next(&mut self, on: OnEvent<'_>) -> io::Result<Vec<usize>> {
        match self.device.read_request() {
            Ok(request) => self.request(request, on),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    fn request(&mut self, request: Request, on: OnEvent<'_>) -> io::Result<Vec<usize>> {
        let mut started = Vec::new();
        let answer = match request.kind {
            Kind::GetVqState { index } => self.vq_state(index),
            Kind::SetStatus(0) => {
                self.reset(on);
                Answer::Ok
            }
            Kind::SetStatus(status) => {
                if u32::from(status) & VIRTIO_CONFIG_S_DRIVER_OK != 0 && !self.driver_ok {
                    self.driver_ok = true;
                    started = self.activate(false, on)?;
                }
                Answer::Ok
            }
            Kind::UpdateIotlb { first, last, asid } => {
                self.forget(asid, first, last);
                Answer::Ok
            }
            Kind::SetGroupAsid { group, asid } => self.move_group(group, asid, on),
            Kind::SetVqReady { index, ready } => {
                self.asked = true;
                self.enable(index, ready);
                if self.driver_ok {
                    started = self.activate(false, on)?;
                }
                Answer::Ok
            }
            Kind::Suspend => {
                on(Event::Suspending);
                self.suspended = true;
                Answer::Ok
            }
            Kind::Resume => Answer::Ok,
            Kind::Unknown(_) => Answer::Failed,
        };
        let too_late = match self.device.answer(&request, answer) {
            Ok(()) => false,
            // The request has timed out, so the kernel discards the answer.
            Err(error) if error.kind() == io::ErrorKind::NotFound => true,
            Err(error) => return Err(error),
        };
        match request.kind {
            Kind::Suspend if too_late => started = self.resume(on)?,
            Kind::Resume if !too_late => started = self.resume(on)?,
            _ => (),
        }
        Ok(started)
    }

    /// Records that the driver has enabled or disabled a virtqueue.
    fn enable(&mut self, index: u32, ready: bool) {
        let Some(vq) = self.queues.get_mut(index as usize) else {
            return;
        };
        vq.enabled = Some(ready);
        if !ready && vq.state == State::Active {
            vq.state = State::Idle;
        }
    }

    /// Resumes serving the virtqueues. Returns the indices of the virtqueues that may have
    /// requests.
    fn resume(&mut self, on: OnEvent<'_>) -> io::Result<Vec<usize>> {
        self.suspended = false;
        // The driver may have changed settings while the device was suspended.
        for vq in &mut self.queues {
            if vq.state == State::Active {
                vq.state = State::Idle;
            }
        }
        self.activate(false, on)
    }

    fn vq_state(&self, index: u32) -> Answer {
        let Some(vq) = self.queues.get(index as usize) else {
            return Answer::Failed;
        };
        match vq.rings.as_ref().map(Virtqueue::position) {
            Some(Position::Split { next_avail, .. }) => Answer::SplitState { index, next_avail },
            Some(Position::Packed(state)) => Answer::PackedState { index, state },
            None if self.features & 1 << VIRTIO_F_RING_PACKED != 0 => Answer::PackedState {
                index,
                // Where each packed virtqueue begins.
                state: uapi::PackedState {
                    last_avail_counter: 1,
                    last_used_counter: 1,
                    ..Default::default()
                },
            },
            None => Answer::SplitState {
                index,
                next_avail: 0,
            },
        }
    }

    /// Moves a virtqueue group to another address space. Fails if a virtqueue of the group is in
    /// use.
    fn move_group(&mut self, group: u32, asid: u32, on: OnEvent<'_>) -> Answer {
        let mut members = self.queues.iter().filter(|vq| vq.group == group);
        if members.any(|vq| vq.state != State::Idle) || self.spaces.get(asid as usize).is_none() {
            return Answer::Failed;
        }
        self.control.moved().insert(group, asid);
        on(Event::Moved { group, asid });
        Answer::Ok
    }

    /// Returns the address space that a virtqueue is in.
    fn memory(&self, index: usize) -> &Memory {
        let asid = self.control.address_space(self.queues[index].group);
        &self.spaces[asid as usize]
    }

    fn reset(&mut self, on: OnEvent<'_>) {
        self.driver_ok = false;
        self.suspended = false;
        self.features = 0;
        self.umem_is_due = self.uses_umem;
        self.umem_tries = 0;
        self.control.moved().clear();
        for vq in &mut self.queues {
            vq.state = State::Idle;
            vq.enabled = None;
            vq.settings = None;
            vq.rings = None;
            vq.unmapped = false;
        }
        // The next driver's memory may be where the bounce area was. Dropping the memory deregisters
        // it.
        self.umem = None;
        // The next driver may map other memory at the same IOVAs.
        for asid in 0..self.spaces.len() as u32 {
            self.forget(asid, 0, u64::MAX);
        }
        on(Event::Reset);
    }

    /// Drops the mappings of the IOVAs from `first` to `last` in an address space, so that the next
    /// access maps them again.
    fn forget(&mut self, asid: u32, first: u64, last: u64) {
        let Some(space) = self.spaces.get_mut(asid as usize) else {
            return;
        };
        let mut memory = space.without(first, last);
        if let Some(umem) = self.umem.as_ref().filter(|umem| umem.region().asid == asid) {
            let region = umem.region();
            let last = region.iova + region.size - 1;
            memory = memory.without(region.iova, last);
            memory.map(region.iova, last, umem.memory().clone());
        }
        *space = Arc::new(memory);
    }

    /// Executes the commands that were given through handles. No virtqueue may be served meanwhile.
    pub(super) fn execute_commands(&mut self) {
        for (command, reply) in self.control.take_commands() {
            // Sending fails if the thread that gave the command no longer waits.
            let _ = reply.send(match command {
                Command::RegisterUmem => self.register_umem(),
                Command::DeregisterUmem => self.deregister_umem(),
            });
        }
    }

    /// Makes the server register memory of its own as soon as the driver has mapped the bounce area.
    pub(super) fn use_umem(&mut self) {
        self.uses_umem = true;
        self.umem_is_due = true;
    }

    /// Returns after what time the server should [try](Self::umem_is_possible) to register memory,
    /// if it should. The kernel does not say when the driver has mapped the bounce area: mostly with
    /// its first request, at once, but maybe much later.
    pub(super) fn looks_for_umem(&self) -> Option<&'static Timespec> {
        let looks = self.umem_is_due && self.driver_ok && self.umem.is_none();
        let interval = if self.umem_tries < SOON_TRIES {
            &SOON
        } else {
            &LATER
        };
        looks.then_some(interval)
    }

    /// Returns whether memory can be registered now. If the region at IOVA 0 is not a bounce area,
    /// it never can be for this driver.
    pub(super) fn umem_is_possible(&mut self) -> bool {
        self.umem_tries = self.umem_tries.saturating_add(1);
        match self.device.iotlb_info(uapi::IovaInfo::default()) {
            Ok(info) => {
                self.umem_is_due = info.capability & uapi::IOVA_CAP_UMEM != 0;
                self.umem_is_due
            }
            Err(_) => false,
        }
    }

    /// Registers the memory that is due. No virtqueue may be served meanwhile.
    pub(super) fn register_due_umem(&mut self) {
        self.umem_is_due = false;
        if let Err(error) = self.register_umem() {
            eprintln!("{}: registering memory: {error}", self.device.name());
        }
    }

    /// Returns the memory that is registered, if there is any.
    pub(super) fn umem(&self) -> Option<&Arc<Mapping>> {
        self.umem.as_ref().map(Umem::memory)
    }

    fn register_umem(&mut self) -> io::Result<()> {
        if self.umem.is_some() {
            return Err(rustix::io::Errno::EXIST.into());
        }
        self.umem = Some(Umem::register(self.device.clone())?);
        self.forget(0, 0, 0);
        Ok(())
    }

    fn deregister_umem(&mut self) -> io::Result<()> {
        let umem = self.umem.take().ok_or(rustix::io::Errno::NOENT)?;
        let region = *umem.region();
        umem.deregister()?;
        self.forget(region.asid, region.iova, region.iova + region.size - 1);
        Ok(())
    }

    /// Starts to serve the virtqueues that the driver has enabled since the last call. Returns the
    /// indices of these virtqueues.
    pub(super) fn activate(&mut self, take_over: bool, on: OnEvent<'_>) -> io::Result<Vec<usize>> {
        self.features = self.device.features()?;
        let mut activated = Vec::new();
        for index in 0..self.queues.len() {
            if self.queues[index].state != State::Idle {
                continue;
            }
            let info = self.device.vq_info(index as u32)?;
            if !self.queues[index].enabled.unwrap_or(info.ready != 0) {
                continue;
            }
            // A virtqueue whose settings are unchanged continues where it stopped.
            let settings = self.queues[index].settings.as_ref();
            let changed = settings.is_none_or(|settings| differ(settings, &info));
            if changed {
                match self.set_up(index, &info, take_over) {
                    Ok(rings) => self.queues[index].rings = Some(rings),
                    Err(error) => {
                        eprintln!("virtqueue {index}: {error}: {info:?}");
                        self.queues[index].state = State::Broken;
                        continue;
                    }
                }
            }
            let vq = &mut self.queues[index];
            vq.state = State::Active;
            vq.settings = Some(info);
            if let Some(rings) = vq.rings.as_ref().filter(|_| take_over) {
                eprintln!("virtqueue {index}: goes on from {:?}", rings.position());
            }
            let kick = match &vq.kick {
                Some(kick) => kick,
                None => {
                    let kick = Arc::new((self.new_kick)()?);
                    // CAST: A device has fewer than 2^16 virtqueues.
                    self.control.kicks().insert(index as u16, kick.clone());
                    vq.kick.insert(kick)
                }
            };
            self.device.set_kick(index as u16, kick.as_fd())?;
            activated.push(index);
        }
        if !activated.is_empty() {
            on(Event::Started(self.features));
        }
        Ok(activated)
    }

    fn set_up(
        &self,
        index: usize,
        info: &uapi::VqInfo,
        take_over: bool,
    ) -> Result<Virtqueue, crate::virtqueue::Error> {
        let memory = self.memory(index).clone();
        let settings = Settings::new(info, self.features)
            .filter(|settings| settings.size <= self.queues[index].max_size)
            // CAST: Only shown in the message.
            .ok_or(crate::virtqueue::Error::Size(info.num as u16))?;
        let mut rings = if take_over {
            Virtqueue::take_over(&settings, memory)?
        } else {
            Virtqueue::new(&settings, &info.state, memory)?
        };
        if let Some(log) = &self.log {
            // CAST: A device has fewer than 2^16 virtqueues.
            rings.set_log(log, index as u16, take_over);
        }
        Ok(rings)
    }

    /// Returns the rings of a virtqueue, with the memory as it is now, and the device. Returns `None`
    /// if the virtqueue is not [served](Self::is_served), or if its rings are not mapped now.
    pub(super) fn rings(&mut self, index: usize) -> Option<(&mut Virtqueue, &Device)> {
        if !self.is_served(index) {
            return None;
        }
        let memory = self.memory(index).clone();
        let vq = &mut self.queues[index];
        let rings = vq.rings.as_mut()?;
        if let Err(error) = rings.set_memory(memory) {
            // The driver may be changing its mappings one by one. The next change is a message.
            if !std::mem::replace(&mut vq.unmapped, true) {
                eprintln!("virtqueue {index}: {error}; it waits for its rings");
            }
            return None;
        }
        vq.unmapped = false;
        Some((rings, &self.device))
    }

    /// Takes out the rings of a virtqueue, for another thread, as [`rings`](Self::rings) returns them.
    /// They must be put back before the session changes.
    pub(super) fn take_rings(&mut self, index: usize) -> Option<Virtqueue> {
        self.rings(index)?;
        self.queues[index].rings.take()
    }

    /// Stops serving a virtqueue until the next reset, because of an error in it.
    pub(super) fn break_queue(&mut self, index: usize, error: &dyn std::fmt::Display) {
        eprintln!("virtqueue {index}: {error}; it is not served before the next reset");
        self.queues[index].state = State::Broken;
    }
}

/// Interrupts the driver on behalf of a virtqueue.
pub(super) fn interrupt(device: &Device, index: u32) {
    // The ioctl fails before the driver has set DRIVER_OK, when the used ring is empty, and while
    // the driver resets the device. The driver needs no interrupt then.
    let _ = device.inject_vq_irq(index);
}

/// Sets up a device's virtqueues. `queues` has the maximum size and the group of each virtqueue.
fn set_up(device: &Device, queues: &[(u16, u32)]) -> io::Result<()> {
    for (index, &(max_size, group)) in (0..).zip(queues) {
        device.vq_setup_raw(&uapi::VqConfig {
            index,
            max_size,
            group,
            ..Default::default()
        })?;
    }
    Ok(())
}
