// SPDX-License-Identifier: GPL-2.0

//! Character devices.
//!
//! C headers: [`include/linux/cdev.h`](srctree/include/linux/cdev.h),
//! [`include/linux/device.h`](srctree/include/linux/device.h)

use super::{
    class::Class,
    cred::Owner,
    device::Registered,
    file_ops::{
        this_module,
        FileOperations,
        VTable, //
    },
    raw as bindings,
    sysfs::DeviceAttributes, //
};
use core::{
    marker::PhantomData,
    ops::Range,
    ptr::{
        self,
        NonNull, //
    }, //
};
use kernel::{
    container_of,
    device::Device,
    error::to_result,
    fs::File,
    prelude::*,
    sync::Arc,
    types::{
        ForeignOwnable,
        Opaque, //
    },
};

/// A range of device numbers with a dynamically allocated major. Dropping this value releases the
/// numbers.
///
/// # Invariants
///
/// The `count` device numbers from `first` on are allocated to this value. All of them have the
/// same major.
pub(crate) struct DeviceNumbers {
    first: bindings::dev_t,
    count: u32,
}

impl DeviceNumbers {
    /// The number of device numbers of a major, which is the maximum size of a range.
    pub(crate) const MAX: u32 = 1 << bindings::MINORBITS;

    /// Allocates `count` device numbers, with the minors from 0 on. `/proc/devices` shows them as
    /// `name`.
    ///
    /// # Errors
    ///
    /// `EINVAL` if `count` is 0 or more than [`MAX`](Self::MAX); `EBUSY` if no major is left;
    /// `ENOMEM`.
    ///
    /// # Context
    ///
    /// May sleep.
    pub(crate) fn new(count: u32, name: &CStr) -> Result<Self> {
        if count == 0 || count > Self::MAX {
            return Err(EINVAL);
        }

        let mut first = 0;
        // SAFETY: `first` is valid for a write; the name is copied.
        to_result(unsafe {
            bindings::alloc_chrdev_region(&mut first, 0, count, name.as_char_ptr())
        })?;

        // INVARIANT: The numbers have just been allocated.
        Ok(Self { first, count })
    }

    /// Returns the device number at `index`, or `EINVAL` if `index` is outside the range.
    fn device_number(&self, index: u32) -> Result<bindings::dev_t> {
        if index >= self.count {
            return Err(EINVAL);
        }
        // OVERFLOW: By the type invariant, the sum is within the range.
        Ok(self.first + index)
    }
}

impl Drop for DeviceNumbers {
    fn drop(&mut self) {
        // SAFETY: By the type invariant, the numbers are allocated to this value.
        unsafe { bindings::unregister_chrdev_region(self.first, self.count) };
    }
}

/// A type of character device.
pub(crate) trait CharDevice: FileOperations {
    /// The data that all files of one [`Registration`] share.
    type Context: Send + Sync + 'static;

    /// Opens the device at `index` of the [`DeviceNumbers`], and returns the file's private data.
    ///
    /// May be called as soon as the device is registered, even before [`Registration::new`]
    /// returns. May also be called after the registration was dropped, if the open began before the
    /// drop or if another file of the same node is still open.
    ///
    /// # Context
    ///
    /// Process context; may sleep.
    fn open(context: &Self::Context, index: u32, file: &File) -> Result<Self::Data>;
}

/// The state that a registration and the files opened through it share.
///
/// The release function of `owner` frees this structure. `cdev` holds a reference to `owner`. Each
/// file holds a reference to `cdev`. The registration holds one reference to `cdev` and one to
/// `owner`. Each file also holds a reference to the module, and releases it after the reference to
/// `cdev`. So the release function never runs after the module's code is gone.
/// (`CONFIG_DEBUG_KOBJECT_RELEASE` is an exception: it delays the release function on purpose, so
/// that unloading any module that has a character device is unsafe.)
struct Shared<T: CharDevice> {
    cdev: Opaque<bindings::cdev>,
    owner: Opaque<bindings::kobject>,
    context: T::Context,
    numbers: Arc<DeviceNumbers>,
}

impl<T: CharDevice> Shared<T> {
    const FILE_OPERATIONS: bindings::file_operations = {
        // SAFETY: Only `Registration` uses the table, for the files of its character device. `open`
        // stores a `T::Data` in each of these files.
        unsafe { VTable::<T>::build(Some(Self::open)) }
    };

    const OWNER: bindings::kobj_type = bindings::kobj_type {
        release: Some(Self::release),
        ..pin_init::zeroed()
    };

