// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A record of the requests that a device has taken and not completed, in a file that outlives the
//! program.
//!
//! A program that completes requests in any order can die at any moment. Its successor sees in the
//! used ring how many requests were completed, but not which ones. The log has that.
//!
//! The file's pages belong to the kernel, so that they survive the program, but not the machine: so
//! does the device. Put the file where a reboot removes it, such as in `/run`.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::Arc;

use vduse_uapi::ACCESS_RW;

use crate::memory;
use crate::virtqueue::area::Area;
use crate::virtqueue::settings::{Settings, MAX_SIZE};
use crate::Mapping;

/// The first word of a log: its format.
const FORMAT: u64 = u64::from_le_bytes(*b"vduslog1");

/// Length in bytes of the file's header, and of each virtqueue's.
const HEADER: usize = 64;

// Offsets in a virtqueue's header, in bytes.
const DESCRIPTORS: usize = 0;
const DRIVER: usize = 8;
const DEVICE: usize = 16;
const SIZE: usize = 24;
/// The index of the used ring before the last requests were published.
const OLD_USED: usize = 26;
/// The index of the used ring with the last requests.
const NEW_USED: usize = 28;

/// Length in bytes of a virtqueue's part: the header, and a state for each descriptor.
const PART: usize = HEADER + MAX_SIZE as usize;

/// State of a descriptor: it does not begin a request that the device has taken.
const FREE: u8 = 0;
/// State of a descriptor: it begins a request in flight.
const IN_FLIGHT: u8 = 1;
/// State of a descriptor: it begins a request that is being published. If the index of the used
/// ring is `NEW_USED`, it is published.
const PUBLISHING: u8 = 2;

/// A log of all virtqueues of a device. Only split virtqueues have entries.
#[derive(Clone, Debug)]
pub struct InFlightLog {
    mapping: Arc<Mapping>,
    queues: u16,
    is_new: bool,
}

impl InFlightLog {
    /// Opens the log of a device with `queues` virtqueues. Creates the file, which only this user
    /// may access, if it does not exist. The log of a device with another number of virtqueues
    /// begins anew.
    ///
    /// # Errors
    ///
    /// `InvalidData` if the file exists and is no log, and is left as it is; otherwise the error of
    /// opening, of resizing or of mapping the file.
    pub fn open(path: &Path, queues: u16) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)?;
        let len = (HEADER + usize::from(queues) * PART) as u64;
        let found = file.metadata()?.len();
        if found != 0 {
            let mut format = [0; size_of::<u64>()];
            let is_log = file.read_exact_at(&mut format, 0).is_ok();
            if !is_log || u64::from_le_bytes(format) != FORMAT {
                let message = "the file is no log of requests in flight";
                return Err(io::Error::new(io::ErrorKind::InvalidData, message));
            }
        }
        let is_new = found != len;
        if is_new {
            file.set_len(0)?;
            file.set_len(len)?;
        }
        // Writing to a hole of the file fails with a signal if the file system is full.
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, len)?;
        let mapping = Arc::new(Mapping::of_file(file.as_fd(), 0, len, ACCESS_RW)?);
        let log = Self {
            mapping,
            queues,
            is_new,
        };
        // Without a size, a virtqueue's part counts as that of another virtqueue.
        Area::of_mapping(&log.mapping, 0, HEADER).write_u64(0, FORMAT);
        Ok(log)
    }

    /// Returns whether the log has just begun, so that it says nothing about requests in flight.
    pub fn is_new(&self) -> bool {
        self.is_new
    }

    /// Returns the number of virtqueues.
    pub fn queues(&self) -> u16 {
        self.queues
    }

    /// Returns the part of a virtqueue.
    ///
    /// # Panics
    ///
    /// Panics if there is no such virtqueue.
    pub(crate) fn queue(&self, index: u16) -> QueueLog {
        assert!(index < self.queues);
        let at = HEADER + usize::from(index) * PART;
        QueueLog {
            area: Area::of_mapping(&self.mapping, at, PART),
            publishing: Vec::new(),
        }
    }
}

