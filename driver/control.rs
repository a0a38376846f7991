// SPDX-License-Identifier: GPL-2.0

//! The control node, `/dev/vduse/control`, and the registry of the devices that are made there.
//!
//! # Lock order
//!
//! The vDPA core's device lock, the registry, a device's own locks. An entry's node and directories
//! are made under the registry's lock (where what was made goes again if the rest fails), and removed
//! without: that waits for whoever reads an attribute.

use super::{
    config,
    dev::{
        Dev,
        Shared, //
    },
    ioctl::{
        Argument,
        DevFile, //
    },
    sysfs::{
        DevAttributes,
        VqAttributes, //
    },
    vdpa::DriverSide,
    vq::Vq, //
};
use crate::{
    bindings::{
        capability::{
            capable,
            Capability, //
        },
        chrdev::{
            CharDevice,
            Node,
            Region,
            Registration, //
        },
        class::{
            Class,
            ClassInfo, //
        },
        file_ops::FileOperations,
        iova,
        kobject::KObject,
        module::ModuleRef,
        page::PAGE_SIZE,
        pm::SuspendWatch,
        vdpa::mgmt::{
            Adding,
            ManagementOperations, //
        },
        workqueue::{
            Drained,
            OwnedQueue, //
        },
    },
    uapi::{
        ioctl as cmd,
        DevConfig,
        API_VERSION_0,
        API_VERSION_1,
        NAME_MAX, //
    },
};
use core::cmp::Ordering;
use kernel::{
    alloc::flags::GFP_KERNEL_ACCOUNT,
    fs::File,
    new_mutex,
    prelude::*,
    rbtree::RBTree,
    str::{
        CString, //
    },
    sync::{
        Arc,
        ArcBorrow,
        Mutex, //
    },
    ThisModule,
};

/// The newest version of the API.
const NEWEST_API_VERSION: u64 = API_VERSION_1;

/// The minor number of the control node. Devices have those behind it.
const CONTROL_INDEX: u32 = 0;

struct VduseClass;

impl ClassInfo for VduseClass {
    const NAME: &'static CStr = c"vduse";
    const DIRECTORY: &'static CStr = c"vduse";
}

/// What userspace sees of a device. Dropped in this order.
struct Shown {
    /// The directories of the virtqueues. Below the node's.
    _vqs: KVVec<KObject<Vq>>,
    /// Also held by the device on the vDPA bus.
    node: Arc<Node<Dev>>,
}

/// What exists of a device besides itself. Dropped in this order.
struct Entry {
    name: CString,
    /// [`None`] while the device is being destroyed: the name and the minor number are taken until
    /// nothing is to be seen of it any more.
    shown: Option<Shown>,
    dev: Arc<Dev>,
    _module: ModuleRef,
}

/// The devices, by minor number.
type Entries = RBTree<u32, Entry>;

/// The devices, and what is needed to make them.
#[pin_data]
pub(crate) struct Registry {
    #[pin]
    entries: Mutex<Entries>,
    class: Arc<Class>,
    region: Arc<Region>,
    shared: Shared,
    module: &'static ThisModule,
}

impl Registry {
    /// Makes an empty registry. Errors: [`EEXIST`] if there is a class of that name.
    pub(crate) fn new(module: &'static ThisModule, max_iotlb_entries: i32) -> Result<Arc<Self>> {
        let shared = Shared {
            iova_cache: iova::Cache::get()?,
            suspend_watch: Arc::pin_init(SuspendWatch::new(), GFP_KERNEL_ACCOUNT)?,
            queue: Drained::new(OwnedQueue::new_highpri_percpu(c"vduse")?)?,
            max_iotlb_entries: usize::try_from(max_iotlb_entries).unwrap_or(0),
        };

        Arc::pin_init(
            try_pin_init!(Self {
                entries <- new_mutex!(RBTree::new()),
                class: Arc::new(Class::register::<VduseClass>()?, GFP_KERNEL_ACCOUNT)?,
                region: Arc::new(Region::new(Region::MAX, c"vduse")?, GFP_KERNEL_ACCOUNT)?,
                shared: shared,
                module: module,
            }),
            GFP_KERNEL_ACCOUNT,
        )
    }