    /// Opens a file of the character device.
    ///
    /// # Safety
    ///
    /// `inode` and `file` must be those of a file that is being opened through a `Shared<T>`.
    unsafe extern "C" fn open(inode: *mut bindings::inode, file: *mut bindings::file) -> c_int {
        // SAFETY: The inode is that of a character device, and valid for the duration of this call.
        let (cdev, number) = unsafe { ((*inode).__bindgen_anon_5.i_cdev, (*inode).i_rdev) };
        // SAFETY: By the safety requirements, `cdev` is the field of a `Shared<T>`.
        let shared = unsafe { container_of!(Opaque::cast_from(cdev), Self, cdev) };
        // SAFETY: The caller, `chrdev_open()`, holds a reference to the character device, which
        // holds a reference to its owner. So `shared` is not freed before this function returns.
        // After registration, `shared` is written to only inside `Opaque`.
        let shared = unsafe { &*shared };
        // SAFETY: `file` is valid for the duration of this call; no descriptor refers to it yet.
        let rust_file = unsafe { File::from_raw_file(file) };

        // Every device number of the character device is in `shared.numbers`, so the subtraction
        // cannot wrap.
        let index = number.wrapping_sub(shared.numbers.first);
        match T::open(&shared.context, index, rust_file) {
            Ok(data) => {
                // SAFETY: An `open` function may set the private data of the file.
                unsafe { (*file).private_data = data.into_foreign() };
                0
            }
            Err(error) => error.to_errno(),
        }
    }

    /// Frees a `Shared<T>`, after the last reference to its `owner` was released.
    ///
    /// # Safety
    ///
    /// `owner` must be the field of a `Shared<T>` that came from `KBox::into_raw()`. No reference
    /// to that `Shared<T>` may be left.
    unsafe extern "C" fn release(owner: *mut bindings::kobject) {
        // SAFETY: By the safety requirements, `owner` is the field of a `Shared<T>`.
        let shared = unsafe { container_of!(Opaque::cast_from(owner), Self, owner) };
        // SAFETY: By the safety requirements, `shared` came from `KBox::into_raw()`, and no
        // reference is left.
        drop(unsafe { KBox::from_raw(shared.cast_mut()) });
    }
}

/// A registered character device. Its device numbers are part of a range of [`DeviceNumbers`].
/// Dropping this value unregisters the device.
///
/// Files that are open when this value is dropped stay open and keep the context alive. In a
/// module's initialization, registering must be the last step that can fail, because the kernel
/// removes a module that fails to load even if files are already open.
///
/// # Invariants
///
/// `shared` is valid, its `cdev` is initialized and registered, and its `owner` is the parent of
/// `cdev`. This value owns one reference to `cdev` and one to `owner`.
pub(crate) struct Registration<T: CharDevice> {
    shared: NonNull<Shared<T>>,
    _shared: PhantomData<KBox<Shared<T>>>,
}

// SAFETY: Any thread may unregister a character device. Unregistering may drop the context, which
// is `Send`.
unsafe impl<T: CharDevice> Send for Registration<T> {}

// SAFETY: A shared reference gives access to none of the fields.
unsafe impl<T: CharDevice> Sync for Registration<T> {}

impl<T: CharDevice> Registration<T> {
    /// Registers a character device for the given `indices` of `numbers`.
    ///
    /// # Errors
    ///
    /// `EINVAL` if `indices` is empty or not entirely in the range; `ENOMEM`.
    ///
    /// # Context
    ///
    /// May sleep.
    pub(crate) fn new(
        numbers: Arc<DeviceNumbers>,
        indices: Range<u32>,
        context: T::Context,
    ) -> Result<Self> {
        if indices.is_empty() || indices.end > numbers.count {
            return Err(EINVAL);
        }
        let first = numbers.device_number(indices.start)?;

        let shared = KBox::into_raw(KBox::new(
            Shared::<T> {
                cdev: Opaque::zeroed(),
                owner: Opaque::zeroed(),
                context,
                numbers,
            },
            GFP_KERNEL,
        )?);
        // SAFETY: `shared` is valid until the last reference to `owner` is released.
        let (cdev, owner) = unsafe { ((*shared).cdev.get(), (*shared).owner.get()) };

        // SAFETY: `owner` is zeroed and at its final address. From here on, its release function
        // frees `shared`, which came from `KBox::into_raw()`.
        unsafe { bindings::kobject_init(owner, &Shared::<T>::OWNER) };
        // SAFETY: `cdev` is at its final address, and no other code has access to it.
        unsafe { bindings::cdev_init(cdev, &Shared::<T>::FILE_OPERATIONS) };
        // SAFETY: `cdev` is initialized, and not yet registered.
        unsafe { (*cdev).owner = this_module() };
        // SAFETY: `cdev` and `owner` are initialized, and `cdev` is not yet registered.
        unsafe { bindings::cdev_set_parent(cdev, owner) };

        // OVERFLOW: The range is not empty.
        let count = indices.end - indices.start;
        // SAFETY: `cdev` is complete. `cdev` holds a reference to `owner`, so `cdev` stays
        // allocated as long as it is in use.
        if let Err(error) = to_result(unsafe { bindings::cdev_add(cdev, first, count) }) {
            // SAFETY: This is the only reference to `owner`, because `cdev` holds a reference only
            // while it is registered.
            unsafe { bindings::kobject_put(owner) };
            return Err(error);
        }

        // INVARIANT: `cdev` was initialized and registered above, with `owner` as its parent.
        Ok(Self {
            // SAFETY: `shared` came from `KBox::into_raw()`, which does not return null.
            shared: unsafe { NonNull::new_unchecked(shared) },
            _shared: PhantomData,
        })
    }
}

