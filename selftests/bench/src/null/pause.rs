// SPDX-License-Identifier: GPL-2.0

//! A pause of a device's virtqueues.

use std::fmt::Debug;
use std::sync::{Condvar, Mutex, PoisonError};

/// Stops the virtqueues' threads before their next request while the pause lasts.
#[derive(Debug, Default)]
pub struct Pause {
    paused: Mutex<bool>,
    changed: Condvar,
}

impl Pause {
    /// Pauses until the returned guard is dropped.
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

/// A guard for as long as a pause lasts.
#[derive(Debug)]
pub struct Paused<'a>(&'a Pause);

impl Drop for Paused<'_> {
    fn drop(&mut self) {
        self.0.set_paused(false);
    }
}
