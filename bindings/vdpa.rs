// SPDX-License-Identifier: GPL-2.0

//! vDPA devices: virtio devices that a kernel or userspace driver finds on the vDPA bus.
//!
//! A vDPA device is allocated by the C core with the device driver's own data behind it, a type that
//! implements [`Operations`]. It is added by a [management device](mgmt) and lives until the core
//! lets go of it.
//!
//! C header: [`include/linux/vdpa.h`](srctree/include/linux/vdpa.h)

use super::{
    atomic_cpumask::AtomicCpumask,
    device::Registered,
    lock::{
        new_spinlock_bh,
        SpinLockBh, //
    },
    page::PAGE_SIZE,
    raw as bindings,
    vhost_iotlb::Iotlb,
    virtio_map::{
        self,
        Token, //
    },
};
use core::{
    marker::PhantomData,
    mem::offset_of,
    ptr, //
};
use kernel::{
    alloc::flags::GFP_KERNEL_ACCOUNT,
    cpumask::Cpumask,
    error::{
        from_err_ptr,
        from_result, //
    },
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            AtomicFlag,
            AtomicType,
            Full,
            Relaxed,
            Release, //
        },
        Arc, //
    },
    types::Opaque, //
};

pub(crate) mod mgmt;
pub(crate) mod status;

use status::{
    CallbackAction,
    Phase,
    Step, //
};

// `status` has no kernel types.
const _: () = {
    assert!(status::ACKNOWLEDGE as u32 == bindings::VIRTIO_CONFIG_S_ACKNOWLEDGE);
    assert!(status::DRIVER as u32 == bindings::VIRTIO_CONFIG_S_DRIVER);
    assert!(status::DRIVER_OK as u32 == bindings::VIRTIO_CONFIG_S_DRIVER_OK);
    assert!(status::FAILED as u32 == bindings::VIRTIO_CONFIG_S_FAILED);
};

// SAFETY: `Phase` is `repr(i32)`, so that it has the size and alignment of an `i32` and any value of it
// can be turned into one and back.
unsafe impl AtomicType for Phase {
    type Repr = i32;
}

/// Who drives a device that is on the bus.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum BusDriver {
    /// Nobody, at the moment.
    None,
    /// vhost-vdpa: a process, which is waited for by nobody but itself.
    Vhost,
    /// Another driver: virtio-vdpa, and so the kernel's own drivers.
    Other,
}

/// Where the parts of a virtqueue are, as I/O virtual addresses (virtio 1.3, section 2.6 to 2.8).
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct VqAddress {
    /// The descriptor area.
    pub(crate) desc: u64,
    /// The driver area.
    pub(crate) driver: u64,
    /// The device area.
    pub(crate) device: u64,
}

/// Where a device stands in a packed virtqueue.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct PackedState {
    /// The driver ring's wrap counter, 0 or 1.
    pub(crate) last_avail_counter: u16,
    /// The place in the ring, 15 bits.
    pub(crate) last_avail_idx: u16,
    /// The device ring's wrap counter, 0 or 1.
    pub(crate) last_used_counter: u16,
    /// Where the next used descriptor goes, 15 bits.
    pub(crate) last_used_idx: u16,
}

/// Where a device stands in a virtqueue. Which layout it is depends on the features.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct VqState {
    /// Split: the available index, then nothing. Packed: available, then used, each an index of 15
    /// bits above a wrap counter of one.
    words: [u16; 2],
}

impl VqState {
    /// The state of a split virtqueue.
    pub(crate) fn from_split(avail_index: u16) -> Self {
        Self {
            words: [avail_index, 0],
        }
    }

    /// The state of a packed virtqueue. Bits that do not fit are dropped.
    pub(crate) fn from_packed(state: PackedState) -> Self {
        let word = |counter: u16, idx: u16| (counter & 1) | (idx << 1);

        Self {
            words: [
                word(state.last_avail_counter, state.last_avail_idx),
                word(state.last_used_counter, state.last_used_idx),
            ],
        }
    }

