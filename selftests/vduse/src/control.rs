// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The control device, `/dev/vduse/control`, through which a program creates and destroys devices.

use std::ffi::CStr;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::io::Errno;
use vduse_uapi as uapi;

use crate::sys;

/// Path of the control device.
pub const CONTROL_PATH: &str = "/dev/vduse/control";

/// An open control device.
///
/// Each `Control` has its own API version, because the kernel keeps the version per open file. A
/// `Control` that neither reads nor sets the version uses version 0.
#[derive(Debug)]
pub struct Control {
    file: File,
}

impl Control {
    /// Opens [`CONTROL_PATH`].
    ///
    /// # Errors
    ///
    /// `ENOENT` when no VDUSE driver is loaded, `EACCES` when the caller lacks permission.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use vduse::{blk, Control};
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let control = Control::open()?;
    /// control.create(&blk::device_config("disk0", 1 << 20, 1))?;
    /// control.destroy("disk0")?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn open() -> io::Result<Self> {
        OpenOptions::new()
            .read(true)
            .write(true)
            .open(CONTROL_PATH)
            .map(|file| Self { file })
    }

    /// Reads the API version. If the version is not set yet, this call also sets it, to the newest
    /// version that the VDUSE driver supports.
    ///
    /// # Errors
    ///
    /// Returns the error of the ioctl.
    pub fn api_version(&self) -> io::Result<u64> {
        let mut version = 0;
        sys::exchange(&self.file, uapi::ioctl::GET_API_VERSION, &mut version)?;
        Ok(version)
    }

    /// Opens [`CONTROL_PATH`] and sets version 1, which supports virtqueue groups and address
    /// spaces.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open), and `EINVAL` when the VDUSE driver supports only version 0.
    pub fn open_v1() -> io::Result<Self> {
        let control = Self::open()?;
        control.set_api_version(uapi::API_VERSION_1)?;
        Ok(control)
    }

    /// Sets the API version of devices created through this `Control`.
    ///
    /// # Errors
    ///
    /// `EINVAL` when the VDUSE driver does not support the version.
    pub fn set_api_version(&self, version: u64) -> io::Result<()> {
        sys::send(&self.file, uapi::ioctl::SET_API_VERSION, &version)
    }

    /// Reads the VDUSE features that the VDUSE driver supports: [`uapi::F_QUEUE_READY`] and
    /// [`uapi::F_SUSPEND`].
    ///
    /// # Errors
    ///
    /// `EINVAL` when the VDUSE driver has no such features (the in-tree driver before Linux 7.3).
    pub fn supported_features(&self) -> io::Result<u64> {
        let mut features = 0;
        sys::exchange(&self.file, uapi::ioctl::GET_FEATURES, &mut features)?;
        Ok(features)
    }

    /// Sets the VDUSE features of devices that this `Control` creates from now on.
    ///
    /// # Errors
    ///
    /// `EINVAL` when the VDUSE driver does not support one of the features. In that case, the
    /// earlier setting stays in force.
    pub fn set_features(&self, features: u64) -> io::Result<()> {
        sys::send(&self.file, uapi::ioctl::SET_FEATURES, &features)
    }

    /// Reads the extensions that the VDUSE driver supports: [`uapi::extension::F_RESUME`].
    ///
    /// # Errors
    ///
    /// `EINVAL` when the VDUSE driver has no extensions. Only `vduse_rs` has extensions.
    pub fn supported_extensions(&self) -> io::Result<u64> {
        let mut extensions = 0;
        sys::exchange(&self.file, uapi::extension::GET_FEATURES, &mut extensions)?;
        Ok(extensions)
    }

    /// Sets the extensions of devices that this `Control` creates from now on.
    ///
    /// # Errors
    ///
    /// `EINVAL` when the VDUSE driver does not support one of the extensions. In that case, the
    /// earlier setting stays in force.
    pub fn set_extensions(&self, extensions: u64) -> io::Result<()> {
        sys::send(&self.file, uapi::extension::SET_FEATURES, &extensions)
    }

    /// Sets the VDUSE features and extensions of devices that this `Control` creates from now on.
    /// Sets all that both the VDUSE driver and a [`Server`](crate::server::Server) support, but
    /// [`uapi::extension::F_RESUME`] only together with [`uapi::F_SUSPEND`]. Returns the VDUSE
    /// features.
    ///
    /// # Errors
    ///
    /// Returns the error of the ioctl that failed. A VDUSE driver without features or extensions is
    /// not an error.
    pub fn offer_all(&self) -> io::Result<u64> {
        let or_none = |found: io::Result<u64>| match found {
            Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => Ok(0),
            found => found,
        };
        let served = uapi::F_QUEUE_READY | uapi::F_SUSPEND;
        let features = or_none(self.supported_features())? & served;
        if features != 0 {
            self.set_features(features)?;
        }
        let extensions = or_none(self.supported_extensions())? & uapi::extension::F_RESUME;
        if extensions != 0 && features & uapi::F_SUSPEND != 0 {
            self.set_extensions(extensions)?;
        }
        Ok(features)
    }

    /// Creates a device. The node `/dev/vduse/NAME` exists on return.
    ///
    /// # Errors
    ///
    /// `EEXIST` when a device of this name exists, `EINVAL` when the kernel rejects the
    /// configuration, `EPERM` for a network device without `CAP_NET_ADMIN`, `InvalidInput` when the
    /// name or the configuration space is too long for the ABI.
    pub fn create(&self, config: &DeviceConfig) -> io::Result<()> {
        let (head, tail) = config.to_abi()?;
        self.create_raw(&head, tail)
    }

    /// Variant of [`create`](Self::create) that takes the ABI's structure. The library checks only
    /// that `space` has the length given in `config`.
    ///
    /// # Errors
    ///
    /// As [`create`](Self::create), and `InvalidInput` when the length is wrong.
    pub fn create_raw(&self, config: &uapi::DevConfig, space: &[u8]) -> io::Result<()> {
        if usize::try_from(config.config_size) != Ok(space.len()) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the configuration space is not as long as config_size says",
            ));
        }
        sys::send_with_tail(&self.file, uapi::ioctl::CREATE_DEV, config, space)
    }

    /// Destroys a device.
    ///
    /// # Errors
    ///
    /// `EINVAL` when no device of this name exists, `EBUSY` while the device is open or on the vDPA
    /// bus, `InvalidInput` when the name is too long for the ABI or contains a NUL.
    pub fn destroy(&self, name: &str) -> io::Result<()> {
        let name = name_bytes(name)?;
        sys::send(&self.file, uapi::ioctl::DESTROY_DEV, &name)
    }
}

