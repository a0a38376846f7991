// SPDX-License-Identifier: GPL-2.0

//! The vDPA bus: devices on it, and the drivers that they are bound to.
//!
//! The runner switches automatic binding off, so that a test says which driver is to have its
//! device and when.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use vdpa_netlink::Vdpa;

use crate::lab::expect::soon;
use crate::lab::sysfs;

const BUS: &str = "/sys/bus/vdpa";

/// A driver on the bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    /// Makes a virtio device of the vDPA device, for the kernel's own drivers.
    Virtio,
    /// Makes a character device of it, for virtual machines.
    Vhost,
}

impl Driver {
    fn folder(self) -> PathBuf {
        Path::new(BUS).join("drivers").join(match self {
            Self::Virtio => "virtio_vdpa",
            Self::Vhost => "vhost_vdpa",
        })
    }
}

/// Whether a device that comes to the bus is bound by itself.
pub fn set_autoprobe(on: bool) -> Result<(), String> {
    let path = Path::new(BUS).join("drivers_autoprobe");
    sysfs::write(&path, if on { "1" } else { "0" })
        .map_err(|error| format!("{}: {error}", path.display()))
}

/// The folder of a device on the bus.
pub fn folder(name: &str) -> PathBuf {
    Path::new(BUS).join("devices").join(name)
}

/// A socket to the vDPA core.
#[track_caller]
pub fn vdpa() -> Vdpa {
    Vdpa::open().expect("the vDPA netlink")
}

/// Binds a device to a driver, and waits for it.
pub fn bind(name: &str, driver: Driver) -> io::Result<()> {
    sysfs::write(&driver.folder().join("bind"), name)
}

/// Takes a device away from its driver.
pub fn unbind(name: &str, driver: Driver) -> io::Result<()> {
    sysfs::write(&driver.folder().join("unbind"), name)
}

/// A device on the bus, taken off it on drop.
#[derive(Debug)]
pub struct OnBus {
    name: String,
    there: bool,
}

impl OnBus {
    /// Puts a device on the bus.
    pub fn add(name: &str) -> io::Result<Self> {
        Self::add_by("vduse", name)
    }

    /// Has a management device put a device on the bus.
    pub fn add_by(management_device: &str, name: &str) -> io::Result<Self> {
        vdpa().add(name, management_device)?;
        Ok(Self {
            name: name.to_owned(),
            there: true,
        })
    }

    /// Puts a device on the bus that another process is about to create and to set up.
    #[track_caller]
    pub fn add_soon(name: &str) -> Self {
        let mut added = None;
        soon("the device can be added", || {
            added = Self::add(name).ok();
            added.is_some()
        });
        added.expect("a device on the bus")
    }

    /// Binds the device to a driver, and waits for it.
    pub fn bind(&self, driver: Driver) -> io::Result<()> {
        bind(&self.name, driver)
    }

    /// Takes the device away from its driver.
    pub fn unbind(&self, driver: Driver) -> io::Result<()> {
        unbind(&self.name, driver)
    }

    /// Takes the device off the bus.
    pub fn delete(mut self) -> io::Result<()> {
        self.there = false;
        vdpa().delete(&self.name)
    }

    /// The device's name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for OnBus {
    fn drop(&mut self) {
        if self.there {
            // Whoever answers may be gone.
            let _ = sysfs::write(&sysfs::attribute(&self.name, "msg_timeout"), "1");
            let _ = vdpa().delete(&self.name);
        }
    }
}

/// The names in a folder that start so.
pub fn children(folder: &Path, prefix: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.starts_with(prefix))
        .collect()
}

/// The virtio device of a vDPA device that is bound to virtio-vdpa.
pub fn virtio_folder(name: &str) -> Option<PathBuf> {
    let folder = folder(name);
    let child = children(&folder, "virtio").pop()?;
    Some(folder.join(child))
}

/// Waits for the kernel's driver to have negotiated features with a device, and failed.
#[track_caller]
pub fn driver_gives_up(name: &str) {
    let status = virtio_folder(name).expect("a virtio device").join("status");
    soon("the driver gives up", || {
        sysfs::read(&status).is_ok_and(|status| status == "0x0000008b")
    });
}

/// The block device of a vDPA device, if the kernel made one.
pub fn disk_name(name: &str) -> Option<String> {
    children(&virtio_folder(name)?.join("block"), "vd").pop()
}

/// The network interface of a vDPA device, if the kernel made one.
pub fn interface(name: &str) -> Option<String> {
    children(&virtio_folder(name)?.join("net"), "").pop()
}

/// The character device of a vDPA device that is bound to vhost-vdpa.
pub fn vhost_path(name: &str) -> Option<PathBuf> {
    let child = children(&folder(name), "vhost-vdpa-").pop()?;
    Some(Path::new("/dev").join(child))
}