impl<T: CharDevice> Drop for Registration<T> {
    fn drop(&mut self) {
        // SAFETY: `shared` is valid by the type invariant.
        let shared = unsafe { self.shared.as_ref() };
        let (cdev, owner) = (shared.cdev.get(), shared.owner.get());
        // SAFETY: By the type invariant, `cdev` is registered. This call releases this value's
        // reference to `cdev`.
        unsafe { bindings::cdev_del(cdev) };
        // SAFETY: This call releases this value's reference to `owner`, and may free `shared`.
        unsafe { bindings::kobject_put(owner) };
    }
}

/// The C device of a [`Node`], and the owner of the device's node in `/dev`.
///
/// The driver core calls functions of this module for such a device, and `release` last. Nothing
/// outside the driver core holds a reference to the device after [`Node`] has unregistered it, and
/// the driver core holds such references only for moments (for iterations, and for power
/// management). So the module's code outlives the device, except with
/// `CONFIG_DEBUG_KOBJECT_RELEASE`, see [`Shared`].
#[repr(C)]
struct NodeDevice {
    dev: Opaque<bindings::device>,
    owner: Owner,
}

impl NodeDevice {
    /// The device type of every `NodeDevice`. The type has no name, so uevents contain no
    /// `DEVTYPE`.
    const TYPE: &'static bindings::device_type = &bindings::device_type {
        devnode: Some(Self::devnode),
        ..pin_init::zeroed()
    };

    /// Sets the owner of the device's node in `/dev`, and its mode unless the owner is root.
    /// Returns null, so that the class determines the path of the node.
    ///
    /// # Safety
    ///
    /// `dev` must be the device of a `NodeDevice` with a positive reference count during this call.
    /// `mode`, `uid` and `gid` must be valid, or null.
    unsafe extern "C" fn devnode(
        dev: *const bindings::device,
        mode: *mut bindings::umode_t,
        uid: *mut bindings::kuid_t,
        gid: *mut bindings::kgid_t,
    ) -> *mut c_char {
        // SAFETY: By the safety requirements, `dev` is in a `NodeDevice`, which is valid during
        // this call. Its owner never changes.
        let owner = unsafe { (*container_of!(Opaque::cast_from(dev), Self, dev)).owner };
        // SAFETY: By the safety requirements, the pointers are valid, or null.
        if let Some(uid) = unsafe { uid.as_mut() } {
            *uid = owner.uid;
        }
        // SAFETY: As above.
        if let Some(gid) = unsafe { gid.as_mut() } {
            *gid = owner.gid;
        }
        // If this function set no mode, udev would give the node's group as much access as the
        // node's user.
        if owner != Owner::ROOT {
            // SAFETY: As above.
            if let Some(mode) = unsafe { mode.as_mut() } {
                *mode = 0o600;
            }
        }

        ptr::null_mut()
    }

    /// Frees a `NodeDevice`, after the last reference to its device was released.
    ///
    /// # Safety
    ///
    /// `dev` must be the device of a `NodeDevice` that came from a [`KBox`], and its last reference
    /// must have been released.
    unsafe extern "C" fn release(dev: *mut bindings::device) {
        // SAFETY: By the safety requirements, `dev` is in a `NodeDevice` that came from a `KBox`,
        // and no reference is left.
        drop(unsafe {
            KBox::from_raw(container_of!(Opaque::cast_from(dev), Self, dev).cast_mut())
        });
    }
}

