// SPDX-License-Identifier: GPL-2.0

//! Devices with VDUSE API version 1, which have virtqueue groups and address spaces.

use std::io;

use vduse::blk;
use vduse::{Control, Device, DeviceConfig};
use vduse_uapi::VqConfig;

use crate::lab::device::test_device::{unique_name, TestDevice};

/// Returns the configuration of a disk with these numbers of virtqueues, groups and address spaces.
pub fn config(queues: u16, groups: u32, spaces: u32) -> DeviceConfig {
    let mut config = blk::device_config(&unique_name(), 1 << 20, queues);
    config.groups = groups;
    config.address_spaces = spaces;
    config
}

/// Creates a device with VDUSE API version 1.
pub fn create(config: &DeviceConfig) -> io::Result<TestDevice> {
    Control::open_v1()?.create(config)?;
    Ok(TestDevice::adopt(&config.name))
}

/// Sets up a virtqueue with at most 256 descriptors and puts it in a group.
pub fn set_up(device: &Device, index: u32, group: u32) -> io::Result<()> {
    device.vq_setup_raw(&VqConfig {
        index,
        max_size: 256,
        group,
        ..Default::default()
    })
}
