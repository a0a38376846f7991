// SPDX-License-Identifier: GPL-2.0

//! The driver side of a split virtqueue (virtio 1.3, section 2.7), with one request at a time.

use std::ops::{Deref, DerefMut};
use std::os::fd::AsFd;

use vduse::eventfd::EventFd;
use vduse::{Device, Mapping};
use vduse_uapi::ACCESS_RW;
use vm_memory::{Bytes, VolatileSlice};

use crate::lab::assert::timing::soon;
use crate::lab::device::virtio::descriptor::{NEXT, WRITE};
use crate::lab::device::virtio::feature;
use crate::lab::device::virtio::status::{ACKNOWLEDGE, DRIVER, UP_TO_DRIVER_OK, UP_TO_FEATURES_OK};
use crate::lab::driver::vhost::{access, RingAddress, Vhost};
use crate::lab::kernel::memory;

/// Number of descriptors of the virtqueue.
pub const SIZE: u16 = 8;

/// Offsets of the virtqueue's parts in its memory.
const DESC: usize = 0;
const AVAIL: usize = 0x1000;
const USED: usize = 0x2000;
const HEADER: usize = 0x3000;
const DATA: usize = 0x4000;
const STATUS: usize = 0x5000;

/// Length in bytes of the header that precedes a network card's frame.
const NET_HEADER: usize = 12;

/// Size of the virtqueue's memory in bytes.
pub const LEN: u64 = 0x6000;

/// A virtqueue of a disk or a network card, which the test operates in the role of the driver.
#[derive(Debug)]
pub struct HandQueue {
    index: u32,
    asid: u32,
    memory: Mapping,
    /// The eventfd by which the driver kicks the device.
    pub kick: EventFd,
    /// The eventfd to which vhost-vdpa writes the device's interrupts.
    pub call: EventFd,
    iova: u64,
    next: u16,
}

impl HandQueue {
    /// Creates virtqueue `index`, and maps the virtqueue's memory at `iova` in the address space
    /// `asid`.
    #[track_caller]
    pub fn prepare(vhost: &Vhost, index: u32, asid: u32, iova: u64) -> Self {
        let memory = new_memory();
        vhost
            .map_in(asid, iova, &memory, access::RW)
            .expect("mapping");
        Self {
            index,
            asid,
            memory,
            kick: EventFd::new().expect("an eventfd"),
            call: EventFd::new().expect("an eventfd"),
            iova,
            next: 0,
        }
    }

    /// Replaces the virtqueue's memory with new memory that has the same contents and the same
    /// IOVAs.
    #[track_caller]
    pub fn move_memory(&mut self, vhost: &Vhost) {
        let other = new_memory();
        vhost
            .unmap_in(self.asid, self.iova, LEN)
            .expect("unmapping");
        self.memory.bytes().copy_to_volatile_slice(other.bytes());
        vhost
            .map_in(self.asid, self.iova, &other, access::RW)
            .expect("mapping");
        self.memory = other;
    }

    /// Returns the IOVAs of the virtqueue's parts.
    pub fn address(&self) -> RingAddress {
        RingAddress {
            desc: self.iova + DESC as u64,
            avail: self.iova + AVAIL as u64,
            used: self.iova + USED as u64,
        }
    }

    /// Sets up the virtqueue and enables it.
    #[track_caller]
    pub fn set_up(&self, vhost: &Vhost) {
        let index = self.index;
        vhost
            .set_queue_size(index, SIZE.into())
            .expect("queue size");
        vhost
            .set_queue_address(index, self.address())
            .expect("queue address");
        vhost.set_queue_base(index, 0).expect("queue base");
        vhost.set_kick(index, self.kick.as_fd()).expect("kick");
        vhost
            .set_call(index, Some(self.call.as_fd()))
            .expect("call");
        vhost.enable_queue(index).expect("enabling the queue");
    }

    /// Kicks the device. Returns once the kernel has delivered the kick.
    ///
    /// If vhost-vdpa already has the eventfd when the eventfd is signalled, the kernel delivers the
    /// kick later, from a workqueue. If the eventfd is signalled first and then passed to
    /// vhost-vdpa, the kernel delivers the kick before the ioctl returns. This function therefore
    /// takes the eventfd away from vhost-vdpa, signals the eventfd, and passes it to vhost-vdpa
    /// again.
    #[track_caller]
    pub fn kick_at_once(&self, vhost: &Vhost) {
        let other = EventFd::new().expect("an eventfd");
        vhost.set_kick(self.index, other.as_fd()).expect("kick");
        self.kick.signal().expect("kicking");
        vhost.set_kick(self.index, self.kick.as_fd()).expect("kick");
    }

