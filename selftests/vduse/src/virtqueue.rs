// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The device side of a virtqueue (virtio 1.3, sections 2.7 and 2.8), split or packed.
//!
//! A [`Virtqueue`] knows where its rings are mapped, so that a request needs no system call, no
//! allocation and no lock. The device takes a request with [`pop`](Virtqueue::pop), which fills a
//! [`Chain`] that the caller reuses. The device completes requests with
//! [`push`](Virtqueue::push), in any order, and then makes all of them visible to the driver with
//! one call of [`publish`](Virtqueue::publish).
//!
//! Everything in the rings comes from the driver and can change at any time. Each index, length and
//! address is read once, checked, and only then used. A [`Chain`] contains only buffers that are
//! mapped with the permissions that the request needs.

mod area;
mod chain;
mod log;
mod packed;
mod split;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod walk;
mod window;

use std::fmt;
use std::io;
use std::sync::Arc;

use vduse_uapi as uapi;
use virtio_bindings::virtio_config::VIRTIO_F_RING_PACKED;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use crate::iotlb::AddressSpace;

pub use chain::{Chain, Reader, Writer};
pub use log::InFlightLog;

/// The driver's memory, in which a virtqueue and its buffers are.
pub type Memory = Arc<AddressSpace>;

/// Maximum size of a virtqueue, in descriptors (virtio 1.3, sections 2.7 and 2.8.10.1).
pub const MAX_SIZE: u16 = 0x8000;

/// The driver's settings of a virtqueue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Size in descriptors, 1 to [`MAX_SIZE`]. A power of 2, if the virtqueue is split.
    pub size: u16,
    /// IOVA of the descriptor area: the descriptor table, or a packed virtqueue's ring.
    pub descriptors: u64,
    /// IOVA of the driver area: the available ring, or a packed virtqueue's driver event
    /// suppression.
    pub driver: u64,
    /// IOVA of the device area: the used ring, or a packed virtqueue's device event suppression.
    pub device: u64,
    /// The feature bits that the driver has accepted.
    pub features: u64,
}

impl Settings {
    /// Returns the settings that `VQ_GET_INFO` reports, or `None` if the size is not a size.
    pub fn new(info: &uapi::VqInfo, features: u64) -> Option<Self> {
        Some(Self {
            size: u16::try_from(info.num).ok()?,
            descriptors: info.desc_addr,
            driver: info.driver_addr,
            device: info.device_addr,
            features,
        })
    }

    fn has(&self, bit: u32) -> bool {
        self.features & 1 << bit != 0
    }

    /// Returns whether the virtqueue is packed.
    pub fn is_packed(&self) -> bool {
        self.has(VIRTIO_F_RING_PACKED)
    }

    fn event_idx(&self) -> bool {
        self.has(VIRTIO_RING_F_EVENT_IDX)
    }

    fn indirect(&self) -> bool {
        self.has(VIRTIO_RING_F_INDIRECT_DESC)
    }
}

/// A device's position in a virtqueue: the requests that it has taken, and those that it has
/// completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Position {
    /// The position in a split virtqueue.
    Split {
        /// The index of the available-ring entry that the device takes next.
        next_avail: u16,
        /// The index of the used-ring entry that the device writes next.
        next_used: u16,
    },
    /// The position in a packed virtqueue.
    Packed(uapi::PackedState),
}

/// An error in a virtqueue. Except for an unmapped ring in [`Virtqueue::set_memory`], the device cannot serve the virtqueue until the driver has reset it.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// The size is 0, too large, or not a power of 2 in a split virtqueue.
    Size(u16),
    /// The position is that of the other kind of virtqueue, or is outside the virtqueue.
    Position,
    /// A ring is not aligned.
    Misaligned(u64),
    /// A ring or a buffer is not mapped, or not with the permissions that the device needs.
    Unmapped(u64, io::Error),
    /// A ring is spread over several regions of the IOTLB.
    Scattered(u64),
    /// The driver has made more requests available than the virtqueue has entries.
    TooManyAvailable,
    /// The index of a descriptor is outside its table.
    BadIndex(u16),
    /// A chain of descriptors is circular, or longer than its table.
    EndlessChain,
    /// A descriptor refers to an indirect table where it must not, or the table's length is not a
    /// multiple of a descriptor's.
    BadIndirect,
    /// A device-readable descriptor follows a device-writable one.
    ReadableAfterWritable,
    /// The buffers of a request have 2^32 bytes or more.
    TooLong,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Size(size) => write!(f, "a virtqueue cannot have {size} entries"),
            Self::Position => f.write_str("the position is not one in this virtqueue"),
            Self::Misaligned(iova) => write!(f, "the ring at {iova:#x} is not aligned"),
            Self::Unmapped(iova, error) => write!(f, "{iova:#x} cannot be accessed: {error}"),
            Self::Scattered(iova) => write!(f, "the ring at {iova:#x} is not in one region"),
            Self::TooManyAvailable => f.write_str("more requests available than entries"),
            Self::BadIndex(index) => write!(f, "there is no descriptor {index}"),
            Self::EndlessChain => f.write_str("a chain of descriptors has no end"),
            Self::BadIndirect => f.write_str("an indirect table where none can be"),
            Self::ReadableAfterWritable => {
                f.write_str("a readable descriptor follows a writable one")
            }
            Self::TooLong => f.write_str("a request of 4 GiB or more"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Unmapped(_, error) => Some(error),
            _ => None,
        }
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        Self::new(io::ErrorKind::InvalidData, error)
    }
}

