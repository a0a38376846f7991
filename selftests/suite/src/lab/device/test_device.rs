// SPDX-License-Identifier: GPL-2.0

//! Devices created for a test.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::io::Errno;
use vduse::{blk, Control, Device, DeviceConfig};

use crate::lab::assert::limit::Limit;
use crate::lab::device::virtio::{feature, id};
use crate::lab::kernel::sysfs;

/// A device that is destroyed on drop.
///
/// Declare a `TestDevice` before the values that use the device, because Rust drops local variables
/// in the reverse order of their declaration.
#[derive(Debug)]
pub struct TestDevice {
    name: String,
}

/// Returns a device name that is unique on this machine: it contains the process ID and a counter.
pub fn unique_name() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("t{}-{number}", std::process::id())
}

/// Returns the configuration of a disk of 1 MiB with one virtqueue.
pub fn disk_config() -> DeviceConfig {
    blk::device_config(&unique_name(), 1 << 20, 1)
}

/// Returns the configuration of a network card with one pair of virtqueues.
pub fn net_config() -> DeviceConfig {
    let mut config = DeviceConfig::new(&unique_name(), id::NET);
    config.features = feature::ACCESS_PLATFORM | feature::VERSION_1 | feature::NET_MAC;
    config.queues = 2;
    config.space = vec![0; 16];
    config.space[..6].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
    config
}

impl TestDevice {
    /// Creates a device with VDUSE API version 0.
    pub fn try_new(config: &DeviceConfig) -> io::Result<Self> {
        Control::open()?.create(config)?;
        Ok(Self::adopt(&config.name))
    }

    /// Creates a device with VDUSE API version 0. Panics on an error.
    #[track_caller]
    pub fn new(config: &DeviceConfig) -> Self {
        Self::try_new(config).expect("creating a device")
    }

    /// Creates a device with VDUSE API version 1, one group and `spaces` address spaces. If
    /// `spaces` is 0, creates a device with API version 0 instead.
    #[track_caller]
    pub fn with_spaces(mut config: DeviceConfig, spaces: u32) -> Self {
        if spaces == 0 {
            return Self::new(&config);
        }
        config.groups = 1;
        config.address_spaces = spaces;
        let control = Control::open_v1().expect("opening the control device");
        control.create(&config).expect("creating a device");
        Self::adopt(&config.name)
    }

    /// Creates a disk of 1 MiB with one virtqueue, which is not set up.
    #[track_caller]
    pub fn disk() -> Self {
        Self::new(&disk_config())
    }

    /// Takes ownership of an existing device, which is then destroyed on drop.
    pub fn adopt(name: &str) -> Self {
        Self {
            name: name.to_owned(),
        }
    }

    /// Returns the device's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Sets the total size of the device's bounce areas, in bytes. The device must not be on the
    /// bus yet.
    #[track_caller]
    pub fn set_bounce_size(&self, bytes: u64) {
        let path = sysfs::attribute(&self.name, "bounce_size");
        sysfs::write(&path, &bytes.to_string()).expect("setting bounce_size");
    }

    /// Opens the device.
    #[track_caller]
    pub fn open(&self) -> Device {
        Device::open(&self.name).expect("opening a device")
    }

    /// Opens the device in non-blocking mode.
    #[track_caller]
    pub fn open_nonblocking(&self) -> Device {
        Device::open_nonblocking(&self.name).expect("opening a device")
    }

    /// Opens the device and sets up its first `queues` virtqueues.
    #[track_caller]
    pub fn open_ready(&self, queues: u16) -> Device {
        let device = self.open_nonblocking();
        for index in 0..queues {
            device.vq_setup(index, 256).expect("setting a queue up");
        }
        device
    }

    /// Destroys the device now and returns the result.
    pub fn destroy(self) -> io::Result<()> {
        let result = Control::open()?.destroy(&self.name);
        if result.is_ok() {
            std::mem::forget(self);
        }
        result
    }
}

impl Drop for TestDevice {
    fn drop(&mut self) {
        let Ok(control) = Control::open() else {
            return;
        };
        // Another process may have closed the device only a moment ago. Until the kernel has
        // released the file, destroying the device fails with `EBUSY`.
        let mut limit = Limit::new(Duration::from_secs(2));
        while let Err(error) = control.destroy(&self.name) {
            if Errno::from_io_error(&error) != Some(Errno::BUSY) || limit.is_over() {
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
