// SPDX-License-Identifier: GPL-2.0

//! The registry of all devices, which creates and destroys them.
//!
//! # Lock order
//!
//! The vDPA core's device lock, then the registry's lock, then a device's own locks. A device's
//! node and sysfs directories are created with the registry locked. If a later step of the creation
//! fails, they are also removed with the registry locked. When a device is destroyed, its node and
//! directories are removed with the registry unlocked, as the removal waits for tasks that read an
//! attribute.

use super::{
    device::{
        Attached,
        Dev,
        Negotiated,
        Shared, //
    },
    domain::Domain,
    sysfs::{
        DevAttributes,
        VqAttributes, //
    },
    vq::Vq, //
};
use crate::{
    bindings::{
        chrdev::{
            DeviceNumbers,
            Node, //
        },
        class::{
            Class,
            ClassInfo, //
        },
        cred::Owner,
        iova,
        kobject::KObject,
        module::ModuleRef,
        pm::SuspendWatch,
        workqueue::{
            FlushOnDrop,
            OwnedQueue, //
        },
    },
    uapi::DevConfig,
};
use core::cmp::Ordering;
use kernel::{
    alloc::flags::GFP_KERNEL_ACCOUNT,
    new_mutex,
    prelude::*,
    rbtree::RBTree,
    str::CString,
    sync::{
        Arc,
        Mutex, //
    },
    time::Delta,
    ThisModule,
};

/// Minor number of the control node. Devices have the minor numbers after it.
pub(super) const CONTROL_INDEX: u32 = 0;

/// Upper limit of the module parameter `control_timeout_ms`, in milliseconds. While a task waits
/// for a command of a control virtqueue, the kernel cannot freeze that task, and the machine does
/// not suspend if a task is not frozen within 20 s.
const MAX_CONTROL_TIMEOUT_MS: i32 = 10_000;

struct VduseClass;

impl ClassInfo for VduseClass {
    const NAME: &'static CStr = c"vduse";
    const DIRECTORY: &'static CStr = c"vduse";
}

/// The node and the sysfs directories of a device. Fields are dropped in declaration order.
struct Shown {
    /// The sysfs directories of the virtqueues, inside the node's directory.
    _vqs: KVVec<KObject<Vq>>,
    /// The device's node. The vDPA device holds a reference to the node as well.
    node: Arc<Node<Dev>>,
}

/// A device in the registry, with its node, its directories and a reference to the module. Fields
/// are dropped in declaration order.
struct Entry {
    name: CString,
    /// The node and the directories; [`None`] while the device is being destroyed. The entry keeps
    /// the name and the minor number reserved until the node and the directories are gone.
    shown: Option<Shown>,
    dev: Arc<Dev>,
    _module: ModuleRef,
}

/// The devices, by minor number.
type Entries = RBTree<u32, Entry>;

/// The devices, and the resources needed to create them.
#[pin_data]
pub(crate) struct Registry {
    #[pin]
    entries: Mutex<Entries>,
    pub(super) class: Arc<Class>,
    pub(super) numbers: Arc<DeviceNumbers>,
    shared: Shared,
    module: &'static ThisModule,
}

impl Registry {
    /// Creates an empty registry. `max_iotlb_entries` and `control_timeout_ms` are the module
    /// parameters of these names.
    ///
    /// # Errors
    ///
    /// [`EEXIST`] if another class is named `vduse`.
    pub(crate) fn new(
        module: &'static ThisModule,
        max_iotlb_entries: i32,
        control_timeout_ms: i32,
    ) -> Result<Arc<Self>> {
        let shared = Shared {
            iova_cache: iova::Cache::get()?,
            suspend_watch: Arc::pin_init(SuspendWatch::new(), GFP_KERNEL_ACCOUNT)?,
            queue: FlushOnDrop::new(OwnedQueue::new_highpri_percpu(c"vduse")?)?,
            max_iotlb_entries: usize::try_from(max_iotlb_entries).unwrap_or(0),
            control_timeout: Delta::from_millis(
                control_timeout_ms.min(MAX_CONTROL_TIMEOUT_MS).into(),
            ),
        };

        Arc::pin_init(
            try_pin_init!(Self {
                entries <- new_mutex!(RBTree::new()),
                class: Arc::new(Class::register::<VduseClass>()?, GFP_KERNEL_ACCOUNT)?,
                numbers: Arc::new(
                    DeviceNumbers::new(DeviceNumbers::MAX, c"vduse")?,
                    GFP_KERNEL_ACCOUNT,
                )?,
                shared: shared,
                module: module,
            }),
            GFP_KERNEL_ACCOUNT,
        )
    }

    /// Returns the device with the given minor number.
    pub(super) fn dev(&self, index: u32) -> Option<Arc<Dev>> {
        self.entries
            .lock()
            .get(&index)
            .map(|entry| entry.dev.clone())
    }

