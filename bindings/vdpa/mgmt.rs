// SPDX-License-Identifier: GPL-2.0

//! vDPA management devices, which add devices to the vDPA bus at the request of netlink users.
//!
//! C header: [`include/linux/vdpa.h`](srctree/include/linux/vdpa.h)

use super::{
    super::{
        device::{
            Registered,
            RootDevice, //
        },
        raw as bindings, //
    },
    callback::Callbacks,
    device::{
        device_as_raw,
        Device,
        Operations,
        Suspension, //
    }, //
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

/// The operations of a management device.
pub(crate) trait ManagementOperations: Sized + Send + Sync + 'static {
    /// The virtio device IDs that the management device can add.
    const DEVICE_IDS: &'static [u32];

    /// The devices that the management device adds.
    type Device: Operations;

    /// Adds a device called `name` to the bus, with [`AddContext::add`].
    ///
    /// # Context
    ///
    /// Process context, with the lock of the vDPA core held.
    fn dev_add(&self, name: &CStr, context: AddContext<'_, Self::Device>) -> Result;
}

/// Proof that the vDPA core is adding a device, and therefore holds its lock.
pub(crate) struct AddContext<'a, D: Operations> {
    mdev: *mut bindings::vdpa_mgmt_dev,
    name: &'a CStr,
    _device: PhantomData<D>,
}

impl<D: Operations> AddContext<'_, D> {
    /// Adds a device to the bus. The device stays on the bus until a user deletes the device or the
    /// management device is unregistered.
    ///
    /// The device gets one virtqueue for each virtqueue slot of `callbacks`. From then on, only the
    /// device fills and empties these slots. When the core releases the device, `parent` is dropped
    /// first, then `data`. If this method fails, `parent` and `data` are dropped in the same order.
    ///
    /// # Errors
    ///
    /// [`EEXIST`] if the bus has a device of that name, [`EBUSY`] if another device owns
    /// `callbacks`.
    ///
    /// # Context
    ///
    /// May sleep. The core probes drivers, which call the methods of `data`. So the caller must not
    /// hold a lock that these methods take.
    pub(crate) fn add(
        self,
        ngroups: u32,
        nas: u32,
        suspension: Suspension,
        callbacks: Arc<Callbacks>,
        data: D,
        parent: D::Parent,
    ) -> Result {
        let nvqs = callbacks.vqs().len().try_into()?;
        let vdev = Device::alloc(self.name, ngroups, nas, suspension, callbacks, data, parent)?;

        // SAFETY: No other code has seen the device. The management device outlives the device:
        // unregistering the management device deletes its devices first.
        unsafe { (*vdev).mdev = self.mdev };

        // SAFETY: The device is set up, and the lock of the vDPA core is held, as `self` proves.
        let added = to_result(unsafe { bindings::_vdpa_register_device(vdev, nvqs) });
        if added.is_err() {
            // SAFETY: This function owns the reference, and no other code uses the device.
            unsafe { bindings::put_device(&raw mut (*vdev).dev) };
        }

        added
    }
}

/// The table of the device IDs that a management device can add, in the form that C code expects.
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

/// The registration of a management device. Dropping this value unregisters the management device.
///
/// # Invariants
///
/// `mdev` is registered with an operations table for `T`, and points to the other fields.
#[pin_data(PinnedDrop)]
pub(crate) struct Registration<T: ManagementOperations> {
    #[pin]
    mdev: Opaque<bindings::vdpa_mgmt_dev>,
    ids: IdTable,
    device: RootDevice,
    ops: T,
}

// SAFETY: Any task may unregister a management device and drop what the registration owns.
unsafe impl<T: ManagementOperations> Send for Registration<T> {}
// SAFETY: The core calls the operations, which are `Sync`, with its lock held. The type has no
// methods that take a shared reference.
unsafe impl<T: ManagementOperations> Sync for Registration<T> {}

impl<T: ManagementOperations> Registration<T> {
    /// Returns an initialiser that registers a management device. Netlink users refer to the
    /// management device by the name of `device`. Initialising may sleep.
    pub(crate) fn new(device: RootDevice, ops: T) -> impl PinInit<Self, Error> {
        try_pin_init!(&this in Self {
            device: device,
            ids: IdTable::new(T::DEVICE_IDS)?,
            ops: ops,
            // INVARIANT: `mdev` is registered here, with pointers to fields that were initialised
            // before.
            mdev <- Opaque::try_ffi_init(move |slot: *mut bindings::vdpa_mgmt_dev| {
                // SAFETY: The other fields are initialised, and pinned together with `mdev`.
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
                // SAFETY: `slot` is set up, and pinned until it is unregistered.
                to_result(unsafe { bindings::vdpa_mgmtdev_register(slot) })
            }),
        })
    }

    /// Adds a device with [`ManagementOperations::dev_add`].
    ///
    /// # Safety
    ///
    /// `mdev` must be the field `mdev` of a live [`Registration`]. The other pointers must be valid
    /// during the call.
    unsafe extern "C" fn dev_add(
        mdev: *mut bindings::vdpa_mgmt_dev,
        name: *const c_char,
        _config: *const bindings::vdpa_dev_set_config,
    ) -> c_int {
        // SAFETY: The core passes the management device that was registered, which is the `mdev`
        // field of a registration.
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

    /// Deletes a device from the bus.
    ///
    /// # Safety
    ///
    /// `vdev` must be a live device that this management device has added.
    unsafe extern "C" fn dev_del(
        _mdev: *mut bindings::vdpa_mgmt_dev,
        vdev: *mut bindings::vdpa_device,
    ) {
        // SAFETY: The core passes a device that this management device has added and that is alive.
        let callbacks = unsafe { Device::<T::Device>::from_raw(vdev) }.begin_delete();

        // SAFETY: The core holds its lock. Unregistering the device releases the reference that
        // `AddContext::add` passed to the core.
        unsafe { bindings::_vdpa_unregister_device(vdev) };

        // The driver was removed, but may not have reset the device.
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
        // SAFETY: By the type invariants, `mdev` is registered.
        unsafe { bindings::vdpa_mgmtdev_unregister(self.mdev.get()) }
    }
}
