// SPDX-License-Identifier: GPL-2.0

//! The rules for the configuration of a device and of its virtqueues, which a daemon chooses.
//!
//! This module uses no kernel facilities, so that `selftests/driver-logic` can compile and test it
//! on the host as well.

use super::virtio::{
    device_id,
    feature, //
};
use crate::uapi::{
    DevConfig,
    VqConfig,
    API_VERSION_1, //
};
use core::ffi::CStr;

/// Ids that a device may have. The kernel drivers of these device types cope with anything that a
/// daemon may do.
pub(crate) const DEVICE_IDS: &[u32] = &[device_id::NET, device_id::BLOCK, device_id::FS];

/// Maximum number of virtqueues of a device.
pub(crate) const MAX_VQS: u32 = 0xffff;
/// Maximum number of virtqueue groups of a device.
pub(crate) const MAX_GROUPS: u32 = 0xffff;
/// Maximum number of address spaces of a device.
pub(crate) const MAX_SPACES: u32 = 0xffff;

/// Minimum of [`DevConfig::vq_align`], in bytes: the alignment that the used ring of a split
/// virtqueue needs (virtio 1.3, section 2.7).
const MIN_VQ_ALIGN: u32 = 4;

/// Names that a device cannot have. `control` is another node in `/dev/vduse`. The other names are
/// entries of the sysfs directory of a VDUSE device. In the same directory, the kernel creates the
/// directory of the vDPA device, whose name is that of the VDUSE device.
const TAKEN: &[&[u8]] = &[
    b"control",
    b"api_version",
    b"bounce_size",
    b"broken",
    b"config",
    b"dev",
    b"device_features",
    b"device_id",
    b"driver_features",
    b"groups",
    b"msg_timeout",
    b"num_asids",
    b"num_groups",
    b"num_vqs",
    b"power",
    b"status",
    b"subsystem",
    b"suspended",
    b"uevent",
    b"vduse_extensions",
    b"vduse_features",
    b"vqs",
];

/// Returns `name` up to its NUL, or [`None`] if no device can have that name.
///
/// The name must have neither `/` nor control characters: it becomes a file name in sysfs and in
/// `/dev`, and part of uevents, which are lines of text.
pub(crate) fn name(name: &[u8]) -> Option<&CStr> {
    let name = CStr::from_bytes_until_nul(name).ok()?;
    let bytes = name.to_bytes();

    let reserved = matches!(bytes, b"" | b"." | b"..") || TAKEN.contains(&bytes);
    let unfit = bytes
        .iter()
        .any(|&byte| byte == b'/' || byte.is_ascii_control());

    (!reserved && !unfit).then_some(name)
}

/// Returns whether `name` is the name of a virtqueue's sysfs directory: `vqN` with `N` below
/// `vq_num`.
fn is_of_vq(name: &CStr, vq_num: u32) -> bool {
    let digits = name.to_str().ok().and_then(|name| name.strip_prefix("vq"));

    digits
        .filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))
        .filter(|&digits| digits == "0" || !digits.starts_with('0'))
        .and_then(|digits| digits.parse().ok())
        .is_some_and(|index: u32| index < vq_num)
}

/// Returns whether a device of the type `device_id` may offer `features`.
fn features_are_valid(device_id: u32, features: u64) -> bool {
    let has = |bit| features & bit != 0;

    // The daemon can access only memory that the driver maps, and the driver maps memory only if it
    // has negotiated `ACCESS_PLATFORM`.
    has(feature::ACCESS_PLATFORM)
        && match device_id {
            // With `BLK_CONFIG_WCE`, the driver writes to the configuration space. VDUSE does not
            // support such writes.
            device_id::BLOCK => !has(feature::BLK_CONFIG_WCE),
            device_id::NET => has(feature::VERSION_1),
            _ => true,
        }
}

/// Returns whether a client that has negotiated `api_version` may create a device with `config`.
/// `page_size` is in bytes.
///
/// The device's name must be [valid](name), and must differ from the names of the virtqueues' sysfs
/// directories.
pub(crate) fn device_is_valid(config: &DevConfig, api_version: u64, page_size: u32) -> bool {
    let counts_are_valid = if api_version < API_VERSION_1 {
        config.ngroups == 0 && config.nas == 0
    } else {
        (1..=MAX_GROUPS).contains(&config.ngroups) && (1..=MAX_SPACES).contains(&config.nas)
    };

    counts_are_valid
        && name(&config.name).is_some_and(|name| !is_of_vq(name, config.vq_num))
        && config.reserved.iter().all(|&word| word == 0)
        && config.vq_align.is_power_of_two()
        && (MIN_VQ_ALIGN..=page_size).contains(&config.vq_align)
        && config.config_size <= page_size
        // The in-tree driver accepts a device without virtqueues, but such a device is of no use.
        && (1..=MAX_VQS).contains(&config.vq_num)
        && DEVICE_IDS.contains(&config.device_id)
        && features_are_valid(config.device_id, config.features)
}

