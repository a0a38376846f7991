// SPDX-License-Identifier: GPL-2.0

//! A device's configuration space.
//!
//! No other lock is taken while the mutex of a configuration space is held.

use crate::bindings::sched;
use kernel::{
    new_mutex,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Mutex, //
    },
    time::{
        Delta,
        Instant,
        Monotonic, //
    },
};

/// Minimum time between two writes to a configuration space. Between two writes, a driver has time
/// to read all fields that belong together: some tens of bytes, which it reads one by one.
const PAUSE: Delta = Delta::from_millis(5);

struct Content {
    bytes: KVVec<u8>,
    /// The time of the last write by the daemon, if there was one.
    written: Option<Instant<Monotonic>>,
}

/// A device's configuration space. Its methods may sleep, except for those that say otherwise.
#[pin_data]
pub(super) struct ConfigSpace {
    #[pin]
    content: Mutex<Content>,
    /// A number that changes whenever the content may have changed.
    generation: Atomic<u32>,
}

impl ConfigSpace {
    /// Creates a configuration space with the given content.
    pub(super) fn new(bytes: KVVec<u8>) -> impl PinInit<Self> {
        pin_init!(Self {
            content <- new_mutex!(Content { bytes, written: None }, "ConfigSpace::content"),
            generation: Atomic::new(0),
        })
    }

    /// Returns the size in bytes, which never changes.
    pub(super) fn size(&self) -> usize {
        self.content.lock().bytes.len()
    }

    /// Returns whether `len` bytes from `offset` on are within the configuration space.
    pub(super) fn has(&self, offset: usize, len: usize) -> bool {
        offset
            .checked_add(len)
            .is_some_and(|end| end <= self.size())
    }

    /// Reads the bytes from `offset` on. Bytes of `buf` beyond the end of the configuration space
    /// are left unchanged.
    pub(super) fn read(&self, offset: usize, buf: &mut [u8]) {
        let content = self.content.lock();

        if let Some(from) = content.bytes.get(offset..) {
            for (to, from) in buf.iter_mut().zip(from) {
                *to = *from;
            }
        }
    }

    /// Waits until [`PAUSE`] has passed since the previous write, then writes `buf` to byte
    /// `offset` on behalf of the daemon.
    ///
    /// # Errors
    ///
    /// - [`EINVAL`] if the range is not entirely within the configuration space.
    /// - [`EINTR`] if the task is killed.
    pub(super) fn write(&self, offset: usize, buf: &[u8]) -> Result {
        // A driver that reads fields while they change reads all of them again, however often they
        // change. Only the pause between writes ensures that this loop of the driver ends.
        loop {
            let mut content = self.content.lock();
            let Content { bytes, written } = &mut *content;
            let to = bytes
                .get_mut(offset..)
                .and_then(|space| space.get_mut(..buf.len()))
                .ok_or(EINVAL)?;

            if written.is_none_or(|written| written.elapsed() >= PAUSE) {
                to.copy_from_slice(buf);
                *written = Some(Instant::now());
                self.change_generation();
                return Ok(());
            }
            drop(content);
            sched::sleep_killable(PAUSE)?;
        }
    }

    /// Returns a number that changes whenever the content may have changed. Does not sleep.
    pub(super) fn generation(&self) -> u32 {
        self.generation.load(Relaxed)
    }

    /// Changes the [generation](Self::generation). Does not sleep.
    pub(super) fn change_generation(&self) {
        let _ = self.generation.fetch_add(1, Relaxed);
    }
}