/// The log of one virtqueue.
#[derive(Debug)]
pub(crate) struct QueueLog {
    area: Area,
    /// The requests that were pushed but not published.
    publishing: Vec<u16>,
}

impl QueueLog {
    /// Allocates memory for all requests that can be pushed before they are published.
    pub(super) fn reserve(&mut self, size: u16) {
        self.publishing = memory::touched(size.into());
    }

    fn state(&self, head: u16) -> u8 {
        self.area.load_u8(HEADER + usize::from(head))
    }

    #[inline]
    fn set_state(&self, head: u16, state: u8) {
        self.area.store_u8(HEADER + usize::from(head), state);
    }

    fn clear(&self) {
        self.area.store_u16(SIZE, 0, Ordering::Release);
        for head in 0..MAX_SIZE {
            self.set_state(head, FREE);
        }
    }

    /// Begins the log anew, for a virtqueue with these settings, whose used ring has the index
    /// `used`.
    pub(super) fn begin(&self, settings: &Settings, used: u16) {
        self.clear();
        self.area.write_u64(DESCRIPTORS, settings.descriptors);
        self.area.write_u64(DRIVER, settings.driver);
        self.area.write_u64(DEVICE, settings.device);
        self.area.store_u16(OLD_USED, used, Ordering::Relaxed);
        self.area.store_u16(NEW_USED, used, Ordering::Relaxed);
        self.area.store_u16(SIZE, settings.size, Ordering::Release);
    }

    /// Returns the requests that were in flight when the previous program ended, or `None` if the
    /// log is not one of this virtqueue. `used` is the index of the used ring.
    pub(super) fn recover(&self, settings: &Settings, used: u16) -> Option<Vec<u16>> {
        let (old, new) = (self.used(OLD_USED), self.used(NEW_USED));
        let is_ours = self.area.load_u16(SIZE, Ordering::Acquire) == settings.size
            && self.area.read_u64(DESCRIPTORS) == settings.descriptors
            && self.area.read_u64(DRIVER) == settings.driver
            && self.area.read_u64(DEVICE) == settings.device
            && (used == old || used == new);
        if !is_ours {
            return None;
        }
        let mut in_flight = Vec::new();
        for head in 0..settings.size {
            match self.state(head) {
                FREE => {}
                PUBLISHING if used == new => self.set_state(head, FREE),
                _ => {
                    self.set_state(head, IN_FLIGHT);
                    in_flight.push(head);
                }
            }
        }
        Some(in_flight)
    }

    fn used(&self, at: usize) -> u16 {
        self.area.load_u16(at, Ordering::Relaxed)
    }

    /// Records that the device has taken a request.
    #[inline]
    pub(super) fn taken(&self, head: u16) {
        self.set_state(head, IN_FLIGHT);
    }

    /// Records that the device has completed a request, which is not published.
    #[inline]
    pub(super) fn pushed(&mut self, head: u16) {
        self.publishing.push(head);
    }

    /// Prepares to publish all requests that were pushed, by changing the index of the used ring
    /// from `old` to `new`.
    #[inline]
    pub(super) fn prepare(&mut self, old: u16, new: u16) {
        // While no request is being published, the successor needs neither index, as long as one of
        // them is that of the ring. So the order of these two does not matter.
        self.area.store_u16(OLD_USED, old, Ordering::Relaxed);
        self.area.store_u16(NEW_USED, new, Ordering::Release);
        for &head in &self.publishing {
            self.set_state(head, PUBLISHING);
        }
    }

    /// Records that the requests are published.
    #[inline]
    pub(super) fn published(&mut self) {
        for &head in &self.publishing {
            self.set_state(head, FREE);
        }
        self.publishing.clear();
    }
}
