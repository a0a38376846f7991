// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The loop of a server, which waits for requests and kicks.

#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::Ordering;
use std::sync::Arc;

use rustix::event::{poll, PollFd, PollFlags, Timespec};
use virtio_bindings::virtio_config::VIRTIO_CONFIG_S_DRIVER_OK;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{Queue, QueueOwnedT, QueueT};

use crate::eventfd::EventFd;
use crate::iotlb::{AddressSpace, SpaceOf};
use crate::request::{Answer, Kind, Request};
use crate::server::backend::{Backend, Memory};
use crate::server::handle::{Command, Handle, Served};
use crate::server::virtqueue::{differ, wants_interrupt, State, VirtQueue, Waits};
use crate::state::DeviceState;
use crate::umem::Umem;
use crate::Device;

/// A server of a device. It answers the kernel's requests to the device, and passes the requests in
/// the virtqueues to a [`Backend`].
#[derive(Debug)]
pub struct Server<B> {
    device: Arc<Device>,
    /// The address spaces, indexed by ASID.
    spaces: Vec<Memory>,
    queues: Vec<VirtQueue>,
    backend: B,
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
    control: Served,
}

/// Maximum number of requests of one virtqueue that the server serves before it serves the other
/// virtqueues.
const TURN: usize = 256;

const AT_ONCE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 0,
};

/// Interval at which the server checks whether the driver has enabled further virtqueues.
const NOT_READY: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 10_000_000,
};

/// Maximum size of a split virtqueue (virtio 1.3, section 2.7).
const LARGEST: u16 = 0x8000;

/// Sets up a device's virtqueues. `queues` has the maximum size and the group of each virtqueue.
fn set_up(device: &Device, queues: &[(u16, u32)]) -> io::Result<()> {
    for (index, &(max_size, group)) in (0..).zip(queues) {
        device.vq_setup_raw(&crate::uapi::VqConfig {
            index,
            max_size,
            group,
            ..Default::default()
        })?;
    }
    Ok(())
}

impl<B: Backend> Server<B> {
    /// Creates a server of a device, and sets up one virtqueue for each maximum size in `sizes`. If
    /// a driver uses the device already, the server resumes where its predecessor stopped, and
    /// interrupts the driver when [`run`](Self::run) starts.
    ///
    /// # Errors
    ///
    /// Returns the error of the ioctl that failed; an error of kind `Other` when a size is not
    /// valid.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use vduse::blk::{self, Disk};
    /// use vduse::server::Server;
    /// use vduse::{Control, Device};
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let bytes = 1 << 20;
    /// Control::open()?.create(&blk::device_config("disk0", bytes, 1))?;
    /// let device = Device::open("disk0")?;
    /// Server::new(device, &[256], Disk::in_memory(bytes)?)?.run()
    /// # }
    /// ```
    pub fn new(device: Device, sizes: &[u16], backend: B) -> io::Result<Self> {
        let queues: Vec<_> = sizes.iter().map(|&size| (size, 0)).collect();
        let device = Arc::new(device);
        let memory = Arc::new(AddressSpace::new(device.clone()));
        set_up(&device, &queues)?;
        Self::with_memory(device, &queues, vec![memory], backend)
    }

    /// Creates a server of a device that is on the vDPA bus and has `queues` virtqueues, without
    /// setting the virtqueues up. If a driver uses the device already, the server resumes where its
    /// predecessor stopped. If the device has several address spaces, the server uses only the
    /// first one.
    ///
    /// # Errors
    ///
    /// Returns the error of the ioctl that failed.
    pub fn take_over(device: Device, queues: usize, backend: B) -> io::Result<Self> {
        let device = Arc::new(device);
        let memory = Arc::new(AddressSpace::new(device.clone()));
        Self::with_memory(device, &vec![(LARGEST, 0); queues], vec![memory], backend)
    }

