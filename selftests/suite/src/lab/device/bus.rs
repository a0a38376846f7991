// SPDX-License-Identifier: GPL-2.0

//! The devices on the vDPA bus, and the drivers to which they are bound.
//!
//! The runner disables automatic binding, so that each test binds its device explicitly.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use vdpa_netlink::Vdpa;

use crate::lab::assert::timing::soon;
use crate::lab::device::virtio::status::{FAILED, UP_TO_FEATURES_OK};
use crate::lab::kernel::sysfs;

const BUS: &str = "/sys/bus/vdpa";

/// A driver on the vDPA bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    /// virtio-vdpa, which creates a virtio device for the kernel's own drivers.
    Virtio,
    /// vhost-vdpa, which creates a character device for virtual machines.
    Vhost,
}

impl Driver {
    fn directory(self) -> PathBuf {
        Path::new(BUS).join("drivers").join(match self {
            Self::Virtio => "virtio_vdpa",
            Self::Vhost => "vhost_vdpa",
        })
    }
}

/// Sets whether the kernel automatically binds a new device on the bus to a driver.
pub fn set_autoprobe(on: bool) -> Result<(), String> {
    let path = Path::new(BUS).join("drivers_autoprobe");
    sysfs::write(&path, if on { "1" } else { "0" })
        .map_err(|error| format!("{}: {error}", path.display()))
}

/// Returns the sysfs directory of a device on the bus.
pub fn directory(name: &str) -> PathBuf {
    Path::new(BUS).join("devices").join(name)
}

/// Opens a netlink socket to the vDPA core.
#[track_caller]
pub fn vdpa() -> Vdpa {
    Vdpa::open().expect("the vDPA netlink")
}

/// Binds a device to a driver. Returns when the kernel has done so.
pub fn bind(name: &str, driver: Driver) -> io::Result<()> {
    sysfs::write(&driver.directory().join("bind"), name)
}

/// Unbinds a device from its driver.
pub fn unbind(name: &str, driver: Driver) -> io::Result<()> {
    sysfs::write(&driver.directory().join("unbind"), name)
}

/// A device on the bus, removed from the bus on drop.
#[derive(Debug)]
pub struct OnBus {
    name: String,
    there: bool,
}

impl OnBus {
    /// Puts a VDUSE device on the bus.
    pub fn add(name: &str) -> io::Result<Self> {
        Self::add_by("vduse", name)
    }

    /// Puts a device on the bus through the management device called `management_device`.
    pub fn add_by(management_device: &str, name: &str) -> io::Result<Self> {
        vdpa().add(name, management_device)?;
        Ok(Self {
            name: name.to_owned(),
            there: true,
        })
    }

    /// Waits until another process has created the device and set it up, then puts the device on
    /// the bus.
    #[track_caller]
    pub fn add_soon(name: &str) -> Self {
        let mut added = None;
        soon("the device can be added", || {
            added = Self::add(name).ok();
            added.is_some()
        });
        added.expect("a device on the bus")
    }

    /// Binds the device to a driver. Returns when the kernel has done so.
    pub fn bind(&self, driver: Driver) -> io::Result<()> {
        bind(&self.name, driver)
    }

    /// Unbinds the device from its driver.
    pub fn unbind(&self, driver: Driver) -> io::Result<()> {
        unbind(&self.name, driver)
    }

    /// Removes the device from the bus.
    pub fn delete(mut self) -> io::Result<()> {
        self.there = false;
        vdpa().delete(&self.name)
    }

    /// Returns the device's name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for OnBus {
    fn drop(&mut self) {
        if self.there {
            // The daemon may have ended. Requests to it should then time out after one second.
            let _ = sysfs::write(&sysfs::attribute(&self.name, "msg_timeout"), "1");
            let _ = vdpa().delete(&self.name);
        }
    }
}

/// Returns the names in `directory` that start with `prefix`.
pub fn children(directory: &Path, prefix: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.starts_with(prefix))
        .collect()
}

/// Returns the directory of the virtio device that virtio-vdpa has created for a vDPA device.
pub fn virtio_directory(name: &str) -> Option<PathBuf> {
    let directory = directory(name);
    let child = children(&directory, "virtio").pop()?;
    Some(directory.join(child))
}

/// Returns the device status of a vDPA device's virtio device, as the virtio core reports it in
/// sysfs.
pub fn virtio_status(name: &str) -> Option<u8> {
    let text = sysfs::read(&virtio_directory(name)?.join("status")).ok()?;
    u8::from_str_radix(text.trim_start_matches("0x"), 16).ok()
}

/// Waits until a virtio driver of the kernel has negotiated features with a device and has then set
/// `FAILED`.
#[track_caller]
pub fn driver_gives_up(name: &str) {
    soon("the driver gives up", || {
        virtio_status(name) == Some(UP_TO_FEATURES_OK | FAILED)
    });
}

/// Returns the name of a vDPA device's block device, if the kernel has created one.
pub fn disk_name(name: &str) -> Option<String> {
    children(&virtio_directory(name)?.join("block"), "vd").pop()
}

/// Returns the name of a vDPA device's network interface, if the kernel has created one.
pub fn interface(name: &str) -> Option<String> {
    children(&virtio_directory(name)?.join("net"), "").pop()
}

/// Returns the path of the character device that vhost-vdpa has created for a vDPA device.
pub fn vhost_path(name: &str) -> Option<PathBuf> {
    let child = children(&directory(name), "vhost-vdpa-").pop()?;
    Some(Path::new("/dev").join(child))
}
