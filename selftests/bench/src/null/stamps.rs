// SPDX-License-Identifier: GPL-2.0

//! Time stamps of a device's last request: when a kick woke the virtqueue's thread, and when the
//! thread was about to interrupt the driver.

use std::fmt::Debug;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::clock;

/// The time stamps of the last request. They are recorded only after a call of `want`.
#[derive(Debug, Default)]
pub struct Stamps {
    wanted: AtomicBool,
    woken: AtomicU64,
    injecting: AtomicU64,
}

impl Stamps {
    /// Starts recording time stamps.
    pub fn want(&self) {
        self.wanted.store(true, Ordering::Relaxed);
    }

    /// Returns the time at which a kick last woke a virtqueue's thread, in ns.
    pub fn woken(&self) -> u64 {
        self.woken.load(Ordering::Acquire)
    }

    /// Returns the time at which a virtqueue's thread was last about to interrupt the driver, in
    /// ns.
    pub fn injecting(&self) -> u64 {
        self.injecting.load(Ordering::Acquire)
    }

    /// Records that a kick has woken a virtqueue's thread.
    pub(super) fn take_woken(&self) {
        self.take(&self.woken);
    }

    /// Records that a virtqueue's thread is about to interrupt the driver.
    pub(super) fn take_injecting(&self) {
        self.take(&self.injecting);
    }

    fn take(&self, which: &AtomicU64) {
        if self.wanted.load(Ordering::Relaxed) {
            which.store(clock::now(), Ordering::Release);
        }
    }
}