    /// Returns the domain of address space 0 of the first device that has one and whose minor number
    /// is at least `index`, with the minor number.
    ///
    /// The domain may outlive the device. It holds no reference to the module.
    pub(super) fn next_domain(&self, index: u32) -> Option<(u32, Arc<Domain>)> {
        let entries = self.entries.lock();
        let mut index = index;

        while let Some(cursor) = entries.cursor_lower_bound(&index) {
            let (&minor, entry) = cursor.current();
            if let Ok(handle) = entry.dev.spaces.get(0) {
                return Some((minor, handle.domain.clone()));
            }
            index = minor + 1;
        }

        None
    }

    /// Returns the minor number and the entry of the device with the given name.
    fn find<'a>(entries: &'a Entries, name: &CStr) -> Option<(u32, &'a Entry)> {
        entries
            .iter()
            .find(|(_, entry)| entry.name.cmp(name) == Ordering::Equal)
            .map(|(&index, entry)| (index, entry))
    }

    /// Returns the lowest free minor number, or [`ENOSPC`] if there is none.
    fn free_index(entries: &Entries) -> Result<u32> {
        let mut free = CONTROL_INDEX + 1;
        for (&index, _) in entries.iter() {
            if index != free {
                break;
            }
            free += 1;
        }

        (free < DeviceNumbers::MAX).then_some(free).ok_or(ENOSPC)
    }

    /// Creates a device. The device's node exists when this returns.
    ///
    /// # Errors
    ///
    /// - [`EEXIST`] if there is a device of that name, including one that is being destroyed.
    /// - [`ENOSPC`] if there are too many devices.
    pub(super) fn create(
        &self,
        name: &CStr,
        config: &DevConfig,
        space: KVVec<u8>,
        negotiated: Negotiated,
    ) -> Result {
        let mut entries = self.entries.lock();
        if Self::find(&entries, name).is_some() {
            return Err(EEXIST);
        }

        let index = Self::free_index(&entries)?;
        let module = ModuleRef::get(self.module)?;
        let dev = Dev::new(config, space, negotiated, &self.shared)?;
        let node = Arc::new(
            Node::new::<DevAttributes>(
                self.class.clone(),
                self.numbers.clone(),
                index,
                name,
                Owner::of_current(),
                dev.clone(),
            )?,
            GFP_KERNEL_ACCOUNT,
        )?;
        let mut vqs = KVVec::with_capacity(dev.vqs().len(), GFP_KERNEL_ACCOUNT)?;
        for (i, vq) in dev.vqs().iter().enumerate() {
            let directory = CString::try_from_fmt(fmt!("vq{i}"))?;
            vqs.push(
                KObject::new::<VqAttributes>(&node, &directory, vq.clone())?,
                GFP_KERNEL_ACCOUNT,
            )?;
        }

        let entry = Entry {
            name: CString::try_from(name)?,
            shown: Some(Shown { _vqs: vqs, node }),
            dev,
            _module: module,
        };
        entries.try_create_and_insert(index, entry, GFP_KERNEL_ACCOUNT)?;

        Ok(())
    }

    /// Destroys a device. When this returns, another device can have the same name.
    ///
    /// # Errors
    ///
    /// - [`EINVAL`] if there is no such device.
    /// - [`EBUSY`] if the device is in use, or if another caller is destroying it.
    pub(super) fn destroy(&self, name: &CStr) -> Result {
        let mut entries = self.entries.lock();
        let (index, _) = Self::find(&entries, name).ok_or(EINVAL)?;
        let entry = entries.get_mut(&index).ok_or(EINVAL)?;

        entry.dev.destroy()?;
        let shown = entry.shown.take().ok_or(EBUSY)?;
        drop(entries);

        // The registry is unlocked, so that no other caller has to wait until the node and the
        // directories are removed or the device is dropped.
        drop(shown);
        let entry = self.entries.lock().remove(&index);
        drop(entry);

        Ok(())
    }

    /// Marks a device as being on the vDPA bus. Returns the device's minor number, and the proof
    /// that the device is on the bus.
    ///
    /// # Errors
    ///
    /// - [`EINVAL`] if there is no device of that name.
    /// - Those of [`Dev::attach`].
    pub(super) fn attach(&self, name: &CStr) -> Result<(u32, Attached)> {
        let entries = self.entries.lock();
        let (index, entry) = Self::find(&entries, name).ok_or(EINVAL)?;

        Ok((index, entry.dev.attach()?))
    }

    /// Returns the node of a device.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if there is no such device, or if the device is being destroyed. Neither can
    /// happen while the device is on the vDPA bus. After the device is destroyed, another device
    /// may have the same minor number.
    pub(super) fn node(&self, index: u32) -> Result<Arc<Node<Dev>>> {
        let entries = self.entries.lock();
        let shown = entries.get(&index).and_then(|entry| entry.shown.as_ref());

        Ok(shown.ok_or(EINVAL)?.node.clone())
    }
}
