// SPDX-License-Identifier: GPL-2.0

//! The callbacks by which a vDPA device interrupts its driver.
//!
//! C header: [`include/linux/vdpa.h`](srctree/include/linux/vdpa.h)

use super::{
    super::lock::{
        new_spinlock_bh,
        SpinLockBh, //
    },
    bindings,
    BusDriver, //
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

// SAFETY: The driver says that its callback may be called in any task, as an interrupt would.
unsafe impl Send for Callback {}

struct SlotState {
    callback: Option<Callback>,
    /// The virtqueue is ready.
    vq_ready: bool,
    /// The driver is.
    driver_ok: bool,
}

/// The place of a driver's callback: of a virtqueue's, or of the configuration space's.
///
/// The [`Device`](super::Device) that the slot was given to fills it and empties it, as the [status](super::status::step)
/// machine says. A callback is only called under the slot's lock, and only
///
/// - after the driver has written a `DRIVER_OK` of its own (virtio 1.3, section 3.1.1): before that it
///   is not ready to be called, even if its virtqueues are,
/// - until the device is reset (for vhost, until the reset is done), the driver writes `FAILED`, a
///   driver of the kernel disables its last virtqueue, or the device has left the bus: a driver whose
///   probe fails frees what its callbacks use without a reset,
/// - for a virtqueue, while that is ready: a driver disables a virtqueue before it frees it.
///
/// The callback's eventfd, which vhost offers as a short cut, is not used: vhost releases it before it
/// passes another callback, so that it may be gone here. Calling back does the same, and looks the
/// eventfd up anew; a moment is left in which vhost may release it meanwhile, which is vhost's to
/// mend.
///
/// # Lock order
///
/// The slot's lock, then everything that a driver takes in an interrupt, which includes what the
/// device takes when it is kicked and when it maps memory.
///
/// # Invariants
///
/// If there is a callback and the slot has `vq_ready` and `driver_ok`, the callback may be called.
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
            }),
            is_vhost: Atomic::new(false),
        })
    }

    /// Interrupts the driver: calls its callback, in the caller's own context.
    ///
    /// Returns whether there was one to call. Process context or softirq, with interrupts enabled.
    pub(crate) fn call(&self) -> bool {
        let state = self.state.lock();

        match &state.callback {
            Some(callback) if state.vq_ready && state.driver_ok => {
                // SAFETY: By the type invariants, the callback may be called. Softirqs are
                // disabled, as they are in an interrupt handler; those that it raises run when the
                // lock is released.
                unsafe { (callback.function)(callback.private) };
                true
            }
            _ => false,
        }
    }

    /// Whether it is all the same where [`call`](Self::call) is called: vhost's callbacks signal an
    /// eventfd, whoever waits for that.
    pub(crate) fn takes_any_cpu(&self) -> bool {
        self.is_vhost.load(Relaxed)
    }

    /// Waits for a call that is under way.
    pub(super) fn set_vq_ready(&self, vq_ready: bool) {
        self.state.lock().vq_ready = vq_ready;
    }

    pub(super) fn is_vq_ready(&self) -> bool {
        self.state.lock().vq_ready
    }

    /// Waits for a call that is under way.
    fn set_driver_ok(&self, driver_ok: bool) {
        self.state.lock().driver_ok = driver_ok;
    }

    /// Waits for a call that is under way.
    ///
    /// # Safety
    ///
    /// `cb` must be valid. Its callback must be callable while the slot has `vq_ready` and `driver_ok`, until it
    /// is emptied or given another callback.
    pub(super) unsafe fn fill(&self, cb: *const bindings::vdpa_callback, driver: BusDriver) {
        // SAFETY: By the safety requirements. These two are always initialised, the rest need not be.
        let (callback, private) = unsafe { ((*cb).callback, (*cb).private) };

        self.is_vhost.store(driver == BusDriver::Vhost, Relaxed);
        // INVARIANT: By the safety requirements.
        self.state.lock().callback = callback.map(|function| Callback { function, private });
    }

    /// Waits for a call that is under way.
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
/// No more than one [`Device`](super::Device) has them: it fills, enables and empties the slots.
pub(crate) struct Callbacks {
    vqs: KVVec<Arc<CallbackSlot>>,
    config: Arc<CallbackSlot>,
    /// Whether a device has them.
    taken: Atomic<bool>,
}

