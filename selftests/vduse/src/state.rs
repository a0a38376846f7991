// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The state of a device in use, for a program that takes the device over.
//!
//! `vduse_rs` shows this state in sysfs, below `/sys/class/vduse/NAME`. The in-tree driver does not
//! show it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use vduse_uapi as uapi;

/// The state of a device, as `vduse_rs` shows it in sysfs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceState {
    /// The VDUSE features that were negotiated when the device was created.
    pub features: u64,
    /// The device status (virtio 1.3, section 2.1).
    pub status: u8,
    /// Whether a driver has suspended the device.
    pub suspended: bool,
    /// The address space of each virtqueue group.
    pub asids: Vec<u32>,
}

impl DeviceState {
    /// Reads the state of a device. Returns `None` if the VDUSE driver does not show it in sysfs.
    ///
    /// # Errors
    ///
    /// Returns the error of a file that exists but cannot be read; `InvalidData` when the contents
    /// of a file cannot be parsed.
    pub fn read(name: &str) -> io::Result<Option<Self>> {
        let directory = directory(name);
        let features = match fs::read_to_string(directory.join("vduse_features")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            text => text?,
        };
        let status = fs::read_to_string(directory.join("status"))?;
        let suspended = fs::read_to_string(directory.join("suspended"))?;
        let asids = fs::read_to_string(directory.join("groups"))?;
        Self::parse(&features, &status, &suspended, &asids)
            .map(Some)
            .ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    fn parse(features: &str, status: &str, suspended: &str, asids: &str) -> Option<Self> {
        let hex = |text: &str| u64::from_str_radix(text.trim().strip_prefix("0x")?, 16).ok();
        let asid = |line: &str| line.split_whitespace().nth(1)?.parse().ok();
        Some(Self {
            features: hex(features)?,
            status: hex(status)?.try_into().ok()?,
            suspended: suspended.trim() == "1",
            asids: asids.lines().map(asid).collect::<Option<_>>()?,
        })
    }

    /// Returns whether the kernel sends a `SET_VQ_READY` request to the daemon before a virtqueue
    /// becomes ready.
    pub fn asks_for_ready(&self) -> bool {
        self.features & uapi::F_QUEUE_READY != 0
    }
}

/// Returns the sysfs directory of a device.
fn directory(name: &str) -> PathBuf {
    // The kernel replaces a slash with an exclamation mark.
    Path::new("/sys/class/vduse").join(name.replace('/', "!"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_are_parsed() {
        let state = DeviceState::parse(
            "0x0000000000000003\n",
            "0x0f\n",
            "1\n",
            "    0     0\n    1    12\n",
        );
        assert_eq!(
            state,
            Some(DeviceState {
                features: 3,
                status: 15,
                suspended: true,
                asids: vec![0, 12],
            })
        );
        assert!(state.unwrap().asks_for_ready());
        assert_eq!(DeviceState::parse("3", "0x0", "0", ""), None);
        assert_eq!(DeviceState::parse("0x0", "0x100", "0", ""), None);
        assert_eq!(DeviceState::parse("0x0", "0x0", "0", "0\n"), None);
    }
}