/// What a device has taken from a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Taken {
    /// A request.
    Request,
    /// A request with a buffer that is not mapped. The chain has its id, and maybe some buffers.
    Unmapped,
    /// Nothing, as there was no request.
    Nothing,
}

/// Returns the result of a walk, for which a buffer that is not mapped is no error of the ring.
#[inline]
fn unless_unmapped(walked: Result<(), Error>) -> Result<Taken, Error> {
    match walked {
        Ok(()) => Ok(Taken::Request),
        Err(Error::Unmapped(..)) => Ok(Taken::Unmapped),
        Err(error) => Err(error),
    }
}

/// The rings of a virtqueue, by layout.
#[derive(Debug)]
enum Rings {
    Split(split::Split),
    Packed(packed::Packed),
}

/// The device side of a virtqueue.
///
/// # Examples
///
/// ```no_run
/// use std::sync::Arc;
/// use vduse::iotlb::AddressSpace;
/// use vduse::virtqueue::{Chain, Settings, Virtqueue};
/// use vduse::Device;
///
/// # fn main() -> std::io::Result<()> {
/// let device = Arc::new(Device::open("disk0")?);
/// let memory = Arc::new(AddressSpace::new(device.clone()));
/// let info = device.vq_info(0)?;
/// let settings = Settings::new(&info, device.features()?).expect("a size");
/// let mut vq = Virtqueue::new(&settings, &info.state, memory)?;
/// let mut chain = Chain::new();
/// while vq.pop(&mut chain)? {
///     // Here, the device serves the request.
///     vq.push(&chain, 0);
/// }
/// if vq.publish() {
///     device.inject_vq_irq(0)?;
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Virtqueue {
    settings: Settings,
    memory: Memory,
    rings: Rings,
    walker: walk::Walker,
}

impl Virtqueue {
    /// Creates the device side of a virtqueue that the driver has just enabled. `state` is the
    /// state that `VQ_GET_INFO` reports.
    ///
    /// # Errors
    ///
    /// Fails if the settings are not valid, or if a ring is not mapped.
    pub fn new(
        settings: &Settings,
        state: &uapi::VqStateUnion,
        memory: Memory,
    ) -> Result<Self, Error> {
        if settings.is_packed() {
            let position = Position::Packed(state.packed());
            return Self::at(settings, position, memory);
        }
        let next_avail = state.split();
        Self::split(settings, memory, |used| (next_avail, used))
    }

    /// Creates the device side of a virtqueue that another program has served, and in which it has
    /// not completed some of the requests that it has taken. Without a [log](Self::set_log), the
    /// other program must have completed requests in order of arrival.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new). Also fails for a packed virtqueue, which does not show how far the
    /// other program has come.
    pub fn take_over(settings: &Settings, memory: Memory) -> Result<Self, Error> {
        if settings.is_packed() {
            return Err(Error::Position);
        }
        Self::split(settings, memory, |used| (used, used))
    }

