// SPDX-License-Identifier: GPL-2.0

//! The control node, `/dev/vduse/control`.

use super::{
    device::Negotiated,
    registry::Registry,
    user::Argument,
    validate,
    virtio::device_id, //
};
use crate::{
    bindings::{
        capability::{
            capable,
            Capability, //
        },
        chrdev::CharDevice,
        file_ops::FileOperations,
        page::PAGE_SIZE, //
    },
    uapi::{
        extension,
        ioctl as cmd,
        DevConfig,
        API_VERSION_0,
        API_VERSION_1,
        F_QUEUE_READY,
        F_SUSPEND,
        NAME_MAX, //
    },
};
use kernel::{
    alloc::flags::GFP_KERNEL_ACCOUNT,
    fs::File,
    new_mutex,
    prelude::*,
    str::CString,
    sync::{
        Arc,
        ArcBorrow,
        Mutex, //
    },
};

/// The newest API version that this module supports.
const NEWEST_API_VERSION: u64 = API_VERSION_1;

/// The VDUSE features that this module supports.
const FEATURES: u64 = F_QUEUE_READY | F_SUSPEND;

/// The extensions that this module supports.
const EXTENSIONS: u64 = extension::F_RESUME;

/// The API version, features and extensions that the client of an open control file has negotiated
/// so far.
#[derive(Default)]
struct Client {
    /// The API version; [`None`] if the client has neither read nor set it yet.
    api_version: Option<u64>,
    features: u64,
    extensions: u64,
}

impl Client {
    /// Returns the API version. If the client has neither read nor set the API version yet, first
    /// sets it to `default`.
    fn settle_api_version(&mut self, default: u64) -> u64 {
        *self.api_version.get_or_insert(default)
    }
}

/// An open control file.
#[pin_data]
pub(super) struct Control {
    registry: Arc<Registry>,
    #[pin]
    client: Mutex<Client>,
}

impl Control {
    /// Returns the API version, features and extensions for a device that the client creates now.
    /// If the client has neither read nor set the API version yet, sets the version to 0.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if the client has set an extension without the feature that the extension
    /// requires.
    fn negotiated(&self) -> Result<Negotiated> {
        let mut client = self.client.lock();
        // A client that never negotiated a version speaks version 0.
        let api_version = client.settle_api_version(API_VERSION_0);
        if client.extensions & extension::F_RESUME != 0 && client.features & F_SUSPEND == 0 {
            return Err(EINVAL);
        }

        Ok(Negotiated {
            api_version,
            features: client.features,
            extensions: client.extensions,
        })
    }

    /// Reads 64 feature bits from userspace. Only bits that are set in `supported` may be set.
    ///
    /// # Errors
    ///
    /// - [`EFAULT`] if the memory cannot be read.
    /// - [`EINVAL`] if a bit outside `supported` is set.
    fn read_bits(arg: Argument, supported: u64) -> Result<u64> {
        let bits: u64 = arg.read()?;

        (bits & !supported == 0).then_some(bits).ok_or(EINVAL)
    }

    fn create(&self, arg: Argument) -> Result {
        let config: DevConfig = arg.read()?;
        let negotiated = self.negotiated()?;
        if !validate::device_is_valid(&config, negotiated.api_version, PAGE_SIZE as u32) {
            return Err(EINVAL);
        }
        let name = Self::name(&config.name)?;
        let space = arg.read_after::<DevConfig>(config.config_size as usize)?;

        if config.device_id == device_id::NET && !capable(Capability::NetAdmin) {
            return Err(EPERM);
        }

        self.registry.create(&name, &config, space, negotiated)
    }

    fn destroy(&self, arg: Argument) -> Result {
        let name: [u8; NAME_MAX] = arg.read()?;

        self.registry.destroy(&Self::name(&name)?)
    }

    /// Returns a device's name as a string, or [`EINVAL`] if no device can have that name.
    fn name(bytes: &[u8]) -> Result<CString> {
        let name = validate::name(bytes).ok_or(EINVAL)?;

        Ok(CString::try_from(name)?)
    }
}

/// The file operations of the control node.
pub(super) struct ControlFile;

impl CharDevice for ControlFile {
    type Context = Arc<Registry>;

    fn open(registry: &Arc<Registry>, _index: u32, _file: &File) -> Result<Arc<Control>> {
        Arc::pin_init(
            pin_init!(Control {
                registry: registry.clone(),
                client <- new_mutex!(Client::default()),
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
                let version = control.client.lock().settle_api_version(NEWEST_API_VERSION);
                arg.write(&version)?;
            }
            cmd::SET_API_VERSION => {
                let version: u64 = arg.read()?;
                if version > NEWEST_API_VERSION {
                    return Err(EINVAL);
                }
                control.client.lock().api_version = Some(version);
            }
            cmd::GET_FEATURES => arg.write(&FEATURES)?,
            cmd::SET_FEATURES => {
                let features = Control::read_bits(arg, FEATURES)?;
                control.client.lock().features = features;
            }
            extension::GET_FEATURES => arg.write(&EXTENSIONS)?,
            extension::SET_FEATURES => {
                let extensions = Control::read_bits(arg, EXTENSIONS)?;
                control.client.lock().extensions = extensions;
            }
            cmd::CREATE_DEV => control.create(arg)?,
            cmd::DESTROY_DEV => control.destroy(arg)?,
            // As the in-tree driver does, which programs rely on. On a device, it is `ENOTTY`.
            _ => return Err(EINVAL),
        }

        Ok(0)
    }
}
