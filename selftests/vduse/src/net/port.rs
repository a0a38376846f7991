// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The other end of a card's cable.

use std::io;
use std::os::fd::BorrowedFd;

/// The other end of a pair of queues.
pub trait Port {
    /// Sends a frame without blocking.
    ///
    /// # Errors
    ///
    /// On any error, the frame is lost.
    fn send(&mut self, frame: &[u8]) -> io::Result<()>;

    /// Receives a frame into `buffer`, which is long enough for any frame. Returns the frame's
    /// length in bytes, or `None` when no frame is available now.
    ///
    /// # Errors
    ///
    /// On any error, no frame can be received now.
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>>;

    /// Returns the descriptor that is readable while frames are available. A port without a
    /// descriptor never has any frames.
    fn descriptor(&self) -> Option<BorrowedFd<'_>>;

    /// Enables or disables the pair of queues. Frames for a disabled pair should go to other pairs.
    ///
    /// # Errors
    ///
    /// On any error, the pair stays as it was.
    fn enable(&mut self, _on: bool) -> io::Result<()> {
        Ok(())
    }
}