/// A device of a class, with a node in `/dev`. Dropping this value removes the device and the node.
///
/// `D` is the data of the attributes in the device's sysfs directory.
///
/// # Invariants
///
/// `dev` is a registered device of `_class`, in a [`NodeDevice`], and this value owns a reference
/// to that device. The device's driver data points to the value that `_data` holds.
pub(crate) struct Node<D: Send + Sync + 'static> {
    dev: NonNull<bindings::device>,
    _data: Arc<D>,
    _class: Arc<Class>,
    _numbers: Arc<DeviceNumbers>,
}

// SAFETY: Any thread may unregister a device, and the other fields are `Send`.
unsafe impl<D: Send + Sync + 'static> Send for Node<D> {}

// SAFETY: A shared reference gives access only to a reference to the device, which may be shared.
unsafe impl<D: Send + Sync + 'static> Sync for Node<D> {}

impl<D: Send + Sync + 'static> Node<D> {
    /// Creates a device called `name` for the device number at `index` of `numbers`. Its node in
    /// `/dev` has the mode 0600, and belongs to `owner` as soon as the node exists.
    ///
    /// When this function returns, the device's sysfs directory has all attributes of `A` (see
    /// [`super::sysfs`]), its node in `/dev` exists, and userspace has been notified.
    ///
    /// # Errors
    ///
    /// `EINVAL` if `index` is outside the range or if `name` is empty; `EEXIST` if there is a
    /// device with that name or number; `ENOMEM`.
    ///
    /// # Context
    ///
    /// May sleep.
    pub(crate) fn new<A: DeviceAttributes<D>>(
        class: Arc<Class>,
        numbers: Arc<DeviceNumbers>,
        index: u32,
        name: &CStr,
        owner: Owner,
        data: Arc<D>,
    ) -> Result<Self> {
        let number = numbers.device_number(index)?;
        if name.is_empty() {
            // The driver core would warn about an empty name.
            return Err(EINVAL);
        }

        let device = KBox::new(
            NodeDevice {
                dev: pin_init::zeroed(),
                owner,
            },
            GFP_KERNEL_ACCOUNT,
        )?;
        // SAFETY: The pointer came from the `KBox` just now.
        let dev = Opaque::cast_into(unsafe { &raw const (*KBox::into_raw(device)).dev });
        // SAFETY: The device is zeroed, and nothing else uses it yet. By the invariant of `Class`,
        // the class is registered. The new `Node` holds the class, so the class outlives the
        // device. The type and the attributes are static. `release` matches how the device was
        // allocated.
        unsafe {
            bindings::device_initialize(dev);
            (*dev).devt = number;
            (*dev).class = class.as_raw();
            (*dev).type_ = NodeDevice::TYPE;
            (*dev).groups = A::GROUPS.as_ptr().cast_mut();
            (*dev).release = Some(NodeDevice::release);
        }
        // SAFETY: The device is initialized. The driver data points to a `D`, as the attributes
        // require. The `D` lives until the attributes are removed, see `drop()`. The format takes
        // one string, which is copied.
        let added = unsafe {
            bindings::dev_set_drvdata(dev, Arc::as_ptr(&data).cast_mut().cast());
            to_result(bindings::dev_set_name(
                dev,
                c"%s".as_char_ptr(),
                name.as_char_ptr(),
            ))
            .and_then(|()| to_result(bindings::device_add(dev)))
        };
        if let Err(error) = added {
            // SAFETY: The device is not registered. This call releases the only reference to it.
            unsafe { bindings::put_device(dev) };
            return Err(error);
        }

        // INVARIANT: The device was registered above, with `data` as its driver data.
        Ok(Self {
            dev: NonNull::new(dev).ok_or(ENOMEM)?,
            _data: data,
            _class: class,
            _numbers: numbers,
        })
    }
}

// SAFETY: By the invariant of `Node`, the device is registered until the `Node` is dropped.
unsafe impl<D: Send + Sync + 'static> Registered for Node<D> {
    fn device(&self) -> &Device {
        // SAFETY: By the type invariant, `self` owns a reference to the device, which keeps the
        // device valid.
        unsafe { Device::from_raw(self.dev.as_ptr()) }
    }
}

impl<D: Send + Sync + 'static> Drop for Node<D> {
    /// Removes the device. Waits for reads and writes of attributes that are in progress. May
    /// sleep.
    ///
    /// Deadlocks if called from one of the device's own attributes.
    fn drop(&mut self) {
        // SAFETY: By the type invariant, the device is registered. This call releases this value's
        // reference to the device. No function of an attribute is called afterwards, so no
        // attribute uses the data, which is dropped next.
        unsafe { bindings::device_unregister(self.dev.as_ptr()) };
    }
}
