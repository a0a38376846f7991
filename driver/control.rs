// SPDX-License-Identifier: GPL-2.0

//! The control node, `/dev/vduse/control`.

use super::{
    config,
    registry::Registry,
    user::Argument, //
};
use crate::{
    bindings::{
        chrdev::CharDevice,
        file_ops::FileOperations,
        page::PAGE_SIZE, //
    },
    uapi::{
        ioctl as cmd,
        DevConfig,
        API_VERSION_0,
        API_VERSION_1,
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

/// The newest version of the API.
const NEWEST_API_VERSION: u64 = API_VERSION_1;

/// An open control file and, once known, the API version that its client speaks.
#[pin_data]
pub(super) struct Control {
    registry: Arc<Registry>,
    #[pin]
    api_version: Mutex<Option<u64>>,
}

impl Control {
    /// Returns the API version, which becomes `default` if none has been asked for or set yet.
    fn settle_api_version(&self, default: u64) -> u64 {
        *self.api_version.lock().get_or_insert(default)
    }

    fn create(&self, arg: Argument) -> Result {
        let config: DevConfig = arg.read()?;
        // A client that never negotiated a version speaks version 0.
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

    /// Returns a device's name as a string, or [`EINVAL`] if no device can have that name.
    fn name(bytes: &[u8]) -> Result<CString> {
        let name = config::name(bytes).ok_or(EINVAL)?;

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
