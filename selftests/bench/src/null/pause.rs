// SPDX-License-Identifier: GPL-2.0

//! A switch that pauses the threads that serve a device's virtqueues.

use std::fmt::Debug;
use std::sync::{Condvar, Mutex, PoisonError};

/// A switch. While it is on, a virtqueue's thread waits before it serves the next kick.
#[derive(Debug, Default)]
pub struct Pause {
    paused: Mutex<bool>,
    changed: Condvar,
}

impl Pause {
    /// Pauses the threads that serve the virtqueues, until the returned guard is dropped.
    pub fn begin(&self) -> Paused<'_> {
        self.set_paused(true);
        Paused(self)
    }

    fn set_paused(&self, paused: bool) {
        *self.paused.lock().unwrap_or_else(PoisonError::into_inner) = paused;
        self.changed.notify_all();
    }

    /// Waits until the pause is over.
    pub(super) fn wait(&self) {
        let paused = self.paused.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.changed.wait_while(paused, |paused| *paused));
    }
}

/// A guard that ends the pause on drop.
#[derive(Debug)]
pub struct Paused<'a>(&'a Pause);

impl Drop for Paused<'_> {
    fn drop(&mut self) {
        self.0.set_paused(false);
    }
}
