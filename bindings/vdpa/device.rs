// SPDX-License-Identifier: GPL-2.0

//! A vDPA device: the C core's structure, followed by the data of the device driver.
//!
//! C header: [`include/linux/vdpa.h`](srctree/include/linux/vdpa.h)

use super::{
    super::{
        atomic_cpumask::AtomicCpumask,
        device::Registered,
        page::PAGE_SIZE,
        raw as bindings,
        vhost_iotlb::Iotlb,
        virtio_map::{
            self,
            Token, //
        },
    },
    bus_driver::BusDriver,
    callback::Callbacks,
    state::{
        VqAddress,
        VqState, //
    },
    status::{
        self,
        CallbackAction,
        Phase,
        Step, //
    }, //
};
use core::{
    marker::PhantomData,
    mem::offset_of,
    ptr, //
};
use kernel::{
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
            Relaxed, //
        },
        Arc, //
    },
    types::Opaque, //
};

// The module `status` defines these constants itself, because that module uses no kernel types.
// Here, the constants are compared with the kernel's.
const _: () = {
    assert!(status::ACKNOWLEDGE as u32 == bindings::VIRTIO_CONFIG_S_ACKNOWLEDGE);
    assert!(status::DRIVER as u32 == bindings::VIRTIO_CONFIG_S_DRIVER);
    assert!(status::DRIVER_OK as u32 == bindings::VIRTIO_CONFIG_S_DRIVER_OK);
    assert!(status::FAILED as u32 == bindings::VIRTIO_CONFIG_S_FAILED);
};

// SAFETY: `Phase` is `repr(i32)`, so it has the size and alignment of an `i32`, and any `Phase` can
// be turned into an `i32` and back.
unsafe impl AtomicType for Phase {
    type Repr = i32;
}