    /// Reads the state of a split virtqueue: the available index.
    pub(crate) fn split(self) -> u16 {
        self.words[0]
    }

    /// Reads the state of a packed virtqueue.
    pub(crate) fn packed(self) -> PackedState {
        PackedState {
            last_avail_counter: self.words[0] & 1,
            last_avail_idx: self.words[0] >> 1,
            last_used_counter: self.words[1] & 1,
            last_used_idx: self.words[1] >> 1,
        }
    }

    /// # Safety
    ///
    /// `ptr` must be valid for reads of the member of the union that `packed` says, and that be
    /// initialised. Callers leave the rest uninitialised.
    unsafe fn from_raw(ptr: *const bindings::vdpa_vq_state, packed: bool) -> Self {
        const { assert!(size_of::<Self>() <= size_of::<bindings::vdpa_vq_state>()) };

        if packed {
            // SAFETY: By the safety requirements; the bit fields are these words.
            unsafe { ptr.cast::<Self>().read() }
        } else {
            // SAFETY: By the safety requirements; the available index is the first word.
            Self::from_split(unsafe { ptr.cast::<u16>().read() })
        }
    }

    /// # Safety
    ///
    /// `ptr` must be valid for writes.
    unsafe fn write_to(self, ptr: *mut bindings::vdpa_vq_state) {
        // SAFETY: By the safety requirements; see `from_raw`.
        unsafe { ptr.cast::<Self>().write(self) }
    }
}

/// What a driver wants to be called with.
struct Callback {
    function: unsafe extern "C" fn(*mut c_void) -> bindings::irqreturn_t,
    private: *mut c_void,
}

// SAFETY: The driver says that its callback may be called in any task, as an interrupt would.
unsafe impl Send for Callback {}

struct SlotState {
    callback: Option<Callback>,
    /// The virtqueue is ready.
    enabled: bool,
    /// The driver is.
    live: bool,
}

/// The place of a driver's callback: of a virtqueue's, or of the configuration space's.
///
/// The [`Device`] that the slot was given to fills it and empties it, as the [status](status::step)
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
/// If there is a callback and the slot is enabled and live, the callback may be called.
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
                enabled: false,
                live: false,
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
            Some(callback) if state.enabled && state.live => {
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
    fn set_enabled(&self, enabled: bool) {
        self.state.lock().enabled = enabled;
    }

    fn is_enabled(&self) -> bool {
        self.state.lock().enabled
    }

    /// Waits for a call that is under way.
    fn set_live(&self, live: bool) {
        self.state.lock().live = live;
    }

    /// Waits for a call that is under way.
    ///
    /// # Safety
    ///
    /// `cb` must be valid. Its callback must be callable while the slot is enabled and live, until it
    /// is emptied or given another callback.
    unsafe fn fill(&self, cb: *const bindings::vdpa_callback, driver: BusDriver) {
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
        state.enabled = false;
        state.live = false;
    }
}

/// The callbacks of a device.
///
/// # Invariants
///
/// No more than one [`Device`] has them: it fills, enables and empties the slots.
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
    fn take(&self) -> Result {
        if self.taken.xchg(true, Full) {
            return Err(EBUSY);
        }

        Ok(())
    }

    /// The device that had them is gone.
    fn give_back(&self) {
        self.taken.store(false, Release);
    }

    /// All slots.
    fn slots(&self) -> impl Iterator<Item = &Arc<CallbackSlot>> {
        Iterator::chain(self.vqs.iter(), [&self.config])
    }

    fn go_live(&self) {
        self.slots().for_each(|slot| slot.set_live(true))
    }

    /// Whether a virtqueue is ready. Looks from the last one on: drivers disable them in order.
    fn has_ready_vq(&self) -> bool {
        self.vqs.iter().rev().any(|slot| slot.is_enabled())
    }

    /// Empties all slots. Waits for calls that are under way.
    fn clear(&self) {
        self.slots().for_each(|slot| CallbackSlot::clear(slot))
    }
}