impl Callbacks {
    /// Makes the empty slots of a device with `vqs` virtqueues. May sleep.
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

    /// The slots of the virtqueues, by index.
    pub(crate) fn vqs(&self) -> &[Arc<CallbackSlot>] {
        &self.vqs
    }

    /// The slot of the configuration space.
    pub(crate) fn config(&self) -> &Arc<CallbackSlot> {
        &self.config
    }

    /// A device takes them. Errors: [`EBUSY`] if another one has them.
    pub(super) fn take(&self) -> Result {
        if self.taken.xchg(true, Full) {
            return Err(EBUSY);
        }

        Ok(())
    }

    /// The device that had them is gone.
    pub(super) fn give_back(&self) {
        self.taken.store(false, Release);
    }

    /// All slots.
    fn slots(&self) -> impl Iterator<Item = &Arc<CallbackSlot>> {
        Iterator::chain(self.vqs.iter(), [&self.config])
    }

    pub(super) fn set_driver_ok(&self) {
        self.slots().for_each(|slot| slot.set_driver_ok(true))
    }

    /// Whether a virtqueue is ready. Looks from the last one on: drivers disable them in order.
    pub(super) fn has_ready_vq(&self) -> bool {
        self.vqs.iter().rev().any(|slot| slot.is_vq_ready())
    }

    /// Empties all slots. Waits for calls that are under way.
    pub(super) fn clear(&self) {
        self.slots().for_each(|slot| CallbackSlot::clear(slot))
    }
}

#[kunit_tests(vduse_rs_callbacks)]
mod tests {
    use super::*;
    use core::ptr;
    use kernel::alloc::flags::GFP_KERNEL;

    /// Counts the calls.
    unsafe extern "C" fn called(private: *mut c_void) -> bindings::irqreturn_t {
        // SAFETY: The test passes such a counter.
        let _ = unsafe { &*private.cast::<Atomic<u32>>() }.fetch_add(1, Relaxed);

        // SAFETY: 0 is `IRQ_NONE`, which is a number in some kernels and of a type of its own in others.
        unsafe { core::mem::zeroed() }
    }

    #[test]
    fn a_driver_is_called_while_it_and_its_virtqueue_are_ready() -> Result {
        let calls = Atomic::new(0_u32);
        let callback = bindings::vdpa_callback {
            callback: Some(called),
            private: ptr::from_ref(&calls).cast_mut().cast(),
            trigger: ptr::null_mut(),
        };
        let slot = KBox::pin_init(CallbackSlot::new(), GFP_KERNEL)?;

        // Two drivers, one after the other: that there was one before makes no difference.
        for before in [0, 2] {
            // SAFETY: The callback and the counter are valid until the end.
            unsafe { slot.fill(&callback, BusDriver::Kernel) };
            assert!(!slot.call());
            slot.set_vq_ready(true);
            assert!(!slot.call());
            slot.set_driver_ok(true);
            assert!(slot.call());
            slot.set_vq_ready(false);
            assert!(!slot.call());
            slot.set_vq_ready(true);
            assert!(slot.call());
            slot.clear();
            assert!(!slot.call());
            assert_eq!(calls.load(Relaxed), before + 2);
        }

        Ok(())
    }

    #[test]
    fn all_callbacks_of_a_device_go_live_and_are_cleared_together() -> Result {
        let calls = Atomic::new(0_u32);
        let callback = bindings::vdpa_callback {
            callback: Some(called),
            private: ptr::from_ref(&calls).cast_mut().cast(),
            trigger: ptr::null_mut(),
        };
        let callbacks = Callbacks::new(2)?;
        let call_all = || callbacks.slots().filter(|slot| slot.call()).count();

        for slot in callbacks.slots() {
            // SAFETY: The callback and the counter are valid until the end.
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
}
