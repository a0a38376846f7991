// SPDX-License-Identifier: GPL-2.0

//! The times of the last request: when it came, when it went.

use std::fmt::Debug;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::clock;

/// The times when the last request came and went, recorded only on demand.
#[derive(Debug, Default)]
pub struct Stamps {
    wanted: AtomicBool,
    woken: AtomicU64,
    injecting: AtomicU64,
}

impl Stamps {
    /// Records the times from now on.
    pub fn want(&self) {
        self.wanted.store(true, Ordering::Relaxed);
    }

    /// Returns when a virtqueue's thread was woken by a kick, in ns.
    pub fn woken(&self) -> u64 {
        self.woken.load(Ordering::Acquire)
    }

    /// Returns when a virtqueue's thread was about to interrupt the driver, in ns.
    pub fn injecting(&self) -> u64 {
        self.injecting.load(Ordering::Acquire)
    }

    /// Records that a virtqueue's thread was woken.
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