/// What a vDPA device does.
///
/// The methods are called in process context and may sleep, but for [`kick_vq`](Self::kick_vq). A
/// virtqueue's index is below the number that the device was added with.
pub(crate) trait Operations: Sized + Send + Sync + 'static {
    /// Who owns the address spaces that virtqueues are mapped into.
    type SpaceOwner: virtio_map::Owner;

    /// What has the device's parent registered, for as long as the device is there.
    type Parent: Registered;

    /// The driver has put the parts of a virtqueue somewhere.
    fn set_vq_address(&self, vq: u16, address: VqAddress) -> Result;
    /// The driver has chosen the size of a virtqueue, in descriptors.
    fn set_vq_num(&self, vq: u16, num: u32);
    /// The driver has made buffers available. Any context, interrupt handlers included.
    fn kick_vq(&self, vq: u16);
    /// The driver enables or disables a virtqueue.
    fn set_vq_ready(&self, vq: u16, ready: bool);
    /// Whether a virtqueue is enabled.
    fn vq_ready(&self, vq: u16) -> bool;
    /// The driver says where in a virtqueue to start.
    fn set_vq_state(&self, vq: u16, state: VqState) -> Result;
    /// Where in a virtqueue the device is.
    fn vq_state(&self, vq: u16, driver: BusDriver) -> Result<VqState>;
    /// The size of a virtqueue: the one chosen, or the largest that the driver can choose; 0 if it
    /// cannot use it at all.
    fn vq_size(&self, vq: u16, driver: BusDriver) -> u16;
    /// The group of a virtqueue.
    fn vq_group(&self, vq: u16) -> u32;
    /// What the memory of a virtqueue is mapped by; [`None`] if it cannot be mapped.
    fn vq_token(&self, vq: u16) -> Option<&Token<Self::SpaceOwner>>;
    /// The CPUs that a virtqueue's interrupts go to; [`None`] for any.
    fn vq_affinity(&self, vq: u16) -> Option<&AtomicCpumask>;
    /// The driver chooses the CPUs that a virtqueue's interrupts go to; [`None`] for any.
    fn set_vq_affinity(&self, vq: u16, mask: Option<&Cpumask>) -> Result;
    /// The alignment of a virtqueue's parts, in bytes: a power of two, of a page at most. Anything else
    /// counts as a page.
    fn vq_align(&self) -> u32;
    /// The largest size of any virtqueue.
    fn vq_num_max(&self) -> u16;

    /// The virtio device id.
    fn device_id(&self) -> u32;
    /// The virtio vendor id.
    fn vendor_id(&self) -> u32;
    /// The features that the device offers to a driver. Without one, somebody else wants to know.
    fn device_features(&self, driver: BusDriver) -> u64;
    /// The features that the driver has accepted.
    fn driver_features(&self) -> u64;
    /// The driver accepts features.
    fn set_driver_features(&self, features: u64, driver: BusDriver) -> Result;
    /// The device status.
    fn status(&self) -> u8;
    /// The driver writes to the device status. [`Step::status`] is what the device is to have, which is
    /// not 0; that the device is reset, and callbacks, are taken care of.
    fn set_status(&self, step: Step, driver: BusDriver);
    /// The driver resets the device. The callbacks of one of the kernel are forgotten by then, vhost's
    /// after that. An error is not passed on if there was no driver and the device is being deleted.
    fn reset(&self, driver: BusDriver) -> Result;
    /// The device is about to be deleted from the bus: its driver is taken away next.
    fn leave(&self);
    /// The size of the configuration space in bytes.
    fn config_size(&self) -> usize;
    /// Reads the configuration space; what lies behind its end is zero. Without a driver, somebody
    /// else wants to know.
    fn get_config(&self, offset: usize, buf: &mut [u8], driver: BusDriver);
    /// The driver writes to the configuration space.
    fn set_config(&self, offset: usize, buf: &[u8]);
    /// A number that changes whenever the configuration space does.
    fn generation(&self) -> u32;

    /// Replaces all mappings of an address space.
    fn set_map(&self, asid: u32, iotlb: &Iotlb, driver: BusDriver) -> Result;
    /// Drops all mappings of an address space: who made them is gone.
    fn reset_map(&self, asid: u32) -> Result;
    /// Moves a group of virtqueues to an address space.
    fn set_group_asid(&self, group: u32, asid: u32, driver: BusDriver) -> Result;
}