    /// Variant of [`new`](Self::new) for a device of version 1. `queues` has the maximum size and
    /// the group of each virtqueue, and `spaces` is the number of address spaces.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub fn with_groups(
        device: Device,
        queues: &[(u16, u32)],
        spaces: u32,
        backend: B,
    ) -> io::Result<Self> {
        let device = Arc::new(device);
        let space = |asid| {
            let device = device.clone();
            Arc::new(AddressSpace::new(Arc::new(SpaceOf { device, asid })))
        };
        let spaces = (0..spaces).map(space).collect();
        set_up(&device, queues)?;
        Self::with_memory(device, queues, spaces, backend)
    }

    fn with_memory(
        device: Arc<Device>,
        queues: &[(u16, u32)],
        spaces: Vec<Memory>,
        backend: B,
    ) -> io::Result<Self> {
        let queues = queues
            .iter()
            .map(|&(size, group)| {
                Ok(VirtQueue {
                    queue: Queue::new(size).map_err(io::Error::other)?,
                    group,
                    kick: EventFd::new()?,
                    state: State::Idle,
                    waits: Waits::Kick,
                    enabled: None,
                    settings: None,
                })
            })
            .collect::<io::Result<_>>()?;
        let known = DeviceState::read(device.name())?.unwrap_or_default();
        let moved = (0..).zip(known.asids.iter().copied());
        let moved = moved.filter(|&(_, asid)| (asid as usize) < spaces.len());
        let moved = moved.collect();
        let mut server = Self {
            device,
            spaces,
            queues,
            backend,
            features: 0,
            driver_ok: u32::from(known.status) & VIRTIO_CONFIG_S_DRIVER_OK != 0,
            asked: known.asks_for_ready(),
            suspended: known.suspended,
            umem: None,
            control: Served::new(moved)?,
        };
        server.activate(true)?;
        Ok(server)
    }

    /// Returns a handle for another thread.
    pub fn handle(&self) -> Handle {
        Handle {
            device: self.device.clone(),
            control: self.control.share(),
        }
    }

    /// Returns the backend.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// Ends the server and returns the backend.
    pub fn into_backend(self) -> B {
        self.backend
    }

    /// Serves the device until a [`Handle`] stops the server.
    ///
    /// # Errors
    ///
    /// `EPERM` when the kernel has marked the device broken; otherwise the error of the call that
    /// failed.
    pub fn run(&mut self) -> io::Result<()> {
        // Dropping `_accepting` gives an error to the callers whose commands the server has not
        // executed, for whatever reason `serve` returns.
        let _accepting = self.control.accept();
        self.serve()
    }

    fn serve(&mut self) -> io::Result<()> {
        for index in 0..self.queues.len() {
            // Serve requests that the driver made available before the kick eventfd was set.
            self.process(index);
            // An earlier server may have added entries to the used ring and ended before it
            // interrupted the driver. Nothing records that, so interrupt the driver now.
            if self.queues[index].state == State::Active && !self.suspended {
                // The ioctl fails before the driver has set DRIVER_OK. The used ring is empty then.
                let _ = self.device.inject_vq_irq(index as u32);
            }
        }
        while !self.control.stop.load(Ordering::Acquire) {
            let device = PollFd::from_borrowed_fd(self.device.as_fd(), PollFlags::IN);
            let wake = PollFd::from_borrowed_fd(self.control.wake.as_fd(), PollFlags::IN);
            let mut fds = vec![device, wake];
            fds.extend(
                self.queues
                    .iter()
                    .map(|vq| PollFd::from_borrowed_fd(vq.kick.as_fd(), PollFlags::IN)),
            );
            let waiting = self.driver_ok
                && !self.asked
                && self.queues.iter().any(|vq| vq.state == State::Idle);
            let sources = self.sources();
            fds.extend(
                sources
                    .iter()
                    .map(|(_, source)| PollFd::from_borrowed_fd(*source, PollFlags::IN)),
            );
            let timeout = if self.any_waits_for(Waits::Turn) {
                Some(&AT_ONCE)
            } else {
                waiting.then_some(&NOT_READY)
            };
            match poll(&mut fds, timeout) {
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(errno) => return Err(errno.into()),
            }
            let on_device = fds[0].revents();
            let queues = 0..self.queues.len();
            let kicked: Vec<usize> = queues
                .filter(|index| fds[index + 2].revents().contains(PollFlags::IN))
                .collect();
            // A failed source counts as readable, so that the backend detects the failure.
            let fed: Vec<(usize, bool)> = sources
                .iter()
                .zip(&fds[2 + self.queues.len()..])
                .filter(|(_, fd)| !fd.revents().is_empty())
                .map(|(&(index, _), fd)| (index, fd.revents().contains(PollFlags::IN)))
                .collect();
            if on_device.intersects(PollFlags::ERR | PollFlags::HUP) {
                return Err(rustix::io::Errno::PERM.into());
            }
            self.control.wake.take()?;
            for (command, reply) in self.control.take_commands() {
                // Sending fails if the thread that gave the command no longer waits.
                let _ = reply.send(match command {
                    Command::RegisterUmem => self.register_umem(),
                    Command::DeregisterUmem => self.deregister_umem(),
                });
            }
            // Serve kicks before requests. A driver stops kicking a virtqueue before it asks for
            // the virtqueue's state, so the state must include the last kick.
            for &index in &kicked {
                self.queues[index].kick.take()?;
                self.process(index);
            }
            for (index, readable) in fed {
                self.process(index);
                // Stop polling a failed source, because `poll` would return at once each time.
                if !readable && self.queues[index].waits == Waits::Source {
                    self.queues[index].waits = Waits::Kick;
                }
            }
            for index in 0..self.queues.len() {
                if self.queues[index].waits == Waits::Turn && !kicked.contains(&index) {
                    self.process(index);
                }
            }
            if waiting {
                // The driver may enable virtqueues after DRIVER_OK too, and the kernel sends no
                // message about that.
                for index in self.activate(false)? {
                    self.process(index);
                }
            }
            if on_device.contains(PollFlags::IN) {
                match self.device.read_request() {
                    Ok(request) => self.request(request)?,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    fn request(&mut self, request: Request) -> io::Result<()> {
        let mut started = Vec::new();
        let answer = match request.kind {
            Kind::GetVqState { index } => self.vq_state(index),
            Kind::SetStatus(0) => {
                self.reset();
                Answer::Ok
            }
            Kind::SetStatus(status) => {
                if u32::from(status) & VIRTIO_CONFIG_S_DRIVER_OK != 0 && !self.driver_ok {
                    self.driver_ok = true;
                    started = self.activate(false)?;
                }
                Answer::Ok
            }
            Kind::UpdateIotlb { first, last, asid } => {
                self.forget(asid, first, last);
                Answer::Ok
            }
            Kind::SetGroupAsid { group, asid } => self.move_group(group, asid),
            Kind::SetVqReady { index, ready } => {
                self.asked = true;
                self.enable(index, ready);
                if self.driver_ok {
                    started = self.activate(false)?;
                }
                Answer::Ok
            }
            Kind::Suspend => {
                self.backend.drain();
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
            Kind::Suspend if too_late => started = self.resume()?,
            Kind::Resume if !too_late => started = self.resume()?,
            _ => (),
        }
        for index in started {
            self.process(index);
        }
        Ok(())
    }

    /// Records that the driver has enabled or disabled a virtqueue.
    fn enable(&mut self, index: u32, ready: bool) {
        let Some(vq) = self.queues.get_mut(index as usize) else {
            return;
        };
        vq.enabled = Some(ready);
        if !ready && vq.state == State::Active {
            vq.state = State::Idle;
            vq.waits = Waits::Kick;
        }
    }

    /// Resumes serving the virtqueues. Returns the indices of the virtqueues that may have
    /// requests.
    fn resume(&mut self) -> io::Result<Vec<usize>> {
        self.suspended = false;
        // The driver may have changed settings while the device was suspended.
        for vq in &mut self.queues {
            if vq.state == State::Active {
                vq.state = State::Idle;
            }
        }
        self.activate(false)
    }

    fn vq_state(&self, index: u32) -> Answer {
        usize::try_from(index)
            .ok()
            .and_then(|index| self.queues.get(index))
            .map_or(Answer::Failed, |vq| Answer::SplitState {
                index,
                next_avail: vq.queue.next_avail(),
            })
    }

    /// Moves a virtqueue group to another address space. Fails if a virtqueue of the group is in
    /// use.
    fn move_group(&mut self, group: u32, asid: u32) -> Answer {
        let mut members = self.queues.iter().filter(|vq| vq.group == group);
        if members.any(|vq| vq.state != State::Idle) || self.spaces.get(asid as usize).is_none() {
            return Answer::Failed;
        }
        self.control.moved().insert(group, asid);
        self.backend.moved(group, asid);
        Answer::Ok
    }

    /// Returns the address space that a virtqueue is in.
    fn memory(&self, index: usize) -> &Memory {
        let asid = self.control.address_space(self.queues[index].group);
        &self.spaces[asid as usize]
    }

    fn reset(&mut self) {
        self.driver_ok = false;
        self.suspended = false;
        self.features = 0;
        self.control.moved().clear();
        for vq in &mut self.queues {
            vq.state = State::Idle;
            vq.waits = Waits::Kick;
            vq.enabled = None;
            vq.settings = None;
            vq.queue.reset();
        }
        // The next driver may map other memory at the same IOVAs.
        for asid in 0..self.spaces.len() as u32 {
            self.forget(asid, 0, u64::MAX);
        }
        self.backend.reset();
        self.publish();
    }

    /// Writes the backend's changes to the configuration space.
    fn publish(&mut self) {
        for (offset, data) in self.backend.config_changes() {
            if let Err(error) = self.device.set_config(offset, &data) {
                eprintln!("configuration space, {offset}: {error}");
            }
        }
    }

    fn any_waits_for(&self, what: Waits) -> bool {
        self.queues.iter().any(|vq| vq.waits == what)
    }

    /// Returns the index and the source of each virtqueue that waits for its source.
    fn sources(&self) -> Vec<(usize, BorrowedFd<'_>)> {
        (0..self.queues.len())
            .filter(|&index| self.queues[index].waits == Waits::Source)
            .filter_map(|index| Some((index, self.backend.source(index as u16)?)))
            .collect()
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
    fn activate(&mut self, take_over: bool) -> io::Result<Vec<usize>> {
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
            if changed && self.set_up(index, &info, take_over).is_none() {
                eprintln!("virtqueue {index}: the driver's set-up makes no sense: {info:?}");
                self.queues[index].state = State::Broken;
                continue;
            }
            let vq = &mut self.queues[index];
            vq.state = State::Active;
            vq.settings = Some(info);
            if take_over {
                let next = vq.queue.next_avail();
                eprintln!("virtqueue {index}: goes on with the available entry {next}");
            }
            self.device.set_kick(index as u16, vq.kick.as_fd())?;
            activated.push(index);
        }
        if !activated.is_empty() {
            self.backend.start(self.features);
        }
        Ok(activated)
    }

    fn set_up(&mut self, index: usize, info: &crate::uapi::VqInfo, take_over: bool) -> Option<()> {
        let memory = self.memory(index).clone();
        let queue = &mut self.queues[index].queue;
        queue.try_set_size(u16::try_from(info.num).ok()?).ok()?;
        let address = vm_memory::GuestAddress;
        queue
            .try_set_desc_table_address(address(info.desc_addr))
            .ok()?;
        queue
            .try_set_avail_ring_address(address(info.driver_addr))
            .ok()?;
        queue
            .try_set_used_ring_address(address(info.device_addr))
            .ok()?;
        queue.set_event_idx(self.features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0);
        queue.set_ready(true);
        if !queue.is_valid(&*memory) {
            queue.set_ready(false);
            return None;
        }
        let used = queue.used_idx(&*memory, Ordering::Acquire).ok()?.0;
        queue.set_next_used(used);
        queue.set_next_avail(if take_over { used } else { info.state.split() });
        Some(())
    }

    /// Serves the pending requests of a virtqueue.
    fn process(&mut self, index: usize) {
        if self.queues[index].state != State::Active || self.suspended {
            return;
        }
        match self.try_process(index) {
            Ok(waits) => self.queues[index].waits = waits,
            Err(error) => {
                eprintln!("virtqueue {index}: {error}; it is not served any more");
                self.queues[index].state = State::Broken;
                self.queues[index].waits = Waits::Kick;
            }
        }
    }

    fn try_process(&mut self, index: usize) -> Result<Waits, virtio_queue::Error> {
        let memory = self.memory(index).clone();
        let mut served = 0;
        loop {
            self.queues[index].queue.disable_notification(&*memory)?;
            let before = served;
            let waits = loop {
                if served >= TURN {
                    break Waits::Turn;
                }
                if !self.backend.ready(index as u16) {
                    break Waits::Source;
                }
                let queue = &mut self.queues[index].queue;
                let Some(chain) = queue.iter(memory.clone())?.next() else {
                    break Waits::Kick;
                };
                let head = chain.head_index();
                let written = self.backend.serve(index as u16, chain, &memory);
                self.publish();
                let queue = &mut self.queues[index].queue;
                queue.add_used(&*memory, head, written)?;
                served += 1;
            };
            let queue = &mut self.queues[index].queue;
            let more = waits == Waits::Kick && queue.enable_notification(&*memory)?;
            if served != before {
                if wants_interrupt(queue, &memory)? {
                    // The ioctl fails while the driver resets the device. The driver needs no
                    // interrupt then.
                    let _ = self.device.inject_vq_irq(index as u32);
                }
                self.backend.answered();
            }
            if !more {
                return Ok(waits);
            }
        }
    }
}
