// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What a device does with the requests of its virtqueues.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use virtio_queue::DescriptorChain;

use crate::iotlb::AddressSpace;

/// The driver's memory, as passed to a [`Backend`].
pub type Memory = Arc<AddressSpace>;

/// A request of the driver: a chain of descriptors.
pub type Chain = DescriptorChain<Memory>;

/// The part of a device that serves the requests of its virtqueues.
pub trait Backend {
    /// Serves a request of virtqueue `queue`, whose buffers are in `memory`. Returns the number of
    /// bytes written to the chain.
    ///
    /// The chain comes from the driver and can contain anything.
    fn serve(&mut self, queue: u16, chain: Chain, memory: &Memory) -> u32;

    /// Returns whether the next request of a virtqueue can be served now. If not, the request stays
    /// in the virtqueue until the virtqueue's [source](Self::source) is readable.
    fn ready(&mut self, _queue: u16) -> bool {
        true
    }

    /// Returns a file, if there is one, that becomes readable when the virtqueue is
    /// [ready](Self::ready) again. The server polls the file only while the virtqueue is not ready
    /// for its next request.
    fn source(&self, _queue: u16) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Returns the changes to the configuration space since the last request or reset: offsets, and
    /// the new contents at each offset. The changes are written before the driver learns that the
    /// request was served.
    fn config_changes(&mut self) -> Vec<(u32, Vec<u8>)> {
        Vec::new()
    }

    /// Called after the driver was told of requests that were served. Whatever may wait for the
    /// driver belongs here: a kernel driver may hold locks until its request is served. virtio_net
    /// holds the lock of all network configuration (RTNL), which many calls about network
    /// interfaces take, while it waits for a command.
    fn answered(&mut self) {}

    /// Called when the driver has accepted these features and starts. Called again whenever more
    /// virtqueues are enabled.
    fn start(&mut self, _features: u64) {}

    /// Called when a virtqueue group has moved to an address space.
    fn moved(&mut self, _group: u32, _asid: u32) {}

    /// Completes all requests that have begun, as the driver suspends the device. No request is
    /// served until the device is resumed or reset.
    fn drain(&mut self) {}

    /// Called when the driver has reset the device. No request is in progress.
    fn reset(&mut self) {}
}