/// A vDPA device.
///
/// # Invariants
///
/// `vdpa` was allocated by the core with [`VTable<T>`] and enough room for `data`, which is
/// initialised until the core calls the table's `free`, as `callbacks` and `_parent` are. The device's
/// parent is that of `_parent`.
#[repr(C)]
struct Device<T: Operations> {
    vdpa: Opaque<bindings::vdpa_device>,
    callbacks: Arc<Callbacks>,
    /// How far its driver is. Changes under the core's lock of the configuration (`cf_lock`), and when
    /// a driver of the kernel, which does not write the status at the same time, disables a virtqueue.
    phase: Atomic<Phase>,
    /// Whether it is being deleted.
    leaving: AtomicFlag,
    data: T,
    /// Dropped before `data`.
    _parent: T::Parent,
}

impl<T: Operations> Device<T> {
    /// # Safety
    ///
    /// `vdev` must be the `vdpa` field of a [`Device<T>`] that the core does not free for `'a`.
    unsafe fn from_raw<'a>(vdev: *const bindings::vdpa_device) -> &'a Self {
        const { assert!(offset_of!(Self, vdpa) == 0) };

        // SAFETY: By the safety requirements. What C writes to is in an `Opaque`.
        unsafe { &*vdev.cast() }
    }

    /// Who drives the device. What a driver's own call finds is that driver: it is bound before it
    /// is probed, until after it is removed. May sleep.
    fn driver(&self) -> BusDriver {
        // SAFETY: The device is alive, and the core initialises this before anybody else sees it.
        let dev = unsafe { &raw const (*self.vdpa.get()).dev };
        // SAFETY: As above. The bus does not change; the driver may, while netlink asks, and is only
        // compared with others.
        let (bus, driver) = unsafe { ((*dev).bus, (&raw const (*dev).driver).read_volatile()) };

        if driver.is_null() {
            return BusDriver::None;
        }

        // SAFETY: The bus is valid, as a device is on it, and `is_vhost` fits.
        let is_vhost = unsafe {
            bindings::bus_for_each_drv(bus, ptr::null_mut(), driver.cast(), Some(is_vhost))
        };

        if is_vhost != 0 {
            BusDriver::Vhost
        } else {
            BusDriver::Other
        }
    }

    /// Carries out what a driver's write to the status means.
    fn write_status(&self, written: u8, driver: BusDriver) {
        let step = status::step(
            self.phase.load(Relaxed),
            self.data.status(),
            written,
            driver != BusDriver::Vhost,
        );

        if step.resets {
            // Whether the daemon agrees or not: so the driver would go on after a reset of its own.
            let _ = self.reset(driver);
        }
        match step.callbacks {
            CallbackAction::Keep => (),
            // Before anybody is told that the driver is ready.
            CallbackAction::GoLive => self.callbacks.go_live(),
            CallbackAction::Clear => self.callbacks.clear(),
        }
        self.phase.store(step.phase, Relaxed);

        if step.status != 0 {
            self.data.set_status(step, driver);
        }
    }

