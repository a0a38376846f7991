// SPDX-License-Identifier: GPL-2.0

//! Character devices and their nodes in `/dev`.
//!
//! C headers: [`include/linux/cdev.h`](srctree/include/linux/cdev.h),
//! [`include/linux/device.h`](srctree/include/linux/device.h)

use super::{
    class::Class,
    device::Registered,
    file_ops::{
        this_module,
        FileOperations,
        VTable, //
    },
    raw,
    sysfs::Attributes, //
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
    error::{
        from_err_ptr,
        to_result, //
    },
    fs::File,
    prelude::*,
    sync::Arc,
    types::{
        ForeignOwnable,
        Opaque, //
    },
};

/// A range of device numbers with a dynamically allocated major; given back when dropped.
///
/// # Invariants
///
/// The `count` device numbers from `first` on are this region's, all with the same major.
pub(crate) struct Region {
    first: raw::dev_t,
    count: u32,
}

impl Region {
    /// How many device numbers a major has, the most that a region can have.
    pub(crate) const MAX: u32 = 1 << raw::MINORBITS;

    /// Allocates `count` device numbers, the minors from 0 on, under `name` in `/proc/devices`.
    ///
    /// Fails with `EINVAL` if `count` is 0 or more than [`MAX`](Self::MAX), with `EBUSY` if no
    /// major is left, or with `ENOMEM`. May sleep.
    pub(crate) fn new(count: u32, name: &CStr) -> Result<Self> {
        if count == 0 || count > Self::MAX {
            return Err(EINVAL);
        }

        let mut first = 0;
        // SAFETY: `first` is valid for a write; the name is copied.
        to_result(unsafe { raw::alloc_chrdev_region(&mut first, 0, count, name.as_char_ptr()) })?;

        // INVARIANT: They have just been allocated.
        Ok(Self { first, count })
    }

    /// The device number at `index`, `EINVAL` if the region is not that large.
    fn device_number(&self, index: u32) -> Result<raw::dev_t> {
        if index >= self.count {
            return Err(EINVAL);
        }
        // OVERFLOW: Within the region, by the type invariant.
        Ok(self.first + index)
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the numbers are this region's.
        unsafe { raw::unregister_chrdev_region(self.first, self.count) };
    }
}

/// A kind of character device.
pub(crate) trait CharDevice: FileOperations {
    /// What all files of one [`Registration`] share.
    type Context: Send + Sync + 'static;

    /// Opens the device at `index` of the region. What is returned becomes the file's private data.
    ///
    /// Comes from the moment of registration on, maybe before [`Registration::new`] returns; and
    /// it can come after the registration was dropped, if the open began before or if another file
    /// of the same node is open still. Runs in process context and may sleep.
    fn open(context: &Self::Context, index: u32, file: &File) -> Result<Self::Data>;
}

/// What a registration and the files opened through it share.
///
/// Freed by the release function of `owner`. The character device holds a reference to `owner`,
/// a file one to the character device, and the registration has one to each. A file's reference
/// comes with one to the module, given back after it, so the release function never runs without
/// its code (but for `CONFIG_DEBUG_KOBJECT_RELEASE`, which puts it off on purpose: there, as with any
/// module that has a character device, unloading it is not safe).
struct Shared<T: CharDevice> {
    cdev: Opaque<raw::cdev>,
    owner: Opaque<raw::kobject>,
    context: T::Context,
    region: Arc<Region>,
}

impl<T: CharDevice> Shared<T> {
    const FILE_OPERATIONS: raw::file_operations = {
        // SAFETY: Only `Registration` uses the table, for the files of its character device, and
        // `open` stores a `T::Data` in each of them.
        unsafe { VTable::<T>::build(Some(Self::open)) }
    };

    const OWNER: raw::kobj_type = raw::kobj_type {
        release: Some(Self::release),
        ..pin_init::zeroed()
    };