    fn part(&self, offset: usize) -> VolatileSlice<'_> {
        self.memory
            .slice(offset, self.memory.len() - offset)
            .expect("inside the memory")
    }

    /// Makes a request available and kicks the device. Each element of `buffers` has an IOVA, a
    /// length, and a flag that is true if the device writes to the buffer.
    #[track_caller]
    fn submit(&mut self, buffers: &[(u64, u32, bool)]) {
        for (index, &(at, len, write)) in buffers.iter().enumerate() {
            let more = if index + 1 < buffers.len() { NEXT } else { 0 };
            let flags = more | if write { WRITE } else { 0 };
            let part = self.part(DESC + index * 16);
            part.store_le(0, at.to_le_bytes());
            part.store_le(8, len.to_le_bytes());
            part.store_le(12, flags.to_le_bytes());
            part.store_le(14, (index as u16 + 1).to_le_bytes());
        }
        let avail = self.part(AVAIL);
        let slot = 4 + usize::from(self.next % SIZE) * 2;
        avail.store_le(slot, 0u16.to_le_bytes());
        let next = self.next.wrapping_add(1);
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        avail.store_le(2, next.to_le_bytes());
        self.next = next;
        self.kick.signal().expect("kicking");
    }

    /// Waits until the device has used the last request.
    #[track_caller]
    fn finish(&self) {
        soon("the device uses the request", || {
            self.used_index() == self.next
        });
    }

    /// Writes bytes to the virtqueue's memory, for example at [`HEADER`] or [`DATA`].
    #[track_caller]
    fn fill(&self, offset: usize, bytes: &[u8]) {
        self.part(offset)
            .write_slice(bytes, 0)
            .expect("inside the memory");
    }

    /// Sends a command to a network card. Returns the card's answer, or `None` if the card wrote no
    /// answer.
    #[track_caller]
    pub fn command(&mut self, bytes: &[u8]) -> Option<u8> {
        self.fill(HEADER, bytes);
        self.part(STATUS).store_le(0, [0xff]);
        self.submit(&[
            (self.iova + HEADER as u64, bytes.len() as u32, false),
            (self.iova + STATUS as u64, 1, true),
        ]);
        self.finish();
        let mut answer = [0];
        self.part(STATUS)
            .read_slice(&mut answer, 0)
            .expect("inside the memory");
        (answer[0] != 0xff).then_some(answer[0])
    }

    /// Makes a network card send `frame`. Returns when the card has used the request.
    #[track_caller]
    pub fn send_frame(&mut self, frame: &[u8]) {
        self.fill(HEADER, &[0; NET_HEADER]);
        self.fill(DATA, frame);
        self.submit(&[
            (self.iova + HEADER as u64, NET_HEADER as u32, false),
            (self.iova + DATA as u64, frame.len() as u32, false),
        ]);
        self.finish();
    }

    /// Makes a buffer available in which a network card can put a received frame.
    #[track_caller]
    pub fn expect_frame(&mut self) {
        self.submit(&[(self.iova + DATA as u64, 2048, true)]);
    }

    /// Waits for the expected frame and returns it. Asserts that, according to its header, the
    /// frame is in one buffer.
    #[track_caller]
    pub fn receive_frame(&self) -> Vec<u8> {
        let (header, frame) = self.receive();
        assert_eq!(header, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
        frame
    }

    /// Waits for the expected frame. Returns its header and the frame itself.
    #[track_caller]
    pub fn receive(&self) -> ([u8; NET_HEADER], Vec<u8>) {
        self.finish();
        let used = self.part(USED);
        let slot = 4 + usize::from(self.next.wrapping_sub(1) % SIZE) * 8;
        let mut len = [0; 4];
        used.read_slice(&mut len, slot + 4)
            .expect("inside the memory");
        let len = u32::from_le_bytes(len) as usize;
        let mut bytes = vec![0; len];
        self.part(DATA)
            .read_slice(&mut bytes, 0)
            .expect("inside the memory");
        let (header, frame) = bytes.split_first_chunk().expect("a header");
        (*header, frame.to_vec())
    }

    /// Makes a request available that reads a sector of a disk, and kicks the device.
    #[track_caller]
    pub fn submit_read(&mut self, sector: u64) {
        self.submit_read_to(sector, self.iova + DATA as u64);
    }

    /// Variant of [`submit_read`](Self::submit_read) that reads to the IOVA `to`, which may be
    /// outside the virtqueue's memory.
    #[track_caller]
    fn submit_read_to(&mut self, sector: u64, to: u64) {
        let header = self.part(HEADER);
        header.store_le(0, [0; 8]);
        header.store_le(8, sector.to_le_bytes());
        self.part(STATUS).store_le(0, [0xff]);
        self.submit(&[
            (self.iova + HEADER as u64, 16, false),
            (to, 512, true),
            (self.iova + STATUS as u64, 1, true),
        ]);
    }

    /// Returns the `idx` field of the used ring. The device writes this field.
    pub fn used_index(&self) -> u16 {
        let mut bytes = [0; 2];
        self.part(USED)
            .read_slice(&mut bytes, 2)
            .expect("inside the memory");
        u16::from_le_bytes(bytes)
    }

    /// Waits until the device has completed the read. Returns the data and the status.
    #[track_caller]
    pub fn finish_read(&self) -> (Vec<u8>, u8) {
        self.finish();
        let mut data = vec![0; 512];
        self.part(DATA)
            .read_slice(&mut data, 0)
            .expect("inside the memory");
        let mut status = [0];
        self.part(STATUS)
            .read_slice(&mut status, 0)
            .expect("inside the memory");
        (data, status[0])
    }

    /// Reads a sector to the IOVA `to`, which may be outside the virtqueue's memory. Returns the
    /// status, or `None` if the device wrote no status.
    #[track_caller]
    pub fn read_to(&mut self, sector: u64, to: u64) -> Option<u8> {
        self.submit_read_to(sector, to);
        let (_, status) = self.finish_read();
        (status != 0xff).then_some(status)
    }

    /// Reads a sector. Panics if the device reports an error.
    #[track_caller]
    pub fn read(&mut self, sector: u64) -> Vec<u8> {
        self.submit_read(sector);
        let (data, status) = self.finish_read();
        assert_eq!(status, 0, "the status of a read of sector {sector}");
        data
    }
}

