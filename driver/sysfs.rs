// SPDX-License-Identifier: GPL-2.0

//! The attributes of a device in `/sys/class/vduse/NAME`.

use super::{
    device::Dev,
    vq::Vq, //
};
use crate::bindings::{
    cpumask::Mask,
    sysfs::{
        parse_u32,
        Attribute,
        BinaryAttribute,
        Output,
        WithBinary, //
    },
};
use core::fmt::Write;
use kernel::prelude::*;

/// The attributes of a device.
pub(super) type DevAttributes = WithBinary<
    (
        MsgTimeout,
        BounceSize,
        ApiVersion,
        DeviceId,
        NumVqs,
        NumGroups,
        NumAsids,
        DeviceFeatures,
        DriverFeatures,
        Status,
        IsSuspended,
        Broken,
        VduseFeatures,
        Extensions,
    ),
    Config,
    Vqs,
    Groups,
>;

/// The attributes of a virtqueue, in the directory `vqN`.
pub(super) type VqAttributes = (IrqCbAffinity,);

/// Defines read-only attributes, each of which is one line of text.
macro_rules! read_only {
    ($(
        $(#[$doc:meta])*
        $name:ident = $file:literal, |$data:ident: &$type:ty| ($format:literal, $value:expr);
    )*) => {
        $(
            $(#[$doc])*
            pub(super) struct $name;

            #[vtable]
            impl Attribute for $name {
                type Data = $type;

                const NAME: &'static CStr = $file;

                fn show($data: &$type, out: &mut Output<'_>) -> Result {
                    Ok(writeln!(out, $format, $value)?)
                }
            }
        )*
    };
}

read_only! {
    /// `api_version`: the API version that the device was created with.
    ApiVersion = c"api_version", |dev: &Dev| ("{}", dev.negotiated.api_version);
    /// `device_id`: the virtio device ID.
    DeviceId = c"device_id", |dev: &Dev| ("{}", dev.device_id);
    /// `num_vqs`: the number of virtqueues.
    NumVqs = c"num_vqs", |dev: &Dev| ("{}", dev.vqs().len());
    /// `num_groups`: the number of virtqueue groups.
    NumGroups = c"num_groups", |dev: &Dev| ("{}", dev.ngroups);
    /// `num_asids`: the number of address spaces.
    NumAsids = c"num_asids", |dev: &Dev| ("{}", dev.spaces.len());
    /// `device_features`: the virtio features that the daemon gave the device.
    DeviceFeatures = c"device_features", |dev: &Dev| ("{:#018x}", dev.offered(false));
    /// `driver_features`: the virtio features that the driver accepted.
    DriverFeatures = c"driver_features", |dev: &Dev| ("{:#018x}", dev.driver_features());
    /// `status`: the last device status that the daemon has acknowledged. After a reset, the status
    /// is 0, whatever the daemon has answered.
    Status = c"status", |dev: &Dev| ("{:#04x}", dev.status());
    /// `suspended`: 1 if a driver has suspended the device, otherwise 0.
    IsSuspended = c"suspended", |dev: &Dev| ("{}", u8::from(dev.is_suspended()));
    /// `broken`: 1 if the device is broken, otherwise 0. A device becomes broken if the daemon does
    /// not answer a request in time, or refuses a request that cannot be refused. The device ceases
    /// to be broken when a daemon opens it again.
    Broken = c"broken", |dev: &Dev| ("{}", u8::from(dev.messages.is_broken()));
    /// `vduse_features`: the VDUSE features that were negotiated for the device.
    VduseFeatures = c"vduse_features", |dev: &Dev| ("{:#018x}", dev.negotiated.features);
    /// `vduse_extensions`: the extensions that were negotiated for the device.
    Extensions = c"vduse_extensions", |dev: &Dev| ("{:#018x}", dev.negotiated.extensions);
}

/// `config`: the configuration space. Readable by root only, as it may contain data that identifies
/// the device.
pub(super) struct Config;

impl BinaryAttribute for Config {
    type Data = Dev;

    const NAME: &'static CStr = c"config";

    const MODE: u16 = 0o400;

    fn size(dev: &Dev) -> usize {
        dev.config.size()
    }

    fn read(dev: &Dev, offset: usize, buf: &mut [u8]) -> Result<usize> {
        dev.read_config(offset, buf, false);

        Ok(dev.config.size().saturating_sub(offset).min(buf.len()))
    }
}

/// Writes a number to `field` in decimal, right-justified. Leading digits that do not fit are left
/// out.
fn write_decimal(field: &mut [u8], mut value: u32) {
    for (i, at) in field.iter_mut().rev().enumerate() {
        *at = match value {
            0 if i > 0 => b' ',
            // The remainder is below 10.
            _ => b'0' + (value % 10) as u8,
        };
        value /= 10;
    }
}

/// Reads a table from byte `offset` on into `buf`. Each line of the table has `LEN` bytes. `line`
/// fills in the line with a given number, or returns [`None`] if there is no such line. Returns the
/// number of bytes that were read.
fn read_table<const LEN: usize>(
    offset: usize,
    buf: &mut [u8],
    mut line: impl FnMut(usize, &mut [u8; LEN]) -> Option<()>,
) -> usize {
    let (mut number, mut skip) = (offset / LEN, offset % LEN);
    let mut read = 0;

    while let Some(room) = buf.get_mut(read..).filter(|room| !room.is_empty()) {
        let mut bytes = [b' '; LEN];
        if line(number, &mut bytes).is_none() {
            break;
        }
        let part = bytes.get(skip..).unwrap_or_default();
        for (to, from) in room.iter_mut().zip(part) {
            *to = *from;
        }
        read += part.len().min(room.len());
        (number, skip) = (number + 1, 0);
    }

    read
}

/// `vqs`: a table with one line of [`LEN`](Vqs::LEN) bytes for each virtqueue. A line has the
/// virtqueue's index, its size in descriptors (the size that the driver chose or, before that, the
/// largest size), its group, and 1 if the virtqueue is ready, otherwise 0.
///
/// All virtqueues are in one file, because a device may have 65,535 virtqueues. If there were one
/// file for each number of each virtqueue, each of these files would take hundreds of bytes of
/// kernel memory, which is charged to no process.
pub(super) struct Vqs;

impl Vqs {
    /// The length of a line in bytes, with the newline: three numbers of up to five digits, and one
    /// number of one digit.
    const LEN: usize = 20;
}

impl BinaryAttribute for Vqs {
    type Data = Dev;

    const NAME: &'static CStr = c"vqs";

    const MODE: u16 = 0o444;

    fn size(dev: &Dev) -> usize {
        dev.vqs().len() * Self::LEN
    }

    fn read(dev: &Dev, offset: usize, buf: &mut [u8]) -> Result<usize> {
        let line = |index: usize, line: &mut [u8; Self::LEN]| {
            let vq = dev.vqs().get(index)?;
            // A device has fewer than 2^16 virtqueues.
            write_decimal(&mut line[..5], index as u32);
            write_decimal(&mut line[6..11], vq.size().into());
            write_decimal(&mut line[12..17], vq.group());
            write_decimal(&mut line[18..19], vq.is_ready().into());
            line[19] = b'\n';
            Some(())
        };

        Ok(read_table(offset, buf, line))
    }
}

/// `groups`: a table with one line of [`LEN`](Groups::LEN) bytes for each virtqueue group. A line
/// has the group's index and its address space.
pub(super) struct Groups;

impl Groups {
    /// The length of a line in bytes, with the newline. The group's index and the address space
    /// have up to five digits each.
    const LEN: usize = 12;
}

impl BinaryAttribute for Groups {
    type Data = Dev;

    const NAME: &'static CStr = c"groups";

    const MODE: u16 = 0o444;

    fn size(dev: &Dev) -> usize {
        dev.ngroups as usize * Self::LEN
    }

    fn read(dev: &Dev, offset: usize, buf: &mut [u8]) -> Result<usize> {
        let line = |group: usize, line: &mut [u8; Self::LEN]| {
            let asid = dev.group_asids.get(group)?;
            // A device has fewer than 2^16 groups.
            write_decimal(&mut line[..5], group as u32);
            write_decimal(&mut line[6..11], asid);
            line[11] = b'\n';
            Some(())
        };

        Ok(read_table(offset, buf, line))
    }
}

/// `msg_timeout`: the time that the daemon has to answer a request, in seconds; 0 means no limit.
pub(super) struct MsgTimeout;

#[vtable]
impl Attribute for MsgTimeout {
    type Data = Dev;

    const NAME: &'static CStr = c"msg_timeout";

    fn show(dev: &Dev, out: &mut Output<'_>) -> Result {
        Ok(writeln!(out, "{}", dev.messages.timeout())?)
    }

    fn store(dev: &Dev, text: &CStr) -> Result {
        dev.messages.set_timeout(parse_u32(text)?);

        Ok(())
    }
}

/// `bounce_size`: the total size of all bounce areas, in bytes, from 1 MiB to 1 GiB. Writable until
/// the device is put on the bus.
pub(super) struct BounceSize;

#[vtable]
impl Attribute for BounceSize {
    type Data = Dev;

    const NAME: &'static CStr = c"bounce_size";

    fn show(dev: &Dev, out: &mut Output<'_>) -> Result {
        Ok(writeln!(out, "{}", dev.spaces.bounce_size())?)
    }

    fn store(dev: &Dev, text: &CStr) -> Result {
        dev.spaces.set_bounce_size(|| parse_u32(text))
    }
}

/// `irq_cb_affinity`: the CPUs on which a virtqueue's interrupts may be taken, as a bit mask in
/// hexadecimal. A mask without an online CPU cannot be written.
pub(super) struct IrqCbAffinity;

#[vtable]
impl Attribute for IrqCbAffinity {
    type Data = Vq;

    const NAME: &'static CStr = c"irq_cb_affinity";

    fn show(vq: &Vq, out: &mut Output<'_>) -> Result {
        Ok(writeln!(out, "{}", vq.affinity_mask()?)?)
    }

    fn store(vq: &Vq, text: &CStr) -> Result {
        let mask = Mask::parse(text)?;
        if !mask.intersects_online() {
            return Err(EINVAL);
        }

        vq.set_affinity(Some(&mask))
    }
}
