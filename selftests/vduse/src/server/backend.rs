// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The trait by which a device serves the requests of its virtqueues.

use std::os::fd::BorrowedFd;

use crate::virtqueue::Chain;

/// The part of a device that serves the requests of its virtqueues.
pub trait Backend {
    /// Serves a request of virtqueue `queue`. Returns the number of bytes that the device has
    /// written to the request's buffers.
    ///
    /// The request comes from the driver and can contain anything.
    fn serve(&mut self, queue: u16, chain: &Chain) -> u32;

    /// Returns whether the backend can serve the next request of a virtqueue now. If not, the
    /// request stays in the virtqueue until the virtqueue's [source](Self::source) is readable.
    fn ready(&mut self, _queue: u16) -> bool {
        true
    }

    /// Returns a file that becomes readable when the virtqueue is [ready](Self::ready) again, or
    /// `None` if the virtqueue has no such file. The server polls the file only while the virtqueue
    /// is not ready for its next request.
    fn source(&self, _queue: u16) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Returns the changes to the configuration space since the last call. Each change is an offset
    /// and the new contents there. The server calls this function after each request and each
    /// reset, and writes the changes to the device. After a request, the server does so before it
    /// adds the request to the used ring.
    fn config_changes(&mut self) -> Vec<(u32, Vec<u8>)> {
        Vec::new()
    }

    /// Called by the server after it has told the driver that requests were served. Work that may
    /// wait for the driver must be done here rather than in [`serve`](Self::serve), because a
    /// kernel driver may hold locks until its request is served. For example, virtio_net holds
    /// RTNL, the lock of all network configuration, while it waits for a command of its control
    /// queue. Many system calls about network interfaces take RTNL.
    fn answered(&mut self) {}

    /// Called by the server, with the feature bits that the driver has accepted, when the server
    /// begins to serve the driver, and again whenever the driver enables more virtqueues.
    fn start(&mut self, _features: u64) {}

    /// Called by the server when the driver has moved a virtqueue group to an address space.
    fn moved(&mut self, _group: u32, _asid: u32) {}

    /// Completes all requests that the backend has begun. Called by the server when the driver
    /// suspends the device. The server passes no further request until the device is resumed or
    /// reset.
    fn drain(&mut self) {}

    /// Called by the server when the driver has reset the device. No request is in progress.
    fn reset(&mut self) {}
}