    /// Resets the device on behalf of its driver. The device is reset whatever is returned.
    fn reset(&self, driver: BusDriver) -> Result {
        // Drivers of the kernel have no use for interrupts any more, and what those leave to be done
        // may come too late (virtio_fs, 7.2). A process takes its rings over as they are, and is told
        // of what is in them until the daemon knows of the reset.
        if driver != BusDriver::Vhost {
            self.callbacks.clear();
        }

        let result = self.data.reset(driver);

        self.callbacks.clear();
        self.phase.store(Phase::Reset, Relaxed);

        result
    }

    /// Allocates a device. The caller owns a reference to it.
    ///
    /// Errors: [`EBUSY`] if another device has the callbacks, [`ENOMEM`].
    fn alloc(
        name: &CStr,
        ngroups: u32,
        nas: u32,
        callbacks: Arc<Callbacks>,
        data: T,
        // Behind `data`, and so dropped before it.
        parent: T::Parent,
    ) -> Result<*mut bindings::vdpa_device> {
        // The core allocates by size alone.
        const {
            assert!(align_of::<Self>() <= align_of::<u64>());
        }

        callbacks.take()?;

        // SAFETY: The tables are static and fit a `Device<T>`; the core copies the name. The parent stays
        // registered until `free` drops what has it registered. The device uses virtual addresses, as
        // `Iotlb` requires.
        let vdev = from_err_ptr(unsafe {
            bindings::__vdpa_alloc_device(
                device_as_raw(parent.device()),
                &VTable::<T>::VTABLE,
                &virtio_map::VTable::<T::SpaceOwner>::VTABLE,
                ngroups,
                nas,
                size_of::<Self>(),
                name.as_char_ptr(),
                true,
            )
        })
        .inspect_err(|_| callbacks.give_back())?;

        let this = vdev.cast::<Self>();
        // SAFETY: The allocation has room for a `Device<T>`, and nobody else has seen it.
        unsafe {
            (&raw mut (*this).callbacks).write(callbacks);
            (&raw mut (*this).phase).write(Atomic::new(Phase::Reset));
            (&raw mut (*this).leaving).write(AtomicFlag::new(false));
            (&raw mut (*this).data).write(data);
            (&raw mut (*this)._parent).write(parent);
        }

        Ok(vdev)
    }
}

/// The C structure of a device.
fn device_as_raw(dev: &kernel::device::Device) -> *mut bindings::device {
    // `Device` is a transparent wrapper.
    ptr::from_ref(dev).cast_mut().cast()
}

/// Whether `driver`, which is on the bus, is the one at `wanted`, and vhost-vdpa.
///
/// # Safety
///
/// `driver` must be valid. `wanted` need not be.
unsafe extern "C" fn is_vhost(driver: *mut bindings::device_driver, wanted: *mut c_void) -> c_int {
    if !ptr::eq(driver.cast(), wanted) {
        return 0;
    }

    // SAFETY: By the safety requirements; a driver has a name, which stays as long as it.
    let name = unsafe { CStr::from_char_ptr((*driver).name) };

    c_int::from(name.to_bytes() == b"vhost_vdpa")
}

struct VTable<T: Operations>(PhantomData<T>);

/// Defines a function of [`VTable<T>`], with a [`Device<T>`] in place of the C structure.
macro_rules! operation {
    (fn $name:ident($dev:ident $(, $arg:ident: $type:ty)* $(,)?) $(-> $ret:ty)? $body:block) => {
        /// # Safety
        ///
        /// `vdev` must be a device that was allocated with this table and has not been freed.
        /// Pointers must be valid for what the operation does with them.
        unsafe extern "C" fn $name(
            vdev: *mut bindings::vdpa_device,
            $($arg: $type,)*
        ) $(-> $ret)? {
            // SAFETY: By the safety requirements.
            let $dev = unsafe { Device::<T>::from_raw(vdev) };

            $body
        }
    };
}

impl<T: Operations> VTable<T> {
    operation! {
        fn set_vq_address(dev, vq: u16, desc: u64, driver: u64, device: u64) -> c_int {
            let address = VqAddress { desc, driver, device };

            from_result(|| dev.data.set_vq_address(vq, address).map(|()| 0))
        }
    }

