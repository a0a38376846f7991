// SPDX-License-Identifier: GPL-2.0

//! Notification of suspend and hibernation.
//!
//! C header: [`include/linux/suspend.h`](srctree/include/linux/suspend.h)

use super::raw as bindings;
use kernel::{
    container_of,
    error::to_result,
    prelude::*,
    sync::atomic::{
        AtomicFlag,
        Relaxed, //
    },
    types::Opaque, //
};

/// A notifier that records whether the machine is being suspended. Dropping this value unregisters
/// the notifier.
///
/// # Invariants
///
/// `notifier` is registered, with [`Self::notify`] as its callback.
#[pin_data(PinnedDrop)]
pub(crate) struct SuspendWatch {
    #[pin]
    notifier: Opaque<bindings::notifier_block>,
    suspending: AtomicFlag,
}

// SAFETY: A notifier may be unregistered by any task.
unsafe impl Send for SuspendWatch {}
// SAFETY: Only the notifier chain uses the C structure, and the chain has a lock of its own.
unsafe impl Sync for SuspendWatch {}

impl SuspendWatch {
    /// Returns an initialiser that registers the notifier. Initialising may sleep.
    pub(crate) fn new() -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            suspending: AtomicFlag::new(false),
            // INVARIANT: The initialiser registers the notifier.
            notifier <- Opaque::try_ffi_init(|slot: *mut bindings::notifier_block| {
                let notifier = bindings::notifier_block {
                    notifier_call: Some(Self::notify),
                    ..pin_init::zeroed()
                };

                // SAFETY: `slot` is valid for writes.
                unsafe { slot.write(notifier) };
                // SAFETY: The notifier is set up, and pinned until it is unregistered.
                to_result(unsafe { bindings::add_pm_notifier(slot) })
            }),
        })
    }

    /// Returns whether the machine is being suspended or hibernated, or restored from hibernation.
    /// Returns `true` from before the kernel freezes tasks until it has thawed them. Any context.
    pub(crate) fn is_suspending(&self) -> bool {
        self.suspending.load(Relaxed)
    }

    /// Records the start or the end of a suspend. The kernel calls this function on each PM event.
    ///
    /// # Safety
    ///
    /// `notifier` must be the `notifier` field of a [`SuspendWatch`], and must be registered.
    unsafe extern "C" fn notify(
        notifier: *mut bindings::notifier_block,
        event: c_ulong,
        _data: *mut c_void,
    ) -> c_int {
        // SAFETY: The notifier chain passes the notifier that was registered, which is the
        // `notifier` field of a watch. The watch's other field was initialised before the notifier
        // was registered.
        let suspending = unsafe {
            let this = container_of!(Opaque::cast_from(notifier), Self, notifier);

            &(*this).suspending
        };

        match event as u32 {
            bindings::PM_SUSPEND_PREPARE
            | bindings::PM_HIBERNATION_PREPARE
            | bindings::PM_RESTORE_PREPARE => suspending.store(true, Relaxed),
            bindings::PM_POST_SUSPEND
            | bindings::PM_POST_HIBERNATION
            | bindings::PM_POST_RESTORE => suspending.store(false, Relaxed),
            _ => (),
        }

        bindings::NOTIFY_DONE as c_int
    }
}

#[pinned_drop]
impl PinnedDrop for SuspendWatch {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: By the type invariants, the notifier is registered.
        unsafe { bindings::remove_pm_notifier(self.notifier.get()) };
    }
}
