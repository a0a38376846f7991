// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Eventfds, with which the driver kicks a device and one thread wakes another.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{eventfd, EventfdFlags};

/// An eventfd.
#[derive(Debug)]
pub struct EventFd {
    fd: OwnedFd,
}

impl EventFd {
    /// Creates an eventfd with a counter of 0, whose reads do not block.
    ///
    /// # Errors
    ///
    /// Returns the error of the `eventfd` system call.
    pub fn new() -> io::Result<Self> {
        Self::with_flags(EventfdFlags::NONBLOCK)
    }

    /// Creates an eventfd with a counter of 0. A read waits while the counter is 0.
    ///
    /// # Errors
    ///
    /// Returns the error of the `eventfd` system call.
    pub fn blocking() -> io::Result<Self> {
        Self::with_flags(EventfdFlags::empty())
    }

    fn with_flags(flags: EventfdFlags) -> io::Result<Self> {
        let fd = eventfd(0, flags | EventfdFlags::CLOEXEC)?;
        Ok(Self { fd })
    }

    /// Returns another descriptor of the same eventfd.
    ///
    /// # Errors
    ///
    /// Returns the error of the system call that duplicates the descriptor.
    pub fn try_clone(&self) -> io::Result<Self> {
        let fd = self.fd.try_clone()?;
        Ok(Self { fd })
    }

    /// Adds 1 to the counter.
    ///
    /// # Errors
    ///
    /// Returns the error of the `write` system call: `EAGAIN` if the counter is at its maximum, which
    /// takes 2^64 - 2 signals. An eventfd whose reads wait waits then.
    pub fn signal(&self) -> io::Result<()> {
        rustix::io::write(&self.fd, &1u64.to_ne_bytes())?;
        Ok(())
    }

    /// Reads the counter and resets it to 0. If reads do not block, the counter may be 0.
    ///
    /// # Errors
    ///
    /// Returns the error of the `read` system call.
    pub fn take(&self) -> io::Result<u64> {
        let mut count = [0; 8];
        loop {
            match rustix::io::read(&self.fd, &mut count) {
                Ok(_) => return Ok(u64::from_ne_bytes(count)),
                Err(rustix::io::Errno::AGAIN) => return Ok(0),
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_add_up_until_they_are_taken() {
        let event = EventFd::new().unwrap();
        assert_eq!(event.take().unwrap(), 0);
        event.signal().unwrap();
        event.signal().unwrap();
        assert_eq!(event.take().unwrap(), 2);
        assert_eq!(event.take().unwrap(), 0);
    }
}
