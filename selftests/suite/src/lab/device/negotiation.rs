// SPDX-License-Identifier: GPL-2.0

//! Devices whose creator negotiates an API version, VDUSE features and extensions.

use std::io;

use vduse::{Control, DeviceConfig};

use crate::lab::device::test_device::TestDevice;

/// The values that the creator of a device negotiates.
#[derive(Clone, Copy, Debug, Default)]
pub struct Negotiation {
    /// The API version.
    pub version: u64,
    /// The VDUSE features.
    pub features: u64,
    /// The extensions of `vduse_rs`.
    pub extensions: u64,
}

/// Negotiates the values in `negotiation`, then creates a device. If `features` or `extensions` is
/// 0, skips that negotiation, because a VDUSE driver that does not support it returns an error.
pub fn create(config: &DeviceConfig, negotiation: Negotiation) -> io::Result<TestDevice> {
    let control = Control::open()?;
    control.set_api_version(negotiation.version)?;
    if negotiation.features != 0 {
        control.set_features(negotiation.features)?;
    }
    if negotiation.extensions != 0 {
        control.set_extensions(negotiation.extensions)?;
    }
    control.create(config)?;
    Ok(TestDevice::adopt(&config.name))
}
