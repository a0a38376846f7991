// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The device side of a virtqueue, whatever its layout.

use std::sync::Arc;

use vduse_uapi as uapi;

use crate::virtqueue::chain::{Chain, Memory};
use crate::virtqueue::error::Error;
use crate::virtqueue::log::InFlightLog;
use crate::virtqueue::packed::Packed;
use crate::virtqueue::settings::{Position, Settings};
use crate::virtqueue::split::Split;
use crate::virtqueue::taken::Taken;
use crate::virtqueue::walk::Walker;

/// The rings of a virtqueue, by layout.
#[derive(Debug)]
enum Rings {
    Split(Split),
    Packed(Packed),
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
    walker: Walker,
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
                rings: Rings::Packed(Packed::new(settings, state, &memory)?),
                walker: Walker::new(settings),
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
            rings: Rings::Split(Split::new(settings, position, &memory)?),
            walker: Walker::new(settings),
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