/// A disk bound to vhost-vdpa, whose virtqueue 0 the test operates in the role of the driver.
#[derive(Debug)]
pub struct HandDriver {
    /// The open vhost-vdpa device.
    pub vhost: Vhost,
    queue: HandQueue,
}

impl HandDriver {
    /// Negotiates features with a device, and maps the memory of virtqueue 0 at `iova`.
    #[track_caller]
    pub fn prepare(vhost: Vhost, iova: u64) -> Self {
        vhost.set_owner().expect("owning the device");
        vhost.set_backend_features().expect("backend features");
        agree(&vhost);
        let queue = HandQueue::prepare(&vhost, 0, 0, iova);
        Self { vhost, queue }
    }

    /// Replaces the memory of virtqueue 0 with new memory that has the same contents and the same
    /// IOVAs.
    #[track_caller]
    pub fn move_memory(&mut self) {
        self.queue.move_memory(&self.vhost);
    }

    /// Sets up virtqueue 0 and enables it.
    #[track_caller]
    pub fn set_queue_up(&self) {
        self.queue.set_up(&self.vhost);
    }

    /// Sets `DRIVER_OK`.
    #[track_caller]
    pub fn start(&self) {
        start(&self.vhost);
    }

    /// Calls [`HandQueue::kick_at_once`] for virtqueue 0.
    #[track_caller]
    pub fn kick_at_once(&self) {
        self.queue.kick_at_once(&self.vhost);
    }
}

impl Deref for HandDriver {
    type Target = HandQueue;

    fn deref(&self) -> &HandQueue {
        &self.queue
    }
}

impl DerefMut for HandDriver {
    fn deref_mut(&mut self) -> &mut HandQueue {
        &mut self.queue
    }
}

/// Creates the memory of a virtqueue.
#[track_caller]
fn new_memory() -> Mapping {
    let file = memory::file(LEN);
    Mapping::of_file(file.as_fd(), 0, LEN, ACCESS_RW).expect("mapping memory")
}

/// Negotiates features with a device, up to `FEATURES_OK`.
#[track_caller]
pub fn agree(vhost: &Vhost) {
    agree_without(vhost, 0);
}

/// Variant of [`agree`] that does not accept the features in `without`.
#[track_caller]
pub fn agree_without(vhost: &Vhost, without: u64) {
    vhost.set_status(ACKNOWLEDGE | DRIVER).expect("driver");
    let features = vhost.features().expect("reading features");
    // A driver with one request at a time does not need the event index.
    vhost
        .set_features(features & !feature::RING_EVENT_IDX & !without)
        .expect("accepting features");
    vhost
        .set_status(UP_TO_FEATURES_OK)
        .expect("features agreed on");
}

/// Sets `DRIVER_OK`.
#[track_caller]
pub fn start(vhost: &Vhost) {
    vhost.set_status(UP_TO_DRIVER_OK).expect("driver ready");
}

/// Returns the available index and the used index of a split virtqueue. Both are 16-bit counters.
/// No daemon may have the device open.
#[track_caller]
pub fn counters(name: &str, queue: u32) -> (u16, u16) {
    let mut device = None;
    // Another process may have closed the device only a moment ago. Opening the device fails until
    // the kernel has released that process's file.
    soon("nobody serves the device", || {
        device = Device::open_nonblocking(name).ok();
        device.is_some()
    });
    let device = device.expect("an open device");
    let info = device.vq_info(queue).expect("the virtqueue");
    let index = |ring: u64| {
        // In both rings, the index follows 16 bits of flags.
        let iova = ring + 2;
        let region = device.iotlb_fd(iova, iova + 1).expect("the ring");
        let at = region.offset + (iova - region.first);
        let mapping =
            Mapping::of_file(region.file.as_fd(), at, 2, region.access).expect("mapping it");
        let mut bytes = [0; 2];
        mapping
            .bytes()
            .read_slice(&mut bytes, 0)
            .expect("inside the mapping");
        u16::from_le_bytes(bytes)
    };
    (index(info.driver_addr), index(info.device_addr))
}

trait Store {
    fn store_le<const N: usize>(&self, offset: usize, bytes: [u8; N]);
}

impl Store for VolatileSlice<'_> {
    fn store_le<const N: usize>(&self, offset: usize, bytes: [u8; N]) {
        self.write_slice(&bytes, offset).expect("inside the memory");
    }
}
