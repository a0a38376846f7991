// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The device side of a virtqueue (virtio 1.3, sections 2.7 and 2.8), split or packed.
//!
//! A [`Virtqueue`] knows where its rings are mapped, so that a request needs no system call, no
//! allocation and no lock. The device takes a request with [`pop`](Virtqueue::pop), which fills a
//! [`Chain`] that the caller reuses. The device completes requests with
//! [`push`](Virtqueue::push), in any order, and then makes all of them visible to the driver with
//! one call of [`publish`](Virtqueue::publish).
//!
//! Everything in the rings comes from the driver and can change at any time. Each index, length and
//! address is read once, checked, and only then used. A [`Chain`] contains only buffers that are
//! mapped with the permissions that the request needs.

mod area;
mod chain;
mod error;
mod event;
mod log;
mod packed;
mod queue;
mod settings;
mod split;
mod taken;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod walk;
mod window;

pub use chain::{Chain, Memory, Reader, Writer};
pub use error::Error;
pub use log::InFlightLog;
pub use queue::Virtqueue;
pub use settings::{Position, Settings, MAX_SIZE};