    operation! {
        fn set_vq_num(dev, vq: u16, num: u32) {
            dev.data.set_vq_num(vq, num)
        }
    }

    operation! {
        fn kick_vq(dev, vq: u16) {
            dev.data.kick_vq(vq)
        }
    }

    operation! {
        fn set_vq_cb(dev, vq: u16, cb: *mut bindings::vdpa_callback) {
            if let Some(slot) = dev.callbacks.vqs.get(usize::from(vq)) {
                // SAFETY: The driver passes a callback that may be called while it is ready and the
                // virtqueue is, until it passes another or resets the device.
                unsafe { slot.fill(cb, dev.driver()) }
            }
        }
    }

    operation! {
        fn set_vq_ready(dev, vq: u16, ready: bool) {
            let slot = dev.callbacks.vqs.get(usize::from(vq));

            // Whoever sees that it is ready can interrupt the driver.
            if let (Some(slot), true) = (slot, ready) {
                slot.set_enabled(true);
            }
            dev.data.set_vq_ready(vq, ready);
            if let (Some(slot), false) = (slot, ready) {
                let was_enabled = slot.is_enabled();

                slot.set_enabled(false);
                // A driver of the kernel that disables its last virtqueue is on its way out, perhaps
                // without a reset, and frees what its other callback uses before it says `FAILED`.
                if was_enabled && !dev.callbacks.has_ready_vq() && dev.driver() != BusDriver::Vhost {
                    dev.callbacks.clear();
                    dev.phase.store(dev.phase.load(Relaxed).after_last_vq(), Relaxed);
                }
            }
        }
    }

    operation! {
        fn get_vq_ready(dev, vq: u16) -> bool {
            dev.data.vq_ready(vq)
        }
    }

    operation! {
        fn set_vq_state(dev, vq: u16, state: *const bindings::vdpa_vq_state) -> c_int {
            let packed = dev.data.driver_features() & 1 << bindings::VIRTIO_F_RING_PACKED != 0;
            // SAFETY: The core passes a state of the layout that was negotiated.
            let state = unsafe { VqState::from_raw(state, packed) };

            from_result(|| dev.data.set_vq_state(vq, state).map(|()| 0))
        }
    }

    operation! {
        fn get_vq_state(dev, vq: u16, state: *mut bindings::vdpa_vq_state) -> c_int {
            from_result(|| {
                let answer = dev.data.vq_state(vq, dev.driver())?;
                // SAFETY: The core passes a place for the state.
                unsafe { answer.write_to(state) };
                Ok(0)
            })
        }
    }

    operation! {
        fn get_vq_size(dev, vq: u16) -> u16 {
            dev.data.vq_size(vq, dev.driver())
        }
    }

    operation! {
        fn get_vq_group(dev, vq: u16) -> u32 {
            dev.data.vq_group(vq)
        }
    }

    operation! {
        fn get_vq_map(dev, vq: u16) -> bindings::virtio_map {
            // The device is alive as long as its virtqueues are, and the token that this returns is
            // borrowed from it for as long.
            let null = bindings::virtio_map {
                group: ptr::null_mut(),
            };

            dev.data.vq_token(vq).map_or(null, Token::as_raw)
        }
    }

    operation! {
        fn get_vq_align(dev) -> u32 {
            let align = dev.data.vq_align();

            // Drivers of the kernel lay rings out by it, and rely on that.
            if align.is_power_of_two() && align as usize <= PAGE_SIZE {
                align
            } else {
                PAGE_SIZE as u32
            }
        }
    }

    operation! {
        fn get_vq_num_max(dev) -> u16 {
            dev.data.vq_num_max()
        }
    }

    operation! {
        fn get_device_id(dev) -> u32 {
            dev.data.device_id()
        }
    }

    operation! {
        fn get_vendor_id(dev) -> u32 {
            dev.data.vendor_id()
        }
    }