    /// Creates the device side of a virtqueue from `position` on.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub fn at(settings: &Settings, position: Position, memory: Memory) -> Result<Self, Error> {
        match position {
            Position::Packed(state) if settings.is_packed() => Ok(Self {
                rings: Rings::Packed(packed::Packed::new(settings, state, &memory)?),
                walker: walk::Walker::new(settings),
                settings: *settings,
                memory,
            }),
            Position::Split {
                next_avail,
                next_used,
            } if !settings.is_packed() => {
                Self::split(settings, memory, |_| (next_avail, next_used))
            }
            _ => Err(Error::Position),
        }
    }

    /// Creates the device side of a split virtqueue. `position` receives the index of the used ring
    /// that the driver sees, and returns `next_avail` and `next_used`.
    fn split(
        settings: &Settings,
        memory: Memory,
        position: impl FnOnce(u16) -> (u16, u16),
    ) -> Result<Self, Error> {
        Ok(Self {
            rings: Rings::Split(split::Split::new(settings, position, &memory)?),
            walker: walk::Walker::new(settings),
            settings: *settings,
            memory,
        })
    }

    /// Records the requests in flight in the part of `log` for virtqueue `index` from now on. Must be
    /// called before the first request is taken. If `take_over` is set, the device first takes the
    /// requests that were in flight according to the log. A packed virtqueue has no log: for it, this
    /// does nothing.
    ///
    /// # Panics
    ///
    /// Panics if the log has no such virtqueue.
    pub fn set_log(&mut self, log: &InFlightLog, index: u16, take_over: bool) {
        if let Rings::Split(split) = &mut self.rings {
            split.set_log(log.queue(index), &self.settings, take_over);
        }
    }

    /// Returns the device's position, without the requests that were [pushed](Self::push) but not
    /// [published](Self::publish).
    pub fn position(&self) -> Position {
        match &self.rings {
            Rings::Split(split) => split.position(),
            Rings::Packed(packed) => Position::Packed(packed.position()),
        }
    }

    /// Returns the driver's settings.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Returns the memory in which the virtqueue is.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Replaces the memory, after some of its mappings have changed. Chains that the device has
    /// taken keep the old memory.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new). The virtqueue has the old memory then.
    pub fn set_memory(&mut self, memory: Memory) -> Result<(), Error> {
        if Arc::ptr_eq(&self.memory, &memory) {
            return Ok(());
        }
        match &mut self.rings {
            Rings::Split(split) => split.remap(&self.settings, &memory)?,
            Rings::Packed(packed) => packed.remap(&self.settings, &memory)?,
        }
        self.walker.forget();
        self.memory = memory;
        Ok(())
    }

    /// Takes the next available request. Returns whether there was one, and fills `chain` with its
    /// buffers.
    ///
    /// A request with a buffer that is not mapped is completed here, without a byte written, and
    /// becomes visible to the driver with the next call of [`publish`](Self::publish).
    ///
    /// # Errors
    ///
    /// Fails if the request or the ring is malformed. The device cannot serve the virtqueue any
    /// more.
    #[inline]
    pub fn pop(&mut self, chain: &mut Chain) -> Result<bool, Error> {
        loop {
            chain.clear(&self.memory);
            let taken = match &mut self.rings {
                Rings::Split(split) => split.pop(&mut self.walker, &self.memory, chain),
                Rings::Packed(packed) => packed.pop(&mut self.walker, &self.memory, chain),
            };
            match taken {
                Ok(Taken::Request) => return Ok(true),
                Ok(Taken::Nothing) => return Ok(false),
                // This ends: a virtqueue cannot have more requests than descriptors before any of
                // them is published.
                Ok(Taken::Unmapped) => self.push(chain, 0),
                Err(error) => {
                    chain.clear(&self.memory);
                    return Err(error);
                }
            }
        }
    }

    /// Completes a request. `written` is the number of bytes that the device has written to its
    /// buffers. The driver does not see that before [`publish`](Self::publish).
    ///
    /// `chain` must be a request of this virtqueue that was not completed yet. Otherwise, the driver
    /// sees something else complete.
    ///
    /// # Panics
    ///
    /// Panics if a packed virtqueue has no such request in flight.
    #[inline]
    pub fn push(&mut self, chain: &Chain, written: u32) {
        match &mut self.rings {
            Rings::Split(split) => split.push(chain, written),
            Rings::Packed(packed) => packed.push(chain, written),
        }
    }

    /// Makes the completed requests visible to the driver. Returns whether the driver wants an
    /// interrupt for them.
    #[inline]
    pub fn publish(&mut self) -> bool {
        match &mut self.rings {
            Rings::Split(split) => split.publish(),
            Rings::Packed(packed) => packed.publish(),
        }
    }

    /// Tells the driver that it need not kick. The driver may kick all the same.
    #[inline]
    pub fn disable_kicks(&mut self) {
        match &mut self.rings {
            Rings::Split(split) => split.disable_kicks(),
            Rings::Packed(packed) => packed.disable_kicks(),
        }
    }

    /// Asks the driver to kick when it makes the next request available. Returns whether there is a
    /// request already, of which the driver may not kick.
    #[inline]
    pub fn enable_kicks(&mut self) -> bool {
        match &mut self.rings {
            Rings::Split(split) => split.enable_kicks(),
            Rings::Packed(packed) => packed.enable_kicks(),
        }
    }
}

/// Returns whether an event index lies in the entries from `old` to `new` (virtio 1.3, section
/// 2.7.10): whether the other side wants to be notified of them.
fn crosses(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}