    /// # Safety
    ///
    /// `inode` and `file` must be those of a file that is being opened through a `Shared<T>`.
    unsafe extern "C" fn open(inode: *mut raw::inode, file: *mut raw::file) -> c_int {
        // SAFETY: The inode is valid for the duration of this call, and of a character device.
        let (cdev, number) = unsafe { ((*inode).__bindgen_anon_5.i_cdev, (*inode).i_rdev) };
        // SAFETY: By the safety requirements it is the field of a `Shared<T>`.
        let shared = unsafe { container_of!(Opaque::cast_from(cdev), Self, cdev) };
        // SAFETY: The caller, `chrdev_open()`, has a reference to the character device, and that
        // one to its owner, so this is not freed before this function returns. It is not written
        // to after registration, except inside `Opaque`.
        let shared = unsafe { &*shared };
        // SAFETY: Valid for the duration of this call; no descriptor refers to it yet.
        let rust_file = unsafe { File::from_raw_file(file) };

        // The device covers only numbers of the region, so this cannot wrap.
        let index = number.wrapping_sub(shared.region.first);
        match T::open(&shared.context, index, rust_file) {
            Ok(data) => {
                // SAFETY: The private data is for `open` to set.
                unsafe { (*file).private_data = data.into_foreign() };
                0
            }
            Err(error) => error.to_errno(),
        }
    }

    /// # Safety
    ///
    /// `owner` must be that of a `Shared<T>` that came from `KBox::into_raw()`, with no reference
    /// left.
    unsafe extern "C" fn release(owner: *mut raw::kobject) {
        // SAFETY: By the safety requirements it is the field of a `Shared<T>`.
        let shared = unsafe { container_of!(Opaque::cast_from(owner), Self, owner) };
        // SAFETY: By the safety requirements, and nobody has a reference any more.
        drop(unsafe { KBox::from_raw(shared.cast_mut()) });
    }
}

/// A registered character device, for a range of a region; unregistered when dropped.
///
/// Files that are open then stay open, and the context with them. Register it as the last thing
/// that can fail in a module's initialization: a module that fails to load is taken away without
/// regard to files that are open already.
///
/// # Invariants
///
/// `shared` is valid, its `cdev` is initialized and registered, its `owner` is the parent of that,
/// and one reference to each belongs to this value.
pub(crate) struct Registration<T: CharDevice> {
    shared: NonNull<Shared<T>>,
    _shared: PhantomData<KBox<Shared<T>>>,
}

// SAFETY: A character device can be unregistered by any thread, and the context, which may go with
// it, can be sent.
unsafe impl<T: CharDevice> Send for Registration<T> {}

// SAFETY: There is nothing to be done with a shared reference.
unsafe impl<T: CharDevice> Sync for Registration<T> {}

impl<T: CharDevice> Registration<T> {
    /// Registers a character device for the given indices of `region`.
    ///
    /// Fails with `EINVAL` if there are none or not all are in the region, or with `ENOMEM`. May
    /// sleep.
    pub(crate) fn new(
        region: Arc<Region>,
        indices: Range<u32>,
        context: T::Context,
    ) -> Result<Self> {
        if indices.is_empty() || indices.end > region.count {
            return Err(EINVAL);
        }
        let first = region.device_number(indices.start)?;

        let shared = KBox::into_raw(KBox::new(
            Shared::<T> {
                cdev: Opaque::zeroed(),
                owner: Opaque::zeroed(),
                context,
                region,
            },
            GFP_KERNEL,
        )?);
        // SAFETY: `shared` is valid, and stays so until the last reference to `owner` is gone.
        let (cdev, owner) = unsafe { ((*shared).cdev.get(), (*shared).owner.get()) };

        // SAFETY: Zeroed and at its final address. From here on its release function frees
        // `shared`, which came from `KBox::into_raw()`.
        unsafe { raw::kobject_init(owner, &Shared::<T>::OWNER) };
        // SAFETY: At its final address, and nobody else has it.
        unsafe { raw::cdev_init(cdev, &Shared::<T>::FILE_OPERATIONS) };
        // SAFETY: Initialized, and not yet registered.
        unsafe { (*cdev).owner = this_module() };
        // SAFETY: Both are initialized, and the first is not yet registered.
        unsafe { raw::cdev_set_parent(cdev, owner) };

        // OVERFLOW: The range is not empty.
        let count = indices.end - indices.start;
        // SAFETY: Complete; it keeps `owner`, and so itself, alive for as long as it is in use.
        if let Err(error) = to_result(unsafe { raw::cdev_add(cdev, first, count) }) {
            // SAFETY: This is the only reference: the device has none unless it is registered.
            unsafe { raw::kobject_put(owner) };
            return Err(error);
        }

        // INVARIANT: All of this was done just now.
        Ok(Self {
            // SAFETY: From `KBox::into_raw()`, which does not return null.
            shared: unsafe { NonNull::new_unchecked(shared) },
            _shared: PhantomData,
        })
    }
}