    operation! {
        fn get_device_features(dev) -> u64 {
            dev.data.device_features(dev.driver())
        }
    }

    operation! {
        fn set_driver_features(dev, features: u64) -> c_int {
            from_result(|| dev.data.set_driver_features(features, dev.driver()).map(|()| 0))
        }
    }

    operation! {
        fn get_driver_features(dev) -> u64 {
            dev.data.driver_features()
        }
    }

    operation! {
        fn set_config_cb(dev, cb: *mut bindings::vdpa_callback) {
            let slot = dev.callbacks.config();

            // SAFETY: The driver passes a callback that may be called while it is ready, until it
            // passes another, resets the device, or fails.
            unsafe { slot.fill(cb, dev.driver()) };
            slot.set_enabled(true);
        }
    }

    operation! {
        fn get_status(dev) -> u8 {
            dev.data.status()
        }
    }

    operation! {
        fn set_status(dev, status: u8) {
            dev.write_status(status, dev.driver())
        }
    }

    operation! {
        fn reset(dev) -> c_int {
            let was_driven = dev.data.status() & status::DRIVER_OK != 0;
            let result = dev.reset(dev.driver());

            // vhost-vdpa resets a device when it is opened. If that fails, nobody tells who waits for
            // the device to be closed (7.2), which `dev_del` does, with the core's lock held.
            if result.is_err() && !was_driven && dev.leaving.load(Relaxed) {
                return 0;
            }

            from_result(|| result.map(|()| 0))
        }
    }

    operation! {
        fn get_config_size(dev) -> usize {
            dev.data.config_size()
        }
    }

    operation! {
        fn get_config(dev, offset: c_uint, buf: *mut c_void, len: c_uint) {
            if len == 0 {
                return;
            }

            let len = len as usize;
            // SAFETY: The core passes a buffer of this length. It may be uninitialised, and what is
            // not written to it goes to userspace: so it is made to be zeroes first.
            let buf = unsafe {
                ptr::write_bytes(buf.cast::<u8>(), 0, len);
                core::slice::from_raw_parts_mut(buf.cast::<u8>(), len)
            };

            dev.data.get_config(offset as usize, buf, dev.driver())
        }
    }

    operation! {
        fn set_config(dev, offset: c_uint, buf: *const c_void, len: c_uint) {
            if len == 0 {
                return;
            }

            // SAFETY: The core passes a buffer of this length.
            let buf = unsafe { core::slice::from_raw_parts(buf.cast::<u8>(), len as usize) };

            dev.data.set_config(offset as usize, buf)
        }
    }

    operation! {
        fn get_generation(dev) -> u32 {
            dev.data.generation()
        }
    }

    operation! {
        fn set_vq_affinity(dev, vq: u16, mask: *const bindings::cpumask) -> c_int {
            // SAFETY: The core passes a mask, or null.
            let mask = (!mask.is_null()).then(|| unsafe { Cpumask::from_raw(mask) });

            from_result(|| dev.data.set_vq_affinity(vq, mask).map(|()| 0))
        }
    }

    operation! {
        fn get_vq_affinity(dev, vq: u16) -> *const bindings::cpumask {
            // The mask is borrowed from the device, which outlives its use.
            dev.data
                .vq_affinity(vq)
                .map_or_else(AtomicCpumask::all_raw, AtomicCpumask::as_raw)
        }
    }

    operation! {
        fn set_map(dev, asid: c_uint, iotlb: *mut bindings::vhost_iotlb) -> c_int {
            // SAFETY: The core passes an IOTLB that it does not change during the call. The device
            // was allocated as one that uses virtual addresses.
            let iotlb = unsafe { Iotlb::from_raw(iotlb) };

            from_result(|| dev.data.set_map(asid, iotlb, dev.driver()).map(|()| 0))
        }
    }

