// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A port that connects a card to itself.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use crate::eventfd::EventFd;
use crate::net::port::Port;

/// Maximum number of queued frames. The port drops further frames.
const ROOM: usize = 4096;

/// A port that returns each frame to the card that has sent the frame.
#[derive(Debug)]
pub struct Loopback {
    frames: VecDeque<Vec<u8>>,
    /// Eventfd that is readable while frames are queued.
    there: EventFd,
}

impl Loopback {
    /// Creates a port without frames.
    ///
    /// # Errors
    ///
    /// Returns the error of creating an eventfd.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            frames: VecDeque::new(),
            there: EventFd::new()?,
        })
    }
}

impl Port for Loopback {
    fn send(&mut self, frame: &[u8]) -> io::Result<()> {
        if self.frames.len() == ROOM {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        if self.frames.is_empty() {
            self.there.signal()?;
        }
        self.frames.push_back(frame.to_vec());
        Ok(())
    }

    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        let Some(frame) = self.frames.pop_front() else {
            return Ok(None);
        };
        if self.frames.is_empty() {
            self.there.take()?;
        }
        let room = buffer
            .get_mut(..frame.len())
            .ok_or(io::ErrorKind::InvalidInput)?;
        room.copy_from_slice(&frame);
        Ok(Some(frame.len()))
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.there.as_fd())
    }
}