impl AsFd for Control {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Converts a name to the ABI's NUL-terminated array.
///
/// # Errors
///
/// `InvalidInput` when the name is too long or contains a NUL.
fn name_bytes(name: &str) -> io::Result<[u8; uapi::NAME_MAX]> {
    let invalid = |text| Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    if name.len() >= uapi::NAME_MAX {
        return invalid("a device's name has at most 255 bytes");
    }
    if name.as_bytes().contains(&0) {
        return invalid("a device's name has no NUL");
    }
    let mut bytes = [0; uapi::NAME_MAX];
    bytes[..name.len()].copy_from_slice(name.as_bytes());
    Ok(bytes)
}

/// Returns the device's name from the ABI's structure, or an empty string if the name there has no
/// terminating NUL.
pub fn name_of(config: &uapi::DevConfig) -> &CStr {
    CStr::from_bytes_until_nul(&config.name).unwrap_or_default()
}

/// Configuration of a device to create.
///
/// [`features`](Self::features) must include `VIRTIO_F_ACCESS_PLATFORM`.
/// [`blk::device_config`](crate::blk::device_config) returns the configuration of a disk.
///
/// # Examples
///
/// ```no_run
/// use vduse::{blk, Control, DeviceConfig};
///
/// # fn main() -> std::io::Result<()> {
/// let mut config = DeviceConfig::new("disk0", 2);
/// config.features = blk::FEATURES;
/// config.queues = 1;
/// config.space = blk::config_space(2048, 1);
/// Control::open()?.create(&config)?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct DeviceConfig {
    /// The device's name, 1 to 255 bytes.
    pub name: String,
    /// The virtio vendor id.
    pub vendor_id: u32,
    /// The virtio device id (virtio 1.3, section 5).
    pub device_id: u32,
    /// The virtio feature bits that the device offers.
    pub features: u64,
    /// Number of virtqueues.
    pub queues: u16,
    /// Alignment of a virtqueue's parts, in bytes: a power of two from 4 to the page size.
    pub queue_align: u32,
    /// Number of virtqueue groups: 0 with API version 0, at least 1 with version 1.
    pub groups: u32,
    /// Number of address spaces: 0 with API version 0, at least 1 with version 1.
    pub address_spaces: u32,
    /// The configuration space, at most one page long.
    pub space: Vec<u8>,
}

impl DeviceConfig {
    /// Returns the configuration of a version 0 device without virtqueues or configuration space.
    pub fn new(name: &str, device_id: u32) -> Self {
        Self {
            name: name.to_owned(),
            vendor_id: 0,
            device_id,
            features: 0,
            queues: 0,
            queue_align: 4096,
            groups: 0,
            address_spaces: 0,
            space: Vec::new(),
        }
    }

    /// Returns the ABI's structure, and the configuration space that follows it in the ioctl's
    /// argument.
    ///
    /// # Errors
    ///
    /// `InvalidInput` when the name or the configuration space does not fit.
    pub fn to_abi(&self) -> io::Result<(uapi::DevConfig, &[u8])> {
        let config_size = u32::try_from(self.space.len())
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "configuration too long"))?;
        Ok((
            uapi::DevConfig {
                name: name_bytes(&self.name)?,
                vendor_id: self.vendor_id,
                device_id: self.device_id,
                features: self.features,
                vq_num: self.queues.into(),
                vq_align: self.queue_align,
                ngroups: self.groups,
                nas: self.address_spaces,
                reserved: [0; 11],
                config_size,
            },
            &self.space,
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_of_255_bytes_is_the_longest() {
        assert_eq!(name_bytes(&"n".repeat(255)).unwrap()[254..], [b'n', 0]);
        assert!(name_bytes(&"n".repeat(256)).is_err());
    }

    #[test]
    fn a_name_with_nul_is_refused_rather_than_cut() {
        assert!(name_bytes("a\0b").is_err());
    }

    #[test]
    fn the_abi_structure_says_what_the_config_says() {
        let mut config = DeviceConfig::new("disk0", 2);
        config.queues = 3;
        config.space = vec![1, 2, 3];
        let (abi, space) = config.to_abi().unwrap();
        assert_eq!(name_of(&abi), c"disk0");
        assert_eq!((abi.vq_num, abi.config_size), (3, 3));
        assert_eq!(space, [1, 2, 3]);
    }
}
