// SPDX-License-Identifier: GPL-2.0

//! vDPA management devices: who adds devices to the vDPA bus on behalf of netlink's users.
//!
//! C header: [`include/linux/vdpa.h`](srctree/include/linux/vdpa.h)

use super::{
    super::device::{
        Registered,
        RootDevice, //
    },
    bindings,
    device::{
        device_as_raw,
        Device, //
    },
    Callbacks,
    Operations, //
};
use core::marker::PhantomData;
use kernel::{
    container_of,
    error::{
        from_result,
        to_result, //
    },
    prelude::*,
    sync::Arc,
    types::Opaque, //
};

/// What a management device does.
pub(crate) trait ManagementOperations: Sized + Send + Sync + 'static {
    /// The virtio device ids that it can add.
    const DEVICE_IDS: &'static [u32];

    /// The devices that it adds.
    type Device: Operations;

    /// Adds the device of a name to the bus, by means of `context`.
    ///
    /// Process context, under the lock of the vDPA core.
    fn dev_add(&self, name: &CStr, context: AddContext<'_, Self::Device>) -> Result;
}

/// Proof that a device is being added, and so that the lock of the vDPA core is held.
pub(crate) struct AddContext<'a, D: Operations> {
    mdev: *mut bindings::vdpa_mgmt_dev,
    name: &'a CStr,
    _device: PhantomData<D>,
}

impl<D: Operations> AddContext<'_, D> {
    /// Adds a device to the bus. It stays there until a user deletes it or the management device is
    /// unregistered.
    ///
    /// The device has as many virtqueues as `callbacks`, which it fills and empties, has slots for
    /// them. Drivers are probed, so this calls back into `data`, and must not be called with a lock
    /// held that those calls take. When the core lets go of the device, `parent` is dropped, and then
    /// `data`; so they are if this fails. May sleep.
    ///
    /// Errors: [`EEXIST`] if the bus has a device of that name.
    pub(crate) fn add(
        self,
        ngroups: u32,
        nas: u32,
        callbacks: Arc<Callbacks>,
        data: D,
        parent: D::Parent,
    ) -> Result {
        let nvqs = callbacks.vqs().len().try_into()?;
        let vdev = Device::alloc(self.name, ngroups, nas, callbacks, data, parent)?;

        // SAFETY: Nobody else has seen the device. The management device outlives it: when it is
        // unregistered, its devices are deleted first.
        unsafe { (*vdev).mdev = self.mdev };

        // SAFETY: The device is set up, and the lock of the vDPA core is held: `self` shows it.
        let added = to_result(unsafe { bindings::_vdpa_register_device(vdev, nvqs) });
        if added.is_err() {
            // SAFETY: The reference is ours, and nobody uses the device.
            unsafe { bindings::put_device(&raw mut (*vdev).dev) };
        }

        added
    }
}

/// The table of the device ids that a management device can add, as C wants it.
struct IdTable(KVec<bindings::virtio_device_id>);

impl IdTable {
    fn new(ids: &[u32]) -> Result<Self> {
        let mut table = KVec::with_capacity(ids.len() + 1, GFP_KERNEL)?;
        for &device in ids {
            let entry = bindings::virtio_device_id {
                device,
                vendor: bindings::VIRTIO_DEV_ANY_ID,
            };
            table.push(entry, GFP_KERNEL)?;
        }
        table.push(pin_init::zeroed(), GFP_KERNEL)?;

        Ok(Self(table))
    }
}

/// The registration of a management device, which is undone when it is dropped.
///
/// # Invariants
///
/// `mdev` is registered, with an operations table for `T`, and has pointers to the other fields.
#[pin_data(PinnedDrop)]
pub(crate) struct Registration<T: ManagementOperations> {
    #[pin]
    mdev: Opaque<bindings::vdpa_mgmt_dev>,
    ids: IdTable,
    device: RootDevice,
    ops: T,
}

// SAFETY: It may be unregistered by any task, and what it owns goes along.
unsafe impl<T: ManagementOperations> Send for Registration<T> {}
// SAFETY: The core calls the operations, which are `Sync`, under its lock; there are no methods.
unsafe impl<T: ManagementOperations> Sync for Registration<T> {}

impl<T: ManagementOperations> Registration<T> {
    /// Returns an initialiser that registers a management device, known to users by the name of
    /// `device`. May sleep.
    pub(crate) fn new(device: RootDevice, ops: T) -> impl PinInit<Self, Error> {
        try_pin_init!(&this in Self {
            device: device,
            ids: IdTable::new(T::DEVICE_IDS)?,
            ops: ops,
            // INVARIANT: Registered just now, with pointers to fields initialised before.
            mdev <- Opaque::try_ffi_init(move |slot: *mut bindings::vdpa_mgmt_dev| {
                // SAFETY: The other fields are initialised and pinned with this one.
                let (device, ids) = unsafe {
                    let this = this.as_ptr();
                    (device_as_raw((*this).device.device()), (*this).ids.0.as_mut_ptr())
                };
                let mut mdev: bindings::vdpa_mgmt_dev = pin_init::zeroed();

                mdev.device = device;
                mdev.ops = &Self::VTABLE;
                mdev.id_table = ids;

                // SAFETY: `slot` is valid for writes.
                unsafe { slot.write(mdev) };
                // SAFETY: It is set up, and pinned until it is unregistered.
                to_result(unsafe { bindings::vdpa_mgmtdev_register(slot) })
            }),
        })
    }

    /// # Safety
    ///
    /// `mdev` must be that of a live registration, the others valid during the call.
    unsafe extern "C" fn dev_add(
        mdev: *mut bindings::vdpa_mgmt_dev,
        name: *const c_char,
        _config: *const bindings::vdpa_dev_set_config,
    ) -> c_int {
        // SAFETY: The core passes the management device that it was given, which is this field of a
        // registration.
        let this = unsafe { &*container_of!(Opaque::cast_from(mdev), Self, mdev) };
        // SAFETY: The core passes a name that is valid during the call.
        let name = unsafe { CStr::from_char_ptr(name) };
        let context = AddContext {
            mdev,
            name,
            _device: PhantomData,
        };

        from_result(|| this.ops.dev_add(name, context).map(|()| 0))
    }

    /// # Safety
    ///
    /// `mdev` must be that of a live registration, the others valid during the call.
    unsafe extern "C" fn dev_del(
        _mdev: *mut bindings::vdpa_mgmt_dev,
        vdev: *mut bindings::vdpa_device,
    ) {
        // SAFETY: The core passes a device that this management device has added; it is alive.
        let callbacks = unsafe { Device::<T::Device>::from_raw(vdev) }.begin_delete();

        // SAFETY: The core holds its lock. Unregistering the device gives back the reference that
        // `AddContext::add` left to the core.
        unsafe { bindings::_vdpa_unregister_device(vdev) };

        callbacks.clear();
    }

    const VTABLE: bindings::vdpa_mgmtdev_ops = bindings::vdpa_mgmtdev_ops {
        dev_add: Some(Self::dev_add),
        dev_del: Some(Self::dev_del),
        dev_set_attr: None,
    };
}

#[pinned_drop]
impl<T: ManagementOperations> PinnedDrop for Registration<T> {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: By the type invariants, it is registered.
        unsafe { bindings::vdpa_mgmtdev_unregister(self.mdev.get()) }
    }
}