impl<T: CharDevice> Drop for Registration<T> {
    fn drop(&mut self) {
        // SAFETY: Valid by the type invariant.
        let shared = unsafe { self.shared.as_ref() };
        let (cdev, owner) = (shared.cdev.get(), shared.owner.get());
        // SAFETY: Registered by the type invariant; this gives our reference to it back.
        unsafe { raw::cdev_del(cdev) };
        // SAFETY: The other reference of ours. `shared` may be gone after this.
        unsafe { raw::kobject_put(owner) };
    }
}

/// A device of a class with its node in `/dev`; both go away when it is dropped.
///
/// `D` is what the attributes in its directory in sysfs work on.
///
/// # Invariants
///
/// `dev` is a device of `class`, registered, with a reference that belongs to this value. Its
/// driver data points to the value that `data` holds.
pub(crate) struct Node<D: Send + Sync + 'static> {
    dev: NonNull<raw::device>,
    _data: Arc<D>,
    _class: Arc<Class>,
    _region: Arc<Region>,
}

// SAFETY: A device can be unregistered by any thread, and what else is in here can be sent.
unsafe impl<D: Send + Sync + 'static> Send for Node<D> {}

// SAFETY: A reference to a device can be shared, and no more than that can be had.
unsafe impl<D: Send + Sync + 'static> Sync for Node<D> {}

impl<D: Send + Sync + 'static> Node<D> {
    /// Creates a device called `name` for the device number at `index` of `region`.
    ///
    /// When this returns, its directory in sysfs has all attributes of `A` (see
    /// [`super::sysfs`]), its node in `/dev` exists, and userspace has been told.
    ///
    /// Fails with `EINVAL` if `index` is not in the region or `name` is empty, with `EEXIST` if
    /// there is one of that name or number, or with `ENOMEM`. May sleep.
    pub(crate) fn new<A: Attributes<D>>(
        class: Arc<Class>,
        region: Arc<Region>,
        index: u32,
        name: &CStr,
        data: Arc<D>,
    ) -> Result<Self> {
        let number = region.device_number(index)?;
        if name.is_empty() {
            // The driver core would warn of it.
            return Err(EINVAL);
        }

        // SAFETY: The class is registered, by its invariant, and for longer than the device, which
        // holds it. The format asks for one string, which is copied. The attributes are static,
        // and find a `D` at the driver data: it lives until they are gone, see `drop()`.
        let dev = from_err_ptr(unsafe {
            raw::device_create_with_groups(
                class.as_raw(),
                ptr::null_mut(),
                number,
                Arc::as_ptr(&data).cast_mut().cast(),
                A::DEVICE.cast_mut(),
                c"%s".as_char_ptr(),
                name.as_char_ptr(),
            )
        })?;

        // INVARIANT: All of this was done just now.
        Ok(Self {
            dev: NonNull::new(dev).ok_or(ENOMEM)?,
            _data: data,
            _class: class,
            _region: region,
        })
    }
}

// SAFETY: By its invariant a `Node` is registered until it is dropped.
unsafe impl<D: Send + Sync + 'static> Registered for Node<D> {
    fn device(&self) -> &Device {
        // SAFETY: By the type invariant it is valid, with a reference, for as long as `self` is.
        unsafe { Device::from_raw(self.dev.as_ptr()) }
    }
}

impl<D: Send + Sync + 'static> Drop for Node<D> {
    /// Waits for attributes that are being read or written. May sleep.
    ///
    /// From within one of its own attributes it would wait for itself.
    fn drop(&mut self) {
        // SAFETY: Registered by the type invariant; this gives the reference back. No attribute is
        // called any more after this, so the data, dropped next, is not in use by one.
        unsafe { raw::device_unregister(self.dev.as_ptr()) };
    }
}
