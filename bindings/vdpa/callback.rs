// SPDX-License-Identifier: GPL-2.0

//! The callbacks with which a vDPA device interrupts its driver.
//!
//! C header: [`include/linux/vdpa.h`](srctree/include/linux/vdpa.h)

use super::{
    super::{
        lock::{
            new_spinlock_bh,
            SpinLockBh, //
        },
        raw as bindings, //
    },
    bus_driver::BusDriver, //
};
use kernel::{
    alloc::flags::GFP_KERNEL_ACCOUNT,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Full,
            Relaxed,
            Release, //
        },
        Arc, //
    },
};

/// A driver's interrupt callback.
struct Callback {
    function: unsafe extern "C" fn(*mut c_void) -> bindings::irqreturn_t,
    private: *mut c_void,
}

// SAFETY: A driver's callback may be called in any task, because an interrupt can occur in any
// task.
unsafe impl Send for Callback {}

struct SlotState {
    callback: Option<Callback>,
    /// Whether the virtqueue is ready. In the slot for configuration changes, this field is set
    /// together with the callback.
    vq_ready: bool,
    /// Whether the driver has written `DRIVER_OK`, whatever the daemon has answered. Cleared when
    /// the slot is emptied.
    driver_ok: bool,
    /// Whether the device is suspended. If so, interrupts are refused.
    suspended: bool,
}

/// The reason why an interrupt was refused: the device is suspended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Suspended;

/// A slot that holds one callback of a driver: the callback of a virtqueue, or the callback for
/// configuration changes.
///
/// The [`Device`](super::device::Device) that owns the slot fills the slot when the driver passes a
/// callback. The [state machine](super::status::step) of the device status decides when a write to
/// the status empties the slot. A callback is called only with the slot's lock held, and only if
/// these conditions hold:
///
/// - The driver has written `DRIVER_OK` (virtio 1.3, section 3.1.1), whatever the daemon has
///   answered. Before that, the driver is not ready for interrupts, even if its virtqueues are
///   ready.
/// - Since then, none of these events has happened: the device was reset (for vhost, the reset is
///   complete), the driver wrote `FAILED`, a kernel driver disabled its last virtqueue, or the
///   device left the bus. The last three events matter because a driver whose probe fails does not
///   reset the device before the driver frees what its callbacks use.
/// - The virtqueue is ready, if the slot is that of a virtqueue. A driver disables a virtqueue
///   before it frees the virtqueue.
/// - The device is not suspended.
///
/// Together with a callback, vhost passes an eventfd (`trigger`), which a device may signal instead
/// of calling the callback. The slot does not use `trigger`: vhost releases the eventfd before it
/// passes another callback, so the eventfd might already be freed. vhost's callback signals the
/// same eventfd, and looks up the eventfd at each call. Even so, vhost may release the eventfd
/// between the look-up and the signal. That race can only be fixed in vhost.
///
/// # Lock order
///
/// First the slot's lock. Then all locks that a driver takes in an interrupt, including the locks
/// that the device takes when the driver kicks a virtqueue or maps memory.
///
/// # Invariants
///
/// If the slot has a callback, and `vq_ready` and `driver_ok` are set, the callback may be called.
#[pin_data]
pub(crate) struct CallbackSlot {
    #[pin]
    state: SpinLockBh<SlotState>,
    /// Whether the callback is vhost's.
    is_vhost: Atomic<bool>,
}