/// The operations of a vDPA device.
///
/// The index of a virtqueue is always less than the number of virtqueues with which the device was
/// added.
///
/// # Context
///
/// Process context, may sleep, except for [`kick_vq`](Self::kick_vq).
pub(crate) trait Operations: Sized + Send + Sync + 'static {
    /// The owner of the address spaces into which the virtqueues' memory is mapped.
    type SpaceOwner: virtio_map::Owner;

    /// The object that keeps the device's parent registered for as long as the device exists.
    type Parent: Registered;

    /// Records the addresses at which the driver has placed the parts of a virtqueue.
    fn set_vq_address(&self, vq: u16, address: VqAddress) -> Result;
    /// Records the size that the driver has chosen for a virtqueue, in descriptors.
    fn set_vq_num(&self, vq: u16, num: u32);
    /// Handles a kick: the driver has made buffers available in a virtqueue. Called in any context,
    /// including interrupt handlers. So the method must not sleep, except for a virtqueue whose
    /// driver always kicks it in process context, such as the control virtqueue of virtio_net.
    fn kick_vq(&self, vq: u16);
    /// Enables or disables a virtqueue.
    fn set_vq_ready(&self, vq: u16, ready: bool, driver: BusDriver);
    /// Returns whether a virtqueue is enabled.
    fn vq_ready(&self, vq: u16) -> bool;
    /// Sets the position in a virtqueue from which the device starts.
    fn set_vq_state(&self, vq: u16, state: VqState) -> Result;
    /// Returns the device's position in a virtqueue.
    fn vq_state(&self, vq: u16, driver: BusDriver) -> Result<VqState>;
    /// Returns the size of a virtqueue: the size that the driver has chosen, or the largest size
    /// that the driver can choose. Returns 0 if the driver cannot use the virtqueue.
    fn vq_size(&self, vq: u16, driver: BusDriver) -> u16;
    /// Returns the group of a virtqueue.
    fn vq_group(&self, vq: u16) -> u32;
    /// Returns the token with which a virtqueue's memory is mapped, or [`None`] if the memory
    /// cannot be mapped.
    fn vq_token(&self, vq: u16) -> Option<&Token<Self::SpaceOwner>>;
    /// Returns the CPUs that may get a virtqueue's interrupts. [`None`] means any CPU.
    fn vq_affinity(&self, vq: u16) -> Option<&AtomicCpumask>;
    /// Sets the CPUs that may get a virtqueue's interrupts. [`None`] means any CPU.
    fn set_vq_affinity(&self, vq: u16, mask: Option<&Cpumask>) -> Result;
    /// Returns the alignment of a virtqueue's parts, in bytes: a power of two, at most
    /// [`PAGE_SIZE`]. The caller replaces any other value by [`PAGE_SIZE`].
    fn vq_align(&self) -> u32;
    /// Returns the largest of all virtqueues' maximum sizes, in descriptors.
    fn vq_num_max(&self) -> u16;

    /// Returns the virtio device ID.
    fn device_id(&self) -> u32;
    /// Returns the virtio vendor ID.
    fn vendor_id(&self) -> u32;
    /// Returns the features that the device offers to a driver. `driver` is [`BusDriver::None`] if
    /// the caller is not a driver but, for example, netlink.
    fn device_features(&self, driver: BusDriver) -> u64;
    /// Returns the features that the driver has accepted.
    fn driver_features(&self) -> u64;
    /// Records the features that the driver accepts.
    fn set_driver_features(&self, features: u64, driver: BusDriver) -> Result;
    /// Returns the device status.
    fn status(&self) -> u8;
    /// Handles a driver's write to the device status. [`Step::status`], which is not 0, is the
    /// status to set. Before this call, the caller has reset the device and updated the callbacks
    /// if `step` says so.
    fn set_status(&self, step: Step, driver: BusDriver);
    /// Resets the device on behalf of its driver. The caller has cleared a kernel driver's
    /// callbacks before this call, and clears vhost's callbacks after this call. The caller ignores
    /// an error if the status had no `DRIVER_OK` and the device is being deleted.
    fn reset(&self, driver: BusDriver) -> Result;
    /// Prepares for the deletion of the device from the bus. The core removes the device's driver
    /// next.
    fn begin_delete(&self);
    /// Suspends the device. Until it is reset or resumed, the device processes no virtqueue and
    /// interrupts no driver. Called only for a device that was added with [`Suspension::Suspend`]
    /// or [`Suspension::SuspendAndResume`], and never by a kernel driver.
    fn suspend(&self, driver: BusDriver) -> Result;
    /// Resumes the device if it is suspended. Called only for a device that was added with
    /// [`Suspension::SuspendAndResume`], and never by a kernel driver.
    fn resume(&self, driver: BusDriver) -> Result;
    /// Returns the size of the configuration space in bytes.
    fn config_size(&self) -> usize;
    /// Fills `buf` with the bytes of the configuration space from `offset` on. Bytes after the end
    /// of the configuration space are zero. `driver` is [`BusDriver::None`] if the caller is not a
    /// driver.
    fn get_config(&self, offset: usize, buf: &mut [u8], driver: BusDriver);
    /// Handles a driver's write to the configuration space.
    fn set_config(&self, offset: usize, buf: &[u8]);
    /// Returns a number that changes whenever the configuration space changes.
    fn generation(&self) -> u32;

    /// Replaces all mappings of an address space by those of `iotlb`.
    fn set_map(&self, asid: u32, iotlb: &Iotlb, driver: BusDriver) -> Result;
    /// Drops all mappings of an address space. Called when the owner of the mappings is gone.
    fn reset_map(&self, asid: u32) -> Result;
    /// Moves a group of virtqueues to an address space.
    fn set_group_asid(&self, group: u32, asid: u32, driver: BusDriver) -> Result;
}

/// Whether a driver can suspend and resume a device.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Suspension {
    /// A driver can neither suspend nor resume the device.
    None,
    /// A driver can suspend the device, and must then reset the device to continue.
    Suspend,
    /// A driver can suspend and resume the device.
    SuspendAndResume,
}

