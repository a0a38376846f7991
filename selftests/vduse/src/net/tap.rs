// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A port that sends and receives frames through a TAP interface of this machine.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{open, Mode, OFlags};
use rustix::io::Errno;

use crate::net::port::Port;
use crate::sys::{self, InterfaceRequest};

const DEVICE: &str = "/dev/net/tun";

// From linux/if_tun.h.
const TUNSETIFF: u32 = 0x4004_54ca;
const TUNSETQUEUE: u32 = 0x4004_54d9;
const IFF_TAP: u16 = 0x0002;
const IFF_NO_PI: u16 = 0x1000;
const IFF_MULTI_QUEUE: u16 = 0x0100;
const IFF_ATTACH_QUEUE: u16 = 0x0200;
const IFF_DETACH_QUEUE: u16 = 0x0400;

/// A queue of a TAP interface.
#[derive(Debug)]
pub struct Tap {
    fd: OwnedFd,
    enabled: bool,
}

impl Tap {
    /// Opens `queues` queues of the TAP interface `name`, one for each queue pair of the card. The
    /// interface is in the network namespace of the calling thread. If the interface does not
    /// exist, the kernel creates it. When the last queue is closed, the kernel removes the
    /// interface unless it is persistent.
    ///
    /// # Errors
    ///
    /// `ENOENT` or `ENODEV` without the kernel's `tun` module, `EPERM` when the caller lacks
    /// permission, `EBUSY` when another program uses the interface, `EINVAL` when the interface was
    /// created for one queue and `queues` is larger, or when it was created for several queues and
    /// `queues` is 1.
    pub fn open(name: &str, queues: u16) -> io::Result<Vec<Self>> {
        let several = if queues > 1 { IFF_MULTI_QUEUE } else { 0 };
        (0..queues)
            .map(|_| {
                let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
                let fd = open(DEVICE, flags, Mode::empty())?;
                let request = InterfaceRequest::new(name, IFF_TAP | IFF_NO_PI | several)?;
                sys::interface(&fd, TUNSETIFF, request)?;
                Ok(Self { fd, enabled: true })
            })
            .collect()
    }
}

impl Port for Tap {
    fn send(&mut self, frame: &[u8]) -> io::Result<()> {
        rustix::io::write(&self.fd, frame)?;
        Ok(())
    }

    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        match rustix::io::read(&self.fd, buffer) {
            Ok(len) => Ok(Some(len)),
            Err(Errno::AGAIN) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.fd.as_fd())
    }

    fn enable(&mut self, on: bool) -> io::Result<()> {
        if self.enabled == on {
            return Ok(());
        }
        let flags = if on {
            IFF_ATTACH_QUEUE
        } else {
            IFF_DETACH_QUEUE
        };
        sys::interface(&self.fd, TUNSETQUEUE, InterfaceRequest::new("", flags)?)?;
        self.enabled = on;
        Ok(())
    }
}
