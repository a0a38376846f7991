// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Where a card's frames come from and go to.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

use rustix::fs::OFlags;

use crate::eventfd::EventFd;
use crate::sys::{self, InterfaceRequest};

/// Where the frames of a pair of virtqueues come from and go to. Nothing here waits.
pub trait Port {
    /// Sends a frame, or loses it.
    fn send(&mut self, frame: &[u8]) -> io::Result<()>;

    /// Takes a frame that has come, if there is one. Returns its length; what does not fit is cut.
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>>;

    /// A file that is readable when a frame has come.
    fn readable(&self) -> Option<BorrowedFd<'_>>;

    /// Whether frames are to come to this port.
    fn enable(&mut self, _on: bool) -> io::Result<()> {
        Ok(())
    }
}

/// A queue of a TAP interface of the host.
#[derive(Debug)]
pub struct Tap {
    file: File,
    /// Whether it is one of several.
    multiple: bool,
    enabled: bool,
}

/// Numbers of `linux/if_tun.h`.
const TUNSETIFF: u32 = 0x4004_54ca;
const TUNSETQUEUE: u32 = 0x4004_54d9;
const IFF_TAP: u16 = 0x0002;
const IFF_MULTI_QUEUE: u16 = 0x0100;
const IFF_ATTACH_QUEUE: u16 = 0x0200;
const IFF_DETACH_QUEUE: u16 = 0x0400;
const IFF_NO_PI: u16 = 0x1000;

impl Tap {
    /// Opens so many queues of the interface of this name, which is made if it is not there. It is
    /// gone with the last of them, unless it was made to stay.
    ///
    /// # Errors
    ///
    /// `EINVAL` for a name of more than 15 bytes, `EPERM` for who may not, `EBUSY` when another
    /// program has it.
    pub fn open(name: &str, queues: u16) -> io::Result<Vec<Self>> {
        let multiple = queues > 1;
        let mut flags = IFF_TAP | IFF_NO_PI;
        if multiple {
            flags |= IFF_MULTI_QUEUE;
        }
        (0..queues)
            .map(|_| {
                let file = OpenOptions::new()
                    .read(true)
                    .write(true)
                    .custom_flags(OFlags::NONBLOCK.bits() as i32)
                    .open("/dev/net/tun")?;
                sys::set_up_interface(&file, TUNSETIFF, &InterfaceRequest::new(name, flags)?)?;
                Ok(Self {
                    file,
                    multiple,
                    enabled: true,
                })
            })
            .collect()
    }
}

impl Port for Tap {
    fn send(&mut self, frame: &[u8]) -> io::Result<()> {
        self.file.write(frame).map(drop)
    }

    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        match self.file.read(buffer) {
            Ok(len) => Ok(Some(len)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn readable(&self) -> Option<BorrowedFd<'_>> {
        Some(self.file.as_fd())
    }

    fn enable(&mut self, on: bool) -> io::Result<()> {
        if self.multiple && on != self.enabled {
            let flags = if on {
                IFF_ATTACH_QUEUE
            } else {
                IFF_DETACH_QUEUE
            };
            let request = InterfaceRequest::new("", flags)?;
            sys::set_up_interface(&self.file, TUNSETQUEUE, &request)?;
            self.enabled = on;
        }
        Ok(())
    }
}

/// A cable from a card to itself: what is sent comes back.
#[derive(Debug)]
pub struct Loopback {
    frames: VecDeque<Vec<u8>>,
    limit: usize,
    some: EventFd,
}

impl Loopback {
    /// One that holds at most so many frames; more are lost.
    pub fn new(limit: usize) -> io::Result<Self> {
        Ok(Self {
            frames: VecDeque::new(),
            limit,
            some: EventFd::new()?,
        })
    }
}

impl Port for Loopback {
    fn send(&mut self, frame: &[u8]) -> io::Result<()> {
        if self.frames.len() < self.limit {
            if self.frames.is_empty() {
                self.some.signal()?;
            }
            self.frames.push_back(frame.to_vec());
        }
        Ok(())
    }

    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        let Some(frame) = self.frames.pop_front() else {
            return Ok(None);
        };
        if self.frames.is_empty() {
            self.some.take()?;
        }
        let len = frame.len().min(buffer.len());
        buffer[..len].copy_from_slice(&frame[..len]);
        Ok(Some(len))
    }

    fn readable(&self) -> Option<BorrowedFd<'_>> {
        Some(self.some.as_fd())
    }
}
