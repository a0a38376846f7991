// SPDX-License-Identifier: GPL-2.0

//! Calls whose buffer is too short, unmapped, or a [`LatePage`]. A `LatePage` is memory that is
//! missing when the kernel begins to access it, and appears later or never.

use std::fs::File;

use rustix::io::Errno;
use vduse::Device;
use vduse_uapi::{ioctl, DevRequest, DevResponse};

use crate::fuzz::actor::Actor;
use crate::fuzz::daemon::arguments::manner;
use crate::fuzz::daemon::errors::BROKEN;
use crate::fuzz::records::Wait;
use crate::lab::kernel::late_page::LatePage;
use crate::lab::kernel::memory::PAGE;
use crate::lab::kernel::raw::{self, Edge};

const REQUEST: usize = size_of::<DevRequest>();

const RESPONSE: usize = size_of::<DevResponse>();

/// Reads a request into a buffer that is too short, partly unmapped, or a [`LatePage`].
pub fn torn_read(actor: &mut Actor, device: &Device) {
    let errors = &[BROKEN, Errno::AGAIN, Errno::FAULT];
    match actor.dice.below(3) {
        0 => {
            let mut buffer = vec![0; actor.dice.below(REQUEST as u64) as usize];
            actor.call("read (short)", Wait::Short, &[Errno::INVAL], || {
                Ok(rustix::io::read(device, &mut buffer)?)
            });
        }
        1 => {
            let len = actor.dice.below(REQUEST as u64) as usize;
            actor.call("read (torn)", Wait::Short, errors, || {
                Edge::new().read(device, len, REQUEST)
            });
        }
        _ => {
            let manner = manner(actor);
            if let Some(page) = LatePage::get() {
                actor.call("read (late)", Wait::Short, errors, || {
                    page.read(device, REQUEST, manner)
                });
            }
        }
    }
}

/// Writes an answer from a buffer that is too short, partly unmapped, or a [`LatePage`].
pub fn torn_write(actor: &mut Actor, device: &Device) {
    let mut bytes = [0; 256];
    bytes[0] = actor.dice.below(32) as u8;
    let errors = &[Errno::NOENT, Errno::INVAL];
    let len = actor.dice.below(bytes.len() as u64) as usize;
    match actor.dice.below(3) {
        0 => {
            actor.call("write (any length)", Wait::Short, errors, || {
                Ok(rustix::io::write(device, &bytes[..len])?)
            });
        }
        1 => {
            let len = len % RESPONSE;
            actor.call("write (torn)", Wait::Short, errors, || {
                Edge::new().write(device, len, RESPONSE)
            });
        }
        _ => {
            let manner = manner(actor);
            if let Some(page) = LatePage::get() {
                actor.call("write (late)", Wait::Short, errors, || {
                    page.write(device, &bytes[..RESPONSE], manner)
                });
            }
        }
    }
}

/// Those ioctls of a device's file that take an argument.
const IOCTLS: &[u32] = &[
    ioctl::IOTLB_GET_FD,
    ioctl::DEV_GET_FEATURES,
    ioctl::DEV_SET_CONFIG,
    ioctl::VQ_SETUP,
    ioctl::VQ_GET_INFO,
    ioctl::VQ_SETUP_KICKFD,
    ioctl::VQ_INJECT_IRQ,
    ioctl::IOTLB_REG_UMEM,
    ioctl::IOTLB_DEREG_UMEM,
    ioctl::IOTLB_GET_INFO,
    ioctl::IOTLB_GET_FD2,
];

/// Returns the size of an ioctl's argument in bytes.
fn size(number: u32) -> usize {
    (number >> 16) as usize & 0x3fff
}

/// Calls an ioctl in one of four ways, chosen at random: with an unmapped argument, with a partly
/// unmapped argument, with random bytes in a [`LatePage`] as the argument, or with an unknown ioctl
/// number.
pub fn torn_ioctl(actor: &mut Actor, device: &Device) {
    let number = actor.dice.pick(IOCTLS);
    let fault = &[BROKEN, Errno::FAULT, Errno::NOTTY];
    match actor.dice.below(4) {
        0 => {
            actor.call("ioctl at nothing", Wait::Short, fault, || {
                raw::call_at_nothing(device, number)
            });
        }
        1 => {
            let bytes = vec![0; actor.dice.below(size(number) as u64) as usize];
            actor.call("ioctl (torn)", Wait::Short, fault, || {
                Edge::new().call(device, number, &bytes)
            });
        }
        2 => {
            let mut bytes = [0; 256];
            actor.dice.fill(&mut bytes);
            if actor.dice.one_in(2) {
                bytes[1..].fill(0);
            }
            let manner = manner(actor);
            if let Some(page) = LatePage::get() {
                let late = || {
                    let fd = page.call(device, number, &bytes, manner)?;
                    close(number, fd);
                    Ok(())
                };
                actor.attempt("ioctl (late)", Wait::Short, late);
            }
        }
        _ => {
            // Flips one bit of a VDUSE ioctl's number. The bit is in one of three parts of the
            // number: the index of the ioctl, the size of the argument, or the direction.
            let other = number ^ 1 << actor.dice.below(32);
            let kind = (other >> 8) & 0xff;
            if !IOCTLS.contains(&other) && kind == number >> 8 & 0xff {
                let mut bytes = vec![0; size(other).max(PAGE as usize)];
                actor.attempt("ioctl (unknown)", Wait::Short, || {
                    raw::call(device, other, &mut bytes)
                });
            }
        }
    }
}

/// Closes the file descriptor that an ioctl has returned, if the ioctl returns one.
fn close(number: u32, fd: i32) {
    if [ioctl::IOTLB_GET_FD, ioctl::IOTLB_GET_FD2].contains(&number) {
        // SAFETY: The ioctl returns a new descriptor, which nothing else owns.
        drop(unsafe { <File as std::os::fd::FromRawFd>::from_raw_fd(fd) });
    }
}
