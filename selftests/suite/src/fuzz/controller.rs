// SPDX-License-Identifier: GPL-2.0

//! An actor that creates and destroys devices through the control device.

use rustix::io::Errno;
use vduse::{blk, Control, DeviceConfig};
use vduse_uapi::{extension, ioctl, DevConfig, F_QUEUE_READY, F_SUSPEND};

use crate::fuzz::actor::Actor;
use crate::fuzz::records::Wait;
use crate::lab::device::virtio::{feature, id};
use crate::lab::kernel::memory::PAGE;
use crate::lab::kernel::raw::{self, Edge};

/// Maximum number of virtqueues of a device. With about 200 virtqueues or more, vhost_vdpa
/// allocates pages of so high an order that the kernel logs a warning.
pub const QUEUES: u64 = 6;
/// Maximum number of virtqueue groups of a device.
pub const GROUPS: u64 = 3;
/// Maximum number of address spaces of a device.
pub const SPACES: u64 = 4;

/// The errors with which creating a device may fail although its configuration is valid.
const CREATE: &[Errno] = &[Errno::EXIST];
/// The errors with which destroying a device may fail.
const DESTROY: &[Errno] = &[Errno::BUSY, Errno::INVAL];

/// Size of a disk in bytes.
pub const DISK: u64 = 1 << 20;

/// Returns random features that a device with the virtio device ID `device` can offer to the
/// kernel's drivers.
fn features(actor: &mut Actor, device: u32) -> u64 {
    let base = feature::VERSION_1 | feature::ACCESS_PLATFORM;
    match device {
        // Offers no packed virtqueues, because the daemons that repair a disk cannot serve them.
        // Offers no zones, because virtio_blk waits for a report of the zones before the disk
        // exists.
        id::BLOCK => {
            let more = actor.dice.next()
                & (blk::FEATURES
                    | feature::BLK_DISCARD
                    | feature::BLK_WRITE_ZEROES
                    | feature::BLK_SECURE_ERASE);
            base | more
        }
        // Does not offer `IN_ORDER`, because `rings::corrupt_used_ring` must not make virtio_net
        // treat a buffer as full. With `IN_ORDER`, virtio_net treats each buffer that the used ring
        // skips as full.
        id::NET => base | feature::NET_MAC | actor.dice.next() & !feature::IN_ORDER,
        _ => base | actor.dice.next(),
    }
}

/// Returns a valid configuration for the device `name`. The name determines the type of the device.
/// The other values are random.
pub fn config(actor: &mut Actor, name: &str) -> DeviceConfig {
    let device = match name.as_bytes()[5] {
        b'd' => id::BLOCK,
        b'n' => id::NET,
        _ => id::FS,
    };
    let queues = match device {
        id::NET => 2 + actor.dice.below(2) as u16,
        _ => 1 + actor.dice.below(QUEUES) as u16,
    };
    let mut config = match device {
        id::BLOCK => blk::device_config(name, DISK, queues),
        _ => DeviceConfig::new(name, device),
    };
    config.queues = queues;
    config.features = features(actor, device);
    config.queue_align = 4 << actor.dice.below(11);
    if device != id::BLOCK {
        config.space = vec![0; actor.dice.pick(&[12, 16, 24, 64, 256, 4096])];
        let (head, _) = config.space.split_at_mut(12);
        head[..6].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
        // The card has one queue pair and an MTU of 1500 bytes.
        head[8] = 1;
        head[10..].copy_from_slice(&1500u16.to_le_bytes());
    }
    if name.ends_with('1') {
        config.groups = 1 + actor.dice.below(GROUPS) as u32;
        config.address_spaces = 1 + actor.dice.below(SPACES) as u32;
    }
    config
}

/// Opens the control device and sets the API version.
fn open(actor: &mut Actor, version: u64) -> Option<Control> {
    let control = actor.call("open control", Wait::Short, &[], Control::open)?;
    actor.call("SET_API_VERSION", Wait::Short, &[], || {
        control.set_api_version(version)
    })?;
    Some(control)
}

/// Negotiates random VDUSE features and extensions, or none.
fn negotiate(actor: &mut Actor, control: &Control) {
    let features = actor.dice.next() & (F_QUEUE_READY | F_SUSPEND);
    // The in-tree driver of 7.2 has no VDUSE features. No in-tree driver has the extensions.
    let errors = &[Errno::INVAL];
    if actor.dice.one_in(2) {
        actor.call("SET_FEATURES of VDUSE", Wait::Short, errors, || {
            control.set_features(features)
        });
        if features & F_SUSPEND != 0 && actor.dice.one_in(2) {
            actor.call("SET_FEATURES of the extension", Wait::Short, errors, || {
                control.set_extensions(extension::F_RESUME)
            });
        }
    }
}

/// Creates the device `name` with random features and a random valid configuration.
pub fn create(actor: &mut Actor, name: &str) -> Option<()> {
    let control = open(actor, u64::from(name.ends_with('1')))?;
    negotiate(actor, &control);
    let config = config(actor, name);
    actor.call("CREATE_DEV", Wait::Short, CREATE, || {
        control.create(&config)
    })
}

