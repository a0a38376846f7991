// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The interface through which a card exchanges frames with a network.

use std::io;
use std::os::fd::BorrowedFd;

/// The network side of a queue pair.
pub trait Port {
    /// Sends a frame without blocking.
    ///
    /// # Errors
    ///
    /// On any error, the port drops the frame.
    fn send(&mut self, frame: &[u8]) -> io::Result<()>;

    /// Receives a frame into `buffer`, which is long enough for any frame. Returns the frame's
    /// length in bytes, or `None` when no frame is available now.
    ///
    /// # Errors
    ///
    /// On any error, the port can receive no frame now.
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>>;

    /// Returns the descriptor that is readable while frames are available, or `None` if the port
    /// never has frames.
    fn descriptor(&self) -> Option<BorrowedFd<'_>>;

    /// Enables or disables the queue pair. Frames for a disabled pair should go to other pairs.
    ///
    /// # Errors
    ///
    /// On any error, the pair keeps its earlier state.
    fn enable(&mut self, _on: bool) -> io::Result<()> {
        Ok(())
    }
}