    /// What puts the devices on the bus.
    pub(crate) fn management(self: &Arc<Self>) -> Management {
        Management(self.clone())
    }

    /// The device of a minor number.
    pub(super) fn dev(&self, index: u32) -> Option<Arc<Dev>> {
        self.entries
            .lock()
            .get(&index)
            .map(|entry| entry.dev.clone())
    }

    /// Finds a device by its name.
    fn find<'a>(entries: &'a Entries, name: &CStr) -> Option<(u32, &'a Entry)> {
        entries
            .iter()
            .find(|(_, entry)| entry.name.cmp(name) == Ordering::Equal)
            .map(|(&index, entry)| (index, entry))
    }

    /// The lowest minor number that is free. Errors: [`ENOSPC`].
    fn free_index(entries: &Entries) -> Result<u32> {
        let mut free = CONTROL_INDEX + 1;
        for (&index, _) in entries.iter() {
            if index != free {
                break;
            }
            free += 1;
        }

        (free < Region::MAX).then_some(free).ok_or(ENOSPC)
    }

    /// Makes a device. When this returns, its node is there.
    ///
    /// Errors: [`EPERM`] for a network card, if the caller may not make those; [`EEXIST`] if there
    /// is a device of that name, or still is, as somebody destroys it; [`ENOSPC`] if there are too many.
    fn create(
        &self,
        name: &CStr,
        config: &DevConfig,
        space: KVVec<u8>,
        api_version: u64,
    ) -> Result {
        if config.device_id == config::device_id::NET && !capable(Capability::NetAdmin) {
            return Err(EPERM);
        }

        let mut entries = self.entries.lock();
        if Self::find(&entries, name).is_some() {
            return Err(EEXIST);
        }

        let index = Self::free_index(&entries)?;
        let module = ModuleRef::get(self.module)?;
        let dev = Dev::new(config, space, api_version, &self.shared)?;
        let node = Arc::new(
            Node::new::<DevAttributes>(
                self.class.clone(),
                self.region.clone(),
                index,
                name,
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

    /// Destroys a device. When this returns, its name is free.
    ///
    /// Errors: [`EINVAL`] if there is none, [`EBUSY`] if it is in use or if somebody else destroys it.
    fn destroy(&self, name: &CStr) -> Result {
        let mut entries = self.entries.lock();
        let (index, _) = Self::find(&entries, name).ok_or(EINVAL)?;
        let entry = entries.get_mut(&index).ok_or(EINVAL)?;

        entry.dev.destroy()?;
        let shown = entry.shown.take().ok_or(EBUSY)?;
        drop(entries);

        // Nobody else has to wait for this, nor for the last reference to the device.
        drop(shown);
        let entry = self.entries.lock().remove(&index);
        drop(entry);

        Ok(())
    }

    /// Finds a device that is to be put on the bus, and what has its parent there registered.
    ///
    /// The latter is to be dropped first: once the device is not attached any more, it can be destroyed,
    /// after which nothing is to be seen of it.
    fn prepare(&self, name: &CStr) -> Result<(DriverSide, Arc<Node<Dev>>)> {
        let entries = self.entries.lock();
        let (index, entry) = Self::find(&entries, name).ok_or(EINVAL)?;
        let attached = entry.dev.attach()?;
        drop(entries);

        let side = DriverSide::new(attached)?;
        // It has stayed, as it is attached.
        let entries = self.entries.lock();
        let shown = entries.get(&index).and_then(|entry| entry.shown.as_ref());
        let node = shown.ok_or(EINVAL)?.node.clone();

        Ok((side, node))
    }
}

/// An open control file: the version of the API that it speaks, once that is known.
#[pin_data]
struct Control {
    registry: Arc<Registry>,
    #[pin]
    api_version: Mutex<Option<u64>>,
}

impl Control {
    /// Takes `default` for the version, if none has been asked for or set.
    fn settle_api_version(&self, default: u64) -> u64 {
        *self.api_version.lock().get_or_insert(default)
    }

    fn create(&self, arg: Argument) -> Result {
        let config: DevConfig = arg.read()?;
        // Who never spoke of a version does not know of any but the first.
        let api_version = self.settle_api_version(API_VERSION_0);
        if !config::is_valid(&config, api_version, PAGE_SIZE as u32) {
            return Err(EINVAL);
        }
        let name = Self::name(&config.name)?;
        let space = arg.read_after::<DevConfig>(config.config_size as usize)?;

        self.registry.create(&name, &config, space, api_version)
    }

    fn destroy(&self, arg: Argument) -> Result {
        let name: [u8; NAME_MAX] = arg.read()?;

        self.registry.destroy(&Self::name(&name)?)
    }

    /// The name of a device. Errors: [`EINVAL`] if it cannot be one.
    fn name(bytes: &[u8]) -> Result<CString> {
        let name = config::name(bytes).ok_or(EINVAL)?;

        Ok(CString::try_from(name)?)
    }
}

/// The operations on the control node.
struct ControlFile;

impl CharDevice for ControlFile {
    type Context = Arc<Registry>;

    fn open(registry: &Arc<Registry>, _index: u32, _file: &File) -> Result<Arc<Control>> {
        Arc::pin_init(
            pin_init!(Control {
                registry: registry.clone(),
                api_version <- new_mutex!(None),
            }),
            GFP_KERNEL_ACCOUNT,
        )
    }
}

#[vtable]
impl FileOperations for ControlFile {
    type Data = Arc<Control>;

    fn ioctl(control: ArcBorrow<'_, Control>, _file: &File, cmd: u32, arg: usize) -> Result<isize> {
        let arg = Argument::new(arg);

        match cmd {
            cmd::GET_API_VERSION => {
                arg.write(&control.settle_api_version(NEWEST_API_VERSION))?;
            }
            cmd::SET_API_VERSION => {
                let version: u64 = arg.read()?;
                if version > NEWEST_API_VERSION {
                    return Err(EINVAL);
                }
                *control.api_version.lock() = Some(version);
            }
            cmd::CREATE_DEV => control.create(arg)?,
            cmd::DESTROY_DEV => control.destroy(arg)?,
            _ => return Err(EINVAL),
        }

        Ok(0)
    }
}

/// The management device: puts devices on the bus.
pub(crate) struct Management(Arc<Registry>);

impl ManagementOperations for Management {
    const DEVICE_IDS: &'static [u32] = config::device_id::ALLOWED;

    type Device = DriverSide;

    fn dev_add(&self, name: &CStr, adding: Adding<'_, DriverSide>) -> Result {
        let (side, parent) = self.0.prepare(name)?;
        let (ngroups, nas) = side.counts();
        let callbacks = side.callbacks();

        adding.add(ngroups, nas, callbacks, side, parent)
    }
}

/// The nodes of this driver. Dropped in this order.
pub(crate) struct Nodes {
    _node: Node<()>,
    _control: Registration<ControlFile>,
    _devices: Registration<DevFile>,
}

impl Nodes {
    /// Registers the nodes. To be done last, and that of the control node last of all: a file may be
    /// open from then on, and a module that fails to load does not wait for it to be closed.
    pub(crate) fn new(registry: &Arc<Registry>) -> Result<Self> {
        let region = &registry.region;
        let devices = Registration::new(
            region.clone(),
            CONTROL_INDEX + 1..Region::MAX,
            registry.clone(),
        )?;
        let node = Node::new::<()>(
            registry.class.clone(),
            region.clone(),
            CONTROL_INDEX,
            c"control",
            Arc::new((), GFP_KERNEL)?,
        )?;
        let control = Registration::new(
            region.clone(),
            CONTROL_INDEX..CONTROL_INDEX + 1,
            registry.clone(),
        )?;

        Ok(Self {
            _node: node,
            _control: control,
            _devices: devices,
        })
    }
}