/// A vDPA device.
///
/// # Invariants
///
/// `vdpa` was allocated by the core with a table of [`VTable<T>`] and enough room for this
/// structure. `data`, `callbacks` and `_parent` are initialised until the core calls the table's
/// `free`. `_parent` keeps the device's parent registered.
#[repr(C)]
pub(super) struct Device<T: Operations> {
    vdpa: Opaque<bindings::vdpa_device>,
    callbacks: Arc<Callbacks>,
    /// The phase of the device's driver. The phase changes when the driver writes the status or
    /// resets the device, with the core's configuration lock (`cf_lock`) held. The phase also
    /// changes when a kernel driver disables its last virtqueue. A kernel driver does not do that
    /// while it writes the status.
    phase: Atomic<Phase>,
    /// Whether the device is being deleted.
    deleting: AtomicFlag,
    data: T,
    /// Keeps the device's parent registered. This field is dropped before `data`.
    _parent: T::Parent,
}

impl<T: Operations> Device<T> {
    /// Converts a pointer from the core to a reference.
    ///
    /// # Safety
    ///
    /// `vdev` must be the `vdpa` field of a [`Device<T>`] that the core does not free for `'a`.
    pub(super) unsafe fn from_raw<'a>(vdev: *const bindings::vdpa_device) -> &'a Self {
        const { assert!(offset_of!(Self, vdpa) == 0) };

        // SAFETY: By the safety requirements, `vdev` is the first field of a valid `Device<T>`.
        // Everything that C code writes to is in an `Opaque`.
        unsafe { &*vdev.cast() }
    }

    /// Returns the kind of driver that is bound to the device. May sleep.
    fn driver(&self) -> BusDriver {
        // SAFETY: The device is alive, and the core initialises `dev` before other code can see the
        // device.
        unsafe { BusDriver::of(&raw const (*self.vdpa.get()).dev) }
    }

    /// Prepares for the deletion of the device from the bus. Returns the device's callbacks. The
    /// caller must clear the callbacks after the deletion, because the driver may not reset the
    /// device.
    #[must_use]
    pub(super) fn begin_delete(&self) -> Arc<Callbacks> {
        self.deleting.store(true, Relaxed);
        self.data.begin_delete();

        self.callbacks.clone()
    }

    /// Carries out a driver's write of `written` to the device status.
    fn write_status(&self, written: u8, driver: BusDriver) {
        let step = status::step(
            self.phase.load(Relaxed),
            self.data.status(),
            written,
            driver != BusDriver::Vhost,
        );

        if step.resets {
            // An error does not matter, because a driver continues even if its own reset fails.
            let _ = self.reset(driver);
        }
        match step.callbacks {
            CallbackAction::Keep => (),
            // The callbacks must be ready before the daemon learns that the driver is ready.
            CallbackAction::DriverOk => self.callbacks.set_driver_ok(),
            CallbackAction::Clear => self.callbacks.clear(),
        }
        self.phase.store(step.phase, Relaxed);

        if step.status != 0 {
            self.data.set_status(step, driver);
        }
    }

    /// Enables or disables the interrupts of a virtqueue.
    fn set_callback_ready(&self, vq: u16, ready: bool, driver: BusDriver) {
        let Some(slot) = self.callbacks.vqs().get(usize::from(vq)) else {
            return;
        };
        let was_ready = slot.is_vq_ready();

        slot.set_vq_ready(ready);
        // A kernel driver that disables its last virtqueue is being removed or has failed to probe,
        // perhaps without a reset. The driver frees what its configuration callback uses before it
        // writes `FAILED`.
        if was_ready && !ready && driver != BusDriver::Vhost && !self.callbacks.has_ready_vq() {
            self.callbacks.clear();
            self.phase
                .store(self.phase.load(Relaxed).after_last_vq(), Relaxed);
        }
    }

    /// Resets the device on behalf of its driver. The device is reset even if an error is returned.
    fn reset(&self, driver: BusDriver) -> Result {
        // A kernel driver that resets the device needs no more interrupts. Moreover, an interrupt
        // could queue work that runs after the driver has freed the work's memory (virtio_fs, 7.2).
        // A vhost client keeps its rings across the reset. So the client gets interrupts for these
        // rings until the daemon knows of the reset.
        if driver != BusDriver::Vhost {
            self.callbacks.clear();
        }

        let result = self.data.reset(driver);

        self.callbacks.clear();
        // Interrupts are accepted again only after the slots are empty, so that a suspended device
        // interrupts no driver.
        self.callbacks.resume();
        self.phase.store(Phase::Reset, Relaxed);

        result
    }