    operation! {
        fn reset_map(dev, asid: c_uint) -> c_int {
            from_result(|| dev.data.reset_map(asid).map(|()| 0))
        }
    }

    operation! {
        fn set_group_asid(dev, group: c_uint, asid: c_uint) -> c_int {
            from_result(|| dev.data.set_group_asid(group, asid, dev.driver()).map(|()| 0))
        }
    }

    /// # Safety
    ///
    /// `vdev` must be a device that was allocated with this table. It must be the last call for it.
    unsafe extern "C" fn free(vdev: *mut bindings::vdpa_device) {
        let this = vdev.cast::<Device<T>>();

        // SAFETY: By the safety requirements; the core frees the allocation after this. All are
        // initialised by the type invariants of `Device`.
        unsafe {
            ptr::drop_in_place(&raw mut (*this)._parent);
            (*this).callbacks.give_back();
            ptr::drop_in_place(&raw mut (*this).callbacks);
            ptr::drop_in_place(&raw mut (*this).data);
        }
    }

    const VTABLE: bindings::vdpa_config_ops = bindings::vdpa_config_ops {
        set_vq_address: Some(Self::set_vq_address),
        set_vq_num: Some(Self::set_vq_num),
        kick_vq: Some(Self::kick_vq),
        set_vq_cb: Some(Self::set_vq_cb),
        set_vq_ready: Some(Self::set_vq_ready),
        get_vq_ready: Some(Self::get_vq_ready),
        set_vq_state: Some(Self::set_vq_state),
        get_vq_state: Some(Self::get_vq_state),
        get_vq_size: Some(Self::get_vq_size),
        get_vq_group: Some(Self::get_vq_group),
        get_vq_map: Some(Self::get_vq_map),
        get_vq_align: Some(Self::get_vq_align),
        get_vq_num_max: Some(Self::get_vq_num_max),
        get_device_id: Some(Self::get_device_id),
        get_vendor_id: Some(Self::get_vendor_id),
        get_device_features: Some(Self::get_device_features),
        set_driver_features: Some(Self::set_driver_features),
        get_driver_features: Some(Self::get_driver_features),
        set_config_cb: Some(Self::set_config_cb),
        get_status: Some(Self::get_status),
        set_status: Some(Self::set_status),
        reset: Some(Self::reset),
        get_config_size: Some(Self::get_config_size),
        get_config: Some(Self::get_config),
        set_config: Some(Self::set_config),
        get_generation: Some(Self::get_generation),
        set_vq_affinity: Some(Self::set_vq_affinity),
        get_vq_affinity: Some(Self::get_vq_affinity),
        set_map: Some(Self::set_map),
        reset_map: Some(Self::reset_map),
        set_group_asid: Some(Self::set_group_asid),
        free: Some(Self::free),
        ..pin_init::zeroed()
    };
}

#[kunit_tests(vduse_rs_callbacks)]
mod tests {
    use super::*;
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
            unsafe { slot.fill(&callback, BusDriver::Other) };
            assert!(!slot.call());
            slot.set_enabled(true);
            assert!(!slot.call());
            slot.set_live(true);
            assert!(slot.call());
            slot.set_enabled(false);
            assert!(!slot.call());
            slot.set_enabled(true);
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
            unsafe { slot.fill(&callback, BusDriver::Other) };
        }
        callbacks.config().set_enabled(true);
        assert!(!callbacks.has_ready_vq());
        for slot in callbacks.vqs() {
            slot.set_enabled(true);
            assert!(callbacks.has_ready_vq());
        }
        assert_eq!(call_all(), 0);
        callbacks.go_live();
        assert_eq!(call_all(), 3);
        callbacks.vqs()[1].set_enabled(false);
        assert!(callbacks.has_ready_vq());
        assert_eq!(call_all(), 2);
        callbacks.clear();
        assert!(!callbacks.has_ready_vq());
        callbacks.go_live();
        assert_eq!(call_all(), 0);

        Ok(())
    }
}