/// Tries to create a device with an invalid configuration.
fn create_bad(actor: &mut Actor) {
    let name = actor.device();
    let version = actor.dice.below(2);
    let Some(control) = open(actor, version) else {
        return;
    };
    let mut config = config(actor, name);
    if actor.dice.one_in(3) {
        config.name = actor
            .dice
            .pick(&["", ".", "..", "control", "a/b", "a\nb", "\x7f"])
            .to_owned();
    }
    let Ok((head, space)) = config.to_abi() else {
        return;
    };
    let (mut head, space) = (head, space.to_vec());
    for _ in 0..1 + actor.dice.below(3) {
        match actor.dice.below(9) {
            0 => head.vq_num = actor.dice.pick(&[0, 0x1_0000, u32::MAX]),
            1 => head.vq_align = actor.dice.pick(&[0, 1, 3, 12, 8192, 1 << 31, u32::MAX]),
            2 => head.ngroups = actor.dice.pick(&[0, 0x1_0000, u32::MAX]),
            3 => head.nas = actor.dice.pick(&[0, 0x1_0000, u32::MAX]),
            4 => head.reserved[actor.dice.below(11) as usize] = 1,
            5 => head.device_id = actor.dice.pick(&[0, 3, 4, 18, u32::MAX]),
            6 => head.features = actor.dice.next() & !feature::ACCESS_PLATFORM,
            7 => head.name = [b'x'; 256],
            _ => head.name = [0xff; 256],
        }
    }
    // After the changes above, the configuration may still be valid for this API version. A
    // reserved word that is not 0 is never valid.
    head.reserved[10] = 0xffff_ffff;
    actor.call("CREATE_DEV (bad)", Wait::Short, &[Errno::INVAL], || {
        control.create_raw(&head, &space)
    });
}

/// Calls ioctls of the control device whose argument is unmapped or ends in unmapped memory, and
/// ioctls with random numbers.
fn torn(actor: &mut Actor) {
    let Some(control) = open(actor, 1) else {
        return;
    };
    let number = actor.dice.pick(&[
        ioctl::CREATE_DEV,
        ioctl::DESTROY_DEV,
        ioctl::SET_API_VERSION,
        ioctl::GET_API_VERSION,
        ioctl::GET_FEATURES,
        ioctl::SET_FEATURES,
    ]);
    let fault = &[Errno::FAULT];
    actor.call("control ioctl at nothing", Wait::Short, fault, || {
        raw::call_at_nothing(&control, number)
    });
    let name = actor.device();
    let config = config(actor, name);
    let Ok((head, _)) = config.to_abi() else {
        return;
    };
    // Keeps a random number of bytes from the start of the structure and of the configuration space
    // after it.
    let mut bytes = bytes_of(&head);
    bytes.resize(bytes.len() + config.space.len(), 0);
    let most = bytes.len().min(PAGE as usize) as u64;
    bytes.truncate(actor.dice.below(most) as usize);
    let errors = &[Errno::FAULT, Errno::INVAL];
    actor.call("CREATE_DEV (torn)", Wait::Short, errors, || {
        Edge::new().call(&control, ioctl::CREATE_DEV, &bytes)
    });
    let other = actor.dice.next() as u32;
    let kind = (other >> 8) & 0xff;
    if kind != u32::from(b'T') && kind != 0x81 {
        actor.attempt("control ioctl (unknown)", Wait::Short, || {
            raw::call(&control, other & 0xffff, &mut [0; 4096])
        });
    }
}

/// Returns the bytes of a configuration, as the ABI defines them.
fn bytes_of(config: &DevConfig) -> Vec<u8> {
    let words = [config.vendor_id, config.device_id];
    let mut bytes = raw::Bytes(config.name.to_vec());
    for word in words {
        bytes = bytes.u32(word);
    }
    bytes = bytes.u64(config.features);
    for word in [config.vq_num, config.vq_align, config.ngroups, config.nas] {
        bytes = bytes.u32(word);
    }
    for word in config.reserved {
        bytes = bytes.u32(word);
    }
    bytes.u32(config.config_size).0
}

/// Plays one life of the controller.
pub fn live(actor: &mut Actor) {
    actor.pause(20);
    let name = actor.device();
    match actor.dice.below(16) {
        0..=5 => {
            create(actor, name);
        }
        6..=8 => {
            if let Some(control) = open(actor, 0) {
                actor.call("DESTROY_DEV", Wait::Short, DESTROY, || {
                    control.destroy(name)
                });
            }
        }
        9..=11 => create_bad(actor),
        12..=13 => torn(actor),
        14 => {
            let bad = &[Errno::INVAL];
            if let Some(control) = open(actor, 0) {
                let version = 2 + actor.dice.below(u64::MAX - 2);
                actor.call("SET_API_VERSION (bad)", Wait::Short, bad, || {
                    control.set_api_version(version)
                });
                actor.call("GET_API_VERSION", Wait::Short, &[], || {
                    control.api_version()
                });
            }
        }
        // Creates and destroys a device with many virtqueues. No actor puts this device on the bus.
        _ => {
            let mut config = config(actor, "fuzz-fs1");
            config.name = "fuzz-many".to_owned();
            config.queues = 1 + actor.dice.below(150) as u16;
            config.groups = 1 + actor.dice.below(0xffff) as u32;
            config.address_spaces = 1 + actor.dice.below(0xffff) as u32;
            if let Some(control) = open(actor, 1) {
                actor.call("CREATE_DEV (many)", Wait::Short, CREATE, || {
                    control.create(&config)
                });
                actor.call("DESTROY_DEV", Wait::Short, DESTROY, || {
                    control.destroy(&config.name)
                });
            }
        }
    }
}
