// SPDX-License-Identifier: GPL-2.0

//! Functions that run again and again, some time after the previous run.
//!
//! [`kernel::workqueue::DelayedWork`] cannot be cancelled, so its code could run after the module
//! is unloaded.
//!
//! C header: [`include/linux/workqueue.h`](srctree/include/linux/workqueue.h)

use super::raw as bindings;
use core::ptr;
use kernel::{
    container_of,
    prelude::*,
    time::{
        msecs_to_jiffies,
        Delta, //
    },
    types::Opaque,
    workqueue, //
};

/// What a [`Ticker`] does.
pub(crate) trait Tick: Send + Sync + 'static {
    /// Does the work. Returns the time until the next run.
    ///
    /// # Context
    ///
    /// May sleep. Only one call is in progress at a time.
    fn tick(&self) -> Delta;
}

/// Returns the workqueue on which tickers run.
fn queue() -> *mut bindings::workqueue_struct {
    ptr::from_ref(workqueue::system_unbound()).cast_mut().cast()
}

/// Converts a time to jiffies, rounded up.
fn jiffies(time: Delta) -> c_ulong {
    msecs_to_jiffies(u32::try_from(time.as_millis()).unwrap_or(u32::MAX))
}

/// A function that runs in process context, some time after the previous run. Dropping this value
/// waits for a run in progress and prevents all others. The timer does not wake an idle CPU.
///
/// # Invariants
///
/// `work` is initialised with [`Self::run`] as its function, and pinned.
#[pin_data(PinnedDrop)]
pub(crate) struct Ticker<T: Tick> {
    #[pin]
    work: Opaque<bindings::delayed_work>,
    #[pin]
    data: T,
}

// SAFETY: A delayed work may be queued and cancelled by any task.
unsafe impl<T: Tick> Send for Ticker<T> {}
// SAFETY: The workqueue core synchronises all access to the delayed work, and `T` is `Sync`.
unsafe impl<T: Tick> Sync for Ticker<T> {}

impl<T: Tick> Ticker<T> {
    /// Returns an initialiser for a ticker that does not run before [`expedite`](Self::expedite) is
    /// called.
    pub(crate) fn new(data: impl PinInit<T>) -> impl PinInit<Self> {
        pin_init!(Self {
            // INVARIANT: The initialiser sets the function.
            work <- Opaque::ffi_init(|slot| {
                // SAFETY: `slot` is valid for writes, and pinned.
                unsafe { bindings::init_deferrable_work(slot, Some(Self::run)) }
            }),
            data <- data,
        })
    }

    /// Returns what was passed to [`new`](Self::new).
    pub(crate) fn data(&self) -> &T {
        &self.data
    }

    /// Makes the next run begin when `delay` has passed, whatever was planned. Any context.
    pub(crate) fn expedite(&self, delay: Delta) {
        // SAFETY: By the type invariants, the work is initialised. The queue exists as long as the
        // kernel runs. The work stays valid until it is disabled, in `drop`.
        unsafe {
            bindings::mod_delayed_work_on(
                bindings::wq_misc_consts_WORK_CPU_UNBOUND as c_int,
                queue(),
                self.work.get(),
                jiffies(delay),
            );
        }
    }

    /// Runs once, and plans the next run.
    ///
    /// # Safety
    ///
    /// `work` must belong to the `work` field of a [`Ticker<T>`], and must be running.
    unsafe extern "C" fn run(work: *mut bindings::work_struct) {
        // SAFETY: By the safety requirements, `work` is in a delayed work that is in a ticker. The
        // ticker is not dropped before this function has returned.
        let this = unsafe {
            let delayed = container_of!(work, bindings::delayed_work, work);

            &*container_of!(Opaque::cast_from(delayed), Self, work)
        };

        let delay = jiffies(this.data.tick());
        // Has no effect if the next run was expedited meanwhile.
        // SAFETY: As in `expedite`.
        unsafe {
            bindings::queue_delayed_work_on(
                bindings::wq_misc_consts_WORK_CPU_UNBOUND as c_int,
                queue(),
                this.work.get(),
                delay,
            );
        }
    }
}

#[pinned_drop]
impl<T: Tick> PinnedDrop for Ticker<T> {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: By the type invariants, the work is initialised. `run` never drops a ticker, so
        // it does not wait for itself.
        unsafe { bindings::disable_delayed_work_sync(self.work.get()) };
    }
}
