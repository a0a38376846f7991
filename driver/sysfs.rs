// SPDX-License-Identifier: GPL-2.0

//! The attributes of a device in `/sys/class/vduse/NAME`.

use super::{
    dev::Dev,
    vq::Vq, //
};
use crate::bindings::{
    cpumask::Mask,
    sysfs::{
        parse_u32,
        Attribute,
        Output, //
    },
};
use core::fmt::Write;
use kernel::prelude::*;

/// The attributes of a device.
pub(super) type DevAttributes = (MsgTimeout, BounceSize);

/// The attributes of a virtqueue, in the directory `vqN`.
pub(super) type VqAttributes = (IrqCbAffinity,);

/// `msg_timeout`: the time that the daemon has to answer, in seconds; 0 means no limit.
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

/// `bounce_size`: the size of all bounce areas together, in bytes, 1 MiB to 1 GiB. Writable until
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

/// `irq_cb_affinity`: the CPUs that a virtqueue's interrupts may be taken on, as a bit mask in
/// hexadecimal. At least one must be online.
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