impl CallbackSlot {
    fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            state <- new_spinlock_bh!(SlotState {
                callback: None,
                vq_ready: false,
                driver_ok: false,
                suspended: false,
            }),
            is_vhost: Atomic::new(false),
        })
    }

    /// Interrupts the driver by calling its callback, in the caller's own context. Returns whether
    /// a callback was called.
    ///
    /// # Errors
    ///
    /// [`Suspended`] if the device is suspended.
    ///
    /// # Context
    ///
    /// Process context or softirq, with interrupts enabled.
    pub(crate) fn call(&self) -> Result<bool, Suspended> {
        let state = self.state.lock();
        if state.suspended {
            return Err(Suspended);
        }

        match &state.callback {
            Some(callback) if state.vq_ready && state.driver_ok => {
                // SAFETY: By the type invariants, the callback may be called. Softirqs are
                // disabled, as they are in an interrupt handler; softirqs that the callback raises
                // run when the lock is released.
                unsafe { (callback.function)(callback.private) };
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// Checks whether the slot accepts interrupts at this moment. Used before a
    /// [`call`](Self::call) in another context.
    ///
    /// # Errors
    ///
    /// [`Suspended`] if the device is suspended.
    ///
    /// # Context
    ///
    /// The same as for [`call`](Self::call).
    pub(crate) fn accepts(&self) -> Result<(), Suspended> {
        if self.state.lock().suspended {
            Err(Suspended)
        } else {
            Ok(())
        }
    }

    /// Refuses interrupts from now on. Waits for a call that is in progress.
    fn suspend(&self) {
        self.state.lock().suspended = true;
    }

    /// Accepts interrupts again.
    fn resume(&self) {
        self.state.lock().suspended = false;
    }

    /// Returns whether [`call`](Self::call) may run on any CPU without loss of performance. This is
    /// so for vhost's callbacks, because they only signal an eventfd.
    pub(crate) fn takes_any_cpu(&self) -> bool {
        self.is_vhost.load(Relaxed)
    }

    /// Sets whether the virtqueue is ready. Waits for a call that is in progress.
    pub(super) fn set_vq_ready(&self, vq_ready: bool) {
        self.state.lock().vq_ready = vq_ready;
    }

    pub(super) fn is_vq_ready(&self) -> bool {
        self.state.lock().vq_ready
    }

    /// Sets whether the driver has written `DRIVER_OK`. Waits for a call that is in progress.
    fn set_driver_ok(&self, driver_ok: bool) {
        self.state.lock().driver_ok = driver_ok;
    }

    /// Replaces the slot's callback. Waits for a call that is in progress.
    ///
    /// # Safety
    ///
    /// `cb` must be valid. Until the slot is emptied or filled again, the callback must be callable
    /// whenever `vq_ready` and `driver_ok` are set.
    pub(super) unsafe fn fill(&self, cb: *const bindings::vdpa_callback, driver: BusDriver) {
        // SAFETY: By the safety requirements, `cb` is valid. Its fields `callback` and `private`
        // are always initialised. Its other fields may be uninitialised.
        let (callback, private) = unsafe { ((*cb).callback, (*cb).private) };

        self.is_vhost.store(driver == BusDriver::Vhost, Relaxed);
        // INVARIANT: By the safety requirements, the callback may be called if `vq_ready` and
        // `driver_ok` are set.
        self.state.lock().callback = callback.map(|function| Callback { function, private });
    }

    /// Empties the slot. Waits for a call that is in progress.
    fn clear(&self) {
        let mut state = self.state.lock();
        state.callback = None;
        state.vq_ready = false;
        state.driver_ok = false;
    }
}

/// The callbacks of a device.
///
/// # Invariants
///
/// At most one [`Device`](super::device::Device) owns the callbacks. Only that device fills,
/// enables and empties the slots.
pub(crate) struct Callbacks {
    vqs: KVVec<Arc<CallbackSlot>>,
    config: Arc<CallbackSlot>,
    /// Whether a device owns the callbacks.
    taken: Atomic<bool>,
}

impl Callbacks {
    /// Creates the empty slots of a device with `vqs` virtqueues. May sleep.
    pub(crate) fn new(vqs: usize) -> Result<Arc<Self>> {
        let mut slots = KVVec::with_capacity(vqs, GFP_KERNEL_ACCOUNT)?;
        for _ in 0..vqs {
            slots.push(
                Arc::pin_init(CallbackSlot::new(), GFP_KERNEL_ACCOUNT)?,
                GFP_KERNEL_ACCOUNT,
            )?;
        }

        Ok(Arc::new(
            Self {
                vqs: slots,
                config: Arc::pin_init(CallbackSlot::new(), GFP_KERNEL_ACCOUNT)?,
                taken: Atomic::new(false),
            },
            GFP_KERNEL_ACCOUNT,
        )?)
    }

    /// Returns the virtqueues' slots, indexed by virtqueue.
    pub(crate) fn vqs(&self) -> &[Arc<CallbackSlot>] {
        &self.vqs
    }

    /// Returns the slot that holds the callback for configuration changes.
    pub(crate) fn config(&self) -> &Arc<CallbackSlot> {
        &self.config
    }

    /// Records that a device owns the callbacks.
    ///
    /// # Errors
    ///
    /// [`EBUSY`] if another device owns the callbacks.
    pub(super) fn take(&self) -> Result {
        if self.taken.xchg(true, Full) {
            return Err(EBUSY);
        }

        Ok(())
    }

    /// Records that no device owns the callbacks any more.
    pub(super) fn give_back(&self) {
        self.taken.store(false, Release);
    }

    /// Returns all slots.
    fn slots(&self) -> impl Iterator<Item = &Arc<CallbackSlot>> {
        Iterator::chain(self.vqs.iter(), [&self.config])
    }

    pub(super) fn set_driver_ok(&self) {
        self.slots().for_each(|slot| slot.set_driver_ok(true))
    }

    /// Refuses interrupts until [`resume`](Self::resume) is called or the device is reset. Waits
    /// for calls that are in progress, so no callback runs after this method returns.
    ///
    /// # Context
    ///
    /// Process context, with interrupts enabled. The caller must not hold a lock that a driver
    /// takes in an interrupt.
    pub(crate) fn suspend(&self) {
        self.slots().for_each(|slot| slot.suspend())
    }

    /// Accepts interrupts again, after [`suspend`](Self::suspend).
    ///
    /// # Context
    ///
    /// The same as for [`suspend`](Self::suspend).
    pub(crate) fn resume(&self) {
        self.slots().for_each(|slot| slot.resume())
    }

    /// Returns whether any virtqueue is ready. Checks the last virtqueue first, because drivers
    /// disable virtqueues in ascending order.
    pub(super) fn has_ready_vq(&self) -> bool {
        self.vqs.iter().rev().any(|slot| slot.is_vq_ready())
    }

    /// Empties all slots. Waits for calls that are in progress.
    pub(super) fn clear(&self) {
        self.slots().for_each(|slot| CallbackSlot::clear(slot))
    }
}

#[kunit_tests(vduse_rs_callbacks)]
mod tests {
    use super::*;
    use core::ptr;
    use kernel::alloc::flags::GFP_KERNEL;

    /// Adds 1 to the counter at `private`, which must be an `Atomic<u32>`.
    unsafe extern "C" fn called(private: *mut c_void) -> bindings::irqreturn_t {
        // SAFETY: The test passes a pointer to a counter as `private`.
        let _ = unsafe { &*private.cast::<Atomic<u32>>() }.fetch_add(1, Relaxed);

        // SAFETY: `IRQ_NONE` is 0. The constant is an integer in some kernels, and has a type of
        // its own in others.
        unsafe { core::mem::zeroed() }
    }

    /// Returns a callback that adds 1 to `calls`. `calls` must outlive all slots that have the
    /// callback.
    fn counting(calls: &Atomic<u32>) -> bindings::vdpa_callback {
        bindings::vdpa_callback {
            callback: Some(called),
            private: ptr::from_ref(calls).cast_mut().cast(),
            trigger: ptr::null_mut(),
        }
    }

    #[test]
    fn a_driver_is_called_while_it_and_its_virtqueue_are_ready() -> Result {
        let calls = Atomic::new(0_u32);
        let callback = counting(&calls);
        let slot = KBox::pin_init(CallbackSlot::new(), GFP_KERNEL)?;

        // Two drivers use the slot, one after the other. The slot calls the callbacks of both under
        // the same conditions.
        for before in [0, 2] {
            // SAFETY: The callback and the counter are valid until the test ends.
            unsafe { slot.fill(&callback, BusDriver::Kernel) };
            assert_eq!(slot.call(), Ok(false));
            slot.set_vq_ready(true);
            assert_eq!(slot.call(), Ok(false));
            slot.set_driver_ok(true);
            assert_eq!(slot.call(), Ok(true));
            slot.set_vq_ready(false);
            assert_eq!(slot.call(), Ok(false));
            slot.set_vq_ready(true);
            assert_eq!(slot.call(), Ok(true));
            slot.clear();
            assert_eq!(slot.call(), Ok(false));
            assert_eq!(calls.load(Relaxed), before + 2);
        }

        Ok(())
    }

    #[test]
    fn all_callbacks_of_a_device_are_enabled_and_cleared_together() -> Result {
        let calls = Atomic::new(0_u32);
        let callback = counting(&calls);
        let callbacks = Callbacks::new(2)?;
        let call_all = || {
            callbacks
                .slots()
                .filter(|slot| slot.call() == Ok(true))
                .count()
        };

        for slot in callbacks.slots() {
            // SAFETY: The callback and the counter are valid until the test ends.
            unsafe { slot.fill(&callback, BusDriver::Kernel) };
        }
        callbacks.config().set_vq_ready(true);
        assert!(!callbacks.has_ready_vq());
        for slot in callbacks.vqs() {
            slot.set_vq_ready(true);
            assert!(callbacks.has_ready_vq());
        }
        assert_eq!(call_all(), 0);
        callbacks.set_driver_ok();
        assert_eq!(call_all(), 3);
        callbacks.vqs()[1].set_vq_ready(false);
        assert!(callbacks.has_ready_vq());
        assert_eq!(call_all(), 2);
        callbacks.clear();
        assert!(!callbacks.has_ready_vq());
        callbacks.set_driver_ok();
        assert_eq!(call_all(), 0);

        Ok(())
    }

    #[test]
    fn a_suspended_device_refuses_interrupts_until_it_is_resumed() -> Result {
        let calls = Atomic::new(0_u32);
        let callback = counting(&calls);
        let callbacks = Callbacks::new(1)?;
        let slot = &callbacks.vqs()[0];

        // SAFETY: The callback and the counter are valid until the test ends.
        unsafe { slot.fill(&callback, BusDriver::Vhost) };
        slot.set_vq_ready(true);
        callbacks.set_driver_ok();
        assert_eq!(slot.call(), Ok(true));

        callbacks.suspend();
        assert_eq!(slot.call(), Err(Suspended));
        assert_eq!(callbacks.config().call(), Err(Suspended));
        // The device stays suspended even if the driver that suspended it is gone.
        callbacks.clear();
        assert_eq!(slot.call(), Err(Suspended));
        assert_eq!(calls.load(Relaxed), 1);

        callbacks.resume();
        assert_eq!(slot.call(), Ok(false));
        // SAFETY: The callback and the counter are valid until the test ends.
        unsafe { slot.fill(&callback, BusDriver::Vhost) };
        slot.set_vq_ready(true);
        callbacks.set_driver_ok();
        assert_eq!(slot.call(), Ok(true));
        assert_eq!(calls.load(Relaxed), 2);

        Ok(())
    }
}