    /// Allocates a device. The caller owns a reference to the device.
    ///
    /// # Errors
    ///
    /// [`EBUSY`] if another device owns the callbacks, [`ENOMEM`] if no memory is available.
    pub(super) fn alloc(
        name: &CStr,
        ngroups: u32,
        nas: u32,
        suspension: Suspension,
        callbacks: Arc<Callbacks>,
        data: T,
        // This parameter is declared after `data`, so that it is dropped before `data` if this
        // function fails.
        parent: T::Parent,
    ) -> Result<*mut bindings::vdpa_device> {
        // The core is told the size of the structure, but not its alignment. So the allocation has
        // the alignment that every kernel allocation has.
        const {
            assert!(align_of::<Self>() <= align_of::<u64>());
        }

        callbacks.take()?;

        // SAFETY: The operations table and the mapping table are static, and are the tables of a
        // `Device<T>`. The core copies the name. The parent stays registered until `free` drops
        // `_parent`. The device uses virtual addresses, as `Iotlb` requires.
        let vdev = from_err_ptr(unsafe {
            bindings::__vdpa_alloc_device(
                device_as_raw(parent.device()),
                VTable::<T>::for_suspension(suspension),
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
        // SAFETY: The allocation has room for a `Device<T>`, and no other code has seen it.
        unsafe {
            (&raw mut (*this).callbacks).write(callbacks);
            (&raw mut (*this).phase).write(Atomic::new(Phase::Reset));
            (&raw mut (*this).deleting).write(AtomicFlag::new(false));
            (&raw mut (*this).data).write(data);
            (&raw mut (*this)._parent).write(parent);
        }

        Ok(vdev)
    }
}

/// Returns the C structure of a device.
pub(super) fn device_as_raw(dev: &kernel::device::Device) -> *mut bindings::device {
    // CAST: `Device` is a transparent wrapper.
    ptr::from_ref(dev).cast_mut().cast()
}

struct VTable<T: Operations>(PhantomData<T>);

/// Defines a function of [`VTable<T>`] that gets a [`Device<T>`] in place of the C structure.
macro_rules! operation {
    (fn $name:ident($dev:ident $(, $arg:ident: $type:ty)* $(,)?) $(-> $ret:ty)? $body:block) => {
        /// Implements the operation of this name in `struct vdpa_config_ops`.
        ///
        /// # Safety
        ///
        /// `vdev` must be a device that was allocated with a table of [`VTable<T>`] and has not
        /// been freed. All other pointers must be valid for what the operation does with them.
        unsafe extern "C" fn $name(
            vdev: *mut bindings::vdpa_device,
            $($arg: $type,)*
        ) $(-> $ret)? {
            // SAFETY: By the safety requirements, `vdev` is a `Device<T>` that has not been freed.
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
            if let Some(slot) = dev.callbacks.vqs().get(usize::from(vq)) {
                // SAFETY: The driver passes a valid callback that may be called while the driver
                // and the virtqueue are ready, until the driver passes another callback or resets
                // the device.
                unsafe { slot.fill(cb, dev.driver()) }
            }
        }
    }

    operation! {
        fn set_vq_ready(dev, vq: u16, ready: bool) {
            let driver = dev.driver();
            // To enable a virtqueue, the interrupts are enabled before `data` reports the virtqueue
            // as ready, because the daemon may interrupt from then on. To disable a virtqueue of a
            // kernel driver, the interrupts are disabled first, because the driver may then free
            // what its callback uses. A vhost client gets interrupts until `data` has disabled the
            // virtqueue.
            let first = ready || driver != BusDriver::Vhost;

            if first {
                dev.set_callback_ready(vq, ready, driver);
            }
            dev.data.set_vq_ready(vq, ready, driver);
            if !first {
                dev.set_callback_ready(vq, ready, driver);
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
                // SAFETY: The core passes a pointer to which the state can be written.
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
            // The returned token is borrowed from the device. The device lives at least as long as
            // its virtqueues.
            let null = bindings::virtio_map {
                group: ptr::null_mut(),
            };

            dev.data.vq_token(vq).map_or(null, Token::as_raw)
        }
    }

    operation! {
        fn get_vq_align(dev) -> u32 {
            let align = dev.data.vq_align();

            // Kernel drivers use this alignment for the layout of rings, and rely on a valid value.
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

            // SAFETY: The driver passes a valid callback. The callback may be called while the
            // driver is ready, until the driver passes another callback, resets the device, writes
            // `FAILED`, or (a kernel driver) disables its last virtqueue.
            unsafe { slot.fill(cb, dev.driver()) };
            slot.set_vq_ready(true);
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

            // vhost-vdpa resets a device when a process opens the device. If that reset fails,
            // vhost-vdpa (7.2) does not wake a task that waits for the device to be closed. A task
            // that deletes the device waits in this way, in `dev_del`, with the core's lock held.
            // So no error is returned while the device is being deleted.
            if result.is_err() && !was_driven && dev.deleting.load(Relaxed) {
                return 0;
            }

            from_result(|| result.map(|()| 0))
        }
    }

    operation! {
        fn suspend(dev) -> c_int {
            from_result(|| dev.data.suspend(dev.driver()).map(|()| 0))
        }
    }

    operation! {
        fn resume(dev) -> c_int {
            from_result(|| dev.data.resume(dev.driver()).map(|()| 0))
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
            // SAFETY: The core passes a buffer of this length. The buffer may be uninitialised, and
            // bytes that `get_config` does not write would go to userspace. So this code zeroes the
            // buffer first.
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
            // The mask is borrowed from the device, which lives longer than the core uses the mask.
            dev.data
                .vq_affinity(vq)
                .map_or_else(AtomicCpumask::all_raw, AtomicCpumask::as_raw)
        }
    }

    operation! {
        fn set_map(dev, asid: c_uint, iotlb: *mut bindings::vhost_iotlb) -> c_int {
            // SAFETY: The core passes an IOTLB that it does not change during the call. The device
            // was allocated as a device that uses virtual addresses.
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

    /// Frees a device.
    ///
    /// # Safety
    ///
    /// `vdev` must be a device that was allocated with a table of [`VTable<T>`]. No other call for
    /// the device may follow.
    unsafe extern "C" fn free(vdev: *mut bindings::vdpa_device) {
        let this = vdev.cast::<Device<T>>();

        // SAFETY: By the safety requirements, no other code uses the device. The core frees the
        // allocation after this call. By the type invariants of `Device`, all fields are
        // initialised.
        unsafe {
            ptr::drop_in_place(&raw mut (*this)._parent);
            (*this).callbacks.give_back();
            ptr::drop_in_place(&raw mut (*this).callbacks);
            ptr::drop_in_place(&raw mut (*this).data);
        }
    }

    /// Returns the operations table for a device. vhost lets its client suspend a device only if
    /// the table has a `suspend` function, and resume a device only if the table has a `resume`
    /// function.
    fn for_suspension(suspension: Suspension) -> &'static bindings::vdpa_config_ops {
        match suspension {
            Suspension::None => &Self::VTABLE,
            Suspension::Suspend => &Self::VTABLE_SUSPEND,
            Suspension::SuspendAndResume => &Self::VTABLE_RESUME,
        }
    }

    const VTABLE_RESUME: bindings::vdpa_config_ops = bindings::vdpa_config_ops {
        resume: Some(Self::resume),
        ..Self::VTABLE_SUSPEND
    };

    const VTABLE_SUSPEND: bindings::vdpa_config_ops = bindings::vdpa_config_ops {
        suspend: Some(Self::suspend),
        ..Self::VTABLE
    };

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
