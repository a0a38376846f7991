// SPDX-License-Identifier: GPL-2.0

//! Who uses a device: a daemon that has it open, or a driver on the vDPA bus.
//!
//! A device that is in use cannot be destroyed, and a device that was destroyed cannot be used.

use kernel::{
    new_mutex,
    prelude::*,
    sync::Mutex, //
};

#[derive(Default)]
struct State {
    /// Whether a daemon has the device open.
    open: bool,
    /// Whether the device is on the vDPA bus.
    attached: bool,
    /// Whether the device was destroyed.
    destroyed: bool,
}

/// The usage of one device.
///
/// All methods may sleep. A closure that is passed to one of them runs under the lock of the usage,
/// so that nobody begins to use the device meanwhile.
#[pin_data]
pub(super) struct Usage {
    #[pin]
    state: Mutex<State>,
}

impl Usage {
    /// Creates the usage of a device that nobody uses yet.
    pub(super) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            state <- new_mutex!(State::default(), "Usage::state"),
        })
    }

    /// Records that a daemon opens the device, then calls `opened`.
    ///
    /// # Errors
    ///
    /// - [`EBUSY`] if another daemon has the device open.
    /// - [`ENODEV`] if the device was destroyed.
    pub(super) fn open(&self, opened: impl FnOnce()) -> Result {
        let mut state = self.state.lock();
        if state.destroyed {
            return Err(ENODEV);
        }
        if state.open {
            return Err(EBUSY);
        }

        state.open = true;
        opened();

        Ok(())
    }

    /// Records that the daemon has closed the device.
    pub(super) fn close(&self) {
        self.state.lock().open = false;
    }

    /// Records that the device is put on the vDPA bus, if `prepare` succeeds.
    ///
    /// # Errors
    ///
    /// - [`EEXIST`] if the device is on the bus already.
    /// - [`EINVAL`] if the device was destroyed.
    /// - Those of `prepare`, which is not called if the device is on the bus.
    pub(super) fn attach(&self, prepare: impl FnOnce() -> Result) -> Result {
        let mut state = self.state.lock();
        if state.attached {
            return Err(EEXIST);
        }
        if state.destroyed {
            return Err(EINVAL);
        }

        prepare()?;
        state.attached = true;

        Ok(())
    }

    /// Records that the device has left the vDPA bus.
    pub(super) fn detach(&self) {
        self.state.lock().attached = false;
    }

    /// Calls `change` with whether the device is on the vDPA bus. The device is neither put on the
    /// bus nor taken off it until `change` returns.
    pub(super) fn with_attached<T>(&self, change: impl FnOnce(bool) -> T) -> T {
        let state = self.state.lock();

        change(state.attached)
    }

    /// Records that the device is destroyed.
    ///
    /// # Errors
    ///
    /// [`EBUSY`] if a daemon has the device open, or if the device is on the vDPA bus.
    pub(super) fn destroy(&self) -> Result {
        let mut state = self.state.lock();
        if state.open || state.attached {
            return Err(EBUSY);
        }

        state.destroyed = true;

        Ok(())
    }
}