/// Returns whether `config` may set up a virtqueue of a device with `ngroups` virtqueue groups.
pub(crate) fn vq_is_valid(config: &VqConfig, ngroups: u32) -> bool {
    config.group < ngroups
        && config.reserved1 == 0
        && config.reserved2.iter().all(|&word| word == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE_SIZE: u32 = 4096;

    fn named(name: &[u8]) -> [u8; 256] {
        let mut bytes = [0; 256];
        bytes[..name.len()].copy_from_slice(name);
        bytes
    }

    fn valid() -> DevConfig {
        DevConfig {
            name: named(b"disk"),
            vendor_id: 0,
            device_id: device_id::BLOCK,
            features: feature::VERSION_1 | feature::ACCESS_PLATFORM,
            vq_num: 1,
            vq_align: 4096,
            ngroups: 0,
            nas: 0,
            reserved: [0; 11],
            config_size: 60,
        }
    }

    #[track_caller]
    fn check(api_version: u64, expected: bool, change: impl FnOnce(&mut DevConfig)) {
        let mut config = valid();
        change(&mut config);
        assert_eq!(device_is_valid(&config, api_version, PAGE_SIZE), expected);
    }

    #[test]
    fn version_0_has_no_counts() {
        check(0, true, |_| ());
        check(0, false, |c| c.ngroups = 1);
        check(0, false, |c| c.nas = 1);
    }

    #[test]
    fn version_1_has_both_counts() {
        let counts = |ngroups, nas| {
            move |c: &mut DevConfig| {
                c.ngroups = ngroups;
                c.nas = nas;
            }
        };

        check(1, true, counts(1, 1));
        check(1, true, counts(0xffff, 0xffff));
        check(1, false, counts(0, 1));
        check(1, false, counts(1, 0));
        check(1, false, counts(0x1_0000, 1));
        check(1, false, counts(1, 0x1_0000));
    }

    #[test]
    fn reserved_words_are_zero() {
        for i in 0..11 {
            check(0, false, |c| c.reserved[i] = 1 << i);
        }
    }

    #[test]
    fn alignment_is_a_power_of_two_within_a_page() {
        for (align, expected) in [
            (0, false),
            (1, false),
            (2, false),
            (3, false),
            (4, true),
            (12, false),
            (4096, true),
            (8192, false),
            (1 << 31, false),
        ] {
            check(0, expected, |c| c.vq_align = align);
        }
    }

    #[test]
    fn sizes_are_limited() {
        check(0, true, |c| c.config_size = 0);
        check(0, true, |c| c.config_size = PAGE_SIZE);
        check(0, false, |c| c.config_size = PAGE_SIZE + 1);
        check(0, true, |c| c.vq_num = 0xffff);
        check(0, false, |c| c.vq_num = 0x1_0000);
        check(0, false, |c| c.vq_num = 0);
    }

    #[test]
    fn features_fit_the_device() {
        check(0, false, |c| c.features &= !feature::ACCESS_PLATFORM);
        check(0, true, |c| c.features &= !feature::VERSION_1);
        check(0, false, |c| c.features |= feature::BLK_CONFIG_WCE);

        check(0, true, |c| c.device_id = device_id::NET);
        check(0, false, |c| {
            c.device_id = device_id::NET;
            c.features &= !feature::VERSION_1;
        });
        check(0, true, |c| {
            c.device_id = device_id::NET;
            c.features |= feature::NET_CONTROL;
        });
        check(0, true, |c| {
            c.device_id = device_id::FS;
            c.features |= feature::BLK_CONFIG_WCE;
        });
        check(0, false, |c| c.device_id = 3);
        check(0, false, |c| c.device_id = 0);
    }

    #[test]
    fn names_are_those_of_files() {
        for bad in [
            &b"\0"[..],
            b".\0",
            b"..\0",
            b"control\0",
            b"power\0",
            b"msg_timeout\0",
            b"a/b\0",
            b"/\0",
            b"a\nb\0",
            b"\x7f\0",
            b"unterminated",
            b"",
        ] {
            assert_eq!(name(bad), None, "{bad:?}");
        }

        assert_eq!(name(b"disk0\0rest"), Some(c"disk0"));
        assert_eq!(name(b"a!b\0"), Some(c"a!b"));
        assert_eq!(name(b"...\0"), Some(c"..."));
        assert_eq!(name(b"control0\0"), Some(c"control0"));
        assert_eq!(name(b"b\xfcro\0"), Some(c"b\xfcro"));
    }

    #[test]
    fn names_are_not_those_of_virtqueues() {
        for (name, expected) in [
            ("vq0", false),
            ("vq9", false),
            ("vq10", true),
            ("vq00", true),
            ("vq", true),
            ("vq+1", true),
            ("vq99999999999", true),
            ("", false),
        ] {
            check(0, expected, |config| {
                config.name = named(name.as_bytes());
                config.vq_num = 10;
            });
        }
    }

    #[test]
    fn a_virtqueue_is_in_a_group_of_its_device() {
        let config = VqConfig {
            index: 0,
            max_size: 256,
            reserved1: 0,
            group: 1,
            reserved2: [0; 10],
        };

        assert!(vq_is_valid(&config, 2));
        assert!(!vq_is_valid(&config, 1));
    }

    #[test]
    fn reserved_fields_of_a_virtqueue_are_zero() {
        let mut config = VqConfig {
            index: 0,
            max_size: 256,
            reserved1: 1,
            group: 0,
            reserved2: [0; 10],
        };

        assert!(!vq_is_valid(&config, 1));
        config.reserved1 = 0;
        assert!(vq_is_valid(&config, 1));
        config.reserved2[9] = 1;
        assert!(!vq_is_valid(&config, 1));
    }
}
