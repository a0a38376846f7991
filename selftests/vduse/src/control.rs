// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The control device, which creates and destroys devices.

use std::ffi::CStr;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use vduse_uapi as uapi;

use crate::sys;

/// Where the control device is.
pub const CONTROL_PATH: &str = "/dev/vduse/control";

/// An open control device.
///
/// The API version that was chosen belongs to the open file, not to the driver: each `Control`
/// has its own. One that neither asks nor sets it is of version 0.
#[derive(Debug)]
pub struct Control {
    file: File,
}

impl Control {
    /// Opens [`CONTROL_PATH`].
    ///
    /// # Errors
    ///
    /// `ENOENT` where no VDUSE driver is loaded, `EACCES` for who may not.
    pub fn open() -> io::Result<Self> {
        OpenOptions::new()
            .read(true)
            .write(true)
            .open(CONTROL_PATH)
            .map(|file| Self { file })
    }

    /// Reads the API version. Asking is choosing: a file that had no version yet moves to the
    /// newest that the driver knows.
    pub fn api_version(&self) -> io::Result<u64> {
        let mut version = 0;
        sys::exchange(&self.file, uapi::ioctl::GET_API_VERSION, &mut version)?;
        Ok(version)
    }

    /// Opens [`CONTROL_PATH`] and chooses version 1, for devices with virtqueue groups and address
    /// spaces.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open), and `EINVAL` where the driver knows version 0 only.
    pub fn open_v1() -> io::Result<Self> {
        let control = Self::open()?;
        control.set_api_version(uapi::API_VERSION_1)?;
        Ok(control)
    }

    /// Chooses the API version for devices to be created through this file.
    ///
    /// # Errors
    ///
    /// `EINVAL` when the driver does not know the version.
    pub fn set_api_version(&self, version: u64) -> io::Result<()> {
        sys::send(&self.file, uapi::ioctl::SET_API_VERSION, &version)
    }

    /// Creates a device. Its node `/dev/vduse/NAME` is there on return.
    ///
    /// # Errors
    ///
    /// `EEXIST` when there is a device of this name, `EINVAL` when the driver does not allow the
    /// configuration, `EPERM` for a network device without `CAP_NET_ADMIN`.
    pub fn create(&self, config: &DeviceConfig) -> io::Result<()> {
        let (head, tail) = config.to_abi()?;
        self.create_raw(&head, tail)
    }

    /// Creates a device from the ABI's own structure, of which nothing is checked but that `space`
    /// is as long as `config` says.
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
    /// `EINVAL` when there is none of this name, `EBUSY` while it is open or on the vDPA bus.
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

/// Puts a name into the ABI's array, NUL-terminated.
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

/// Reads the name out of the ABI's array.
pub fn name_of(config: &uapi::DevConfig) -> &CStr {
    CStr::from_bytes_until_nul(&config.name).unwrap_or_default()
}

/// What a device is to be.
///
/// [`features`](Self::features) needs `VIRTIO_F_ACCESS_PLATFORM`; [`blk`](crate::blk) fills one in
/// for a disk.
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
    /// How many virtqueues there are.
    pub queues: u16,
    /// Alignment in bytes of a virtqueue's parts: a power of two from 4 to the page size.
    pub queue_align: u32,
    /// How many virtqueue groups there are: 0 in version 0, at least 1 in version 1.
    pub groups: u32,
    /// How many address spaces there are: 0 in version 0, at least 1 in version 1.
    pub address_spaces: u32,
    /// The configuration space, at most a page.
    pub space: Vec<u8>,
}

impl DeviceConfig {
    /// A device of version 0 without queues or configuration space.
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

    /// The ABI's structure and the bytes behind it.
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
