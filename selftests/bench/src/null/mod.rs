// SPDX-License-Identifier: GPL-2.0

//! Devices that do nothing: what the driver sends succeeds without being looked at, so that only
//! the round trip is measured. Each virtqueue has a thread.
//!
//! - `disk` is a disk whose requests succeed.
//! - `card` is a network card that counts what is sent and makes up what is received.
//! - `pairs` is a network card of several pairs of queues that counts what is sent.

mod card;
mod device;
mod disk;
mod pairs;
mod pause;
mod stamps;

pub use card::{ethernet, NullCard, LAST, OTHER};
pub use disk::{NullDisk, Shape, CAPACITY};
pub use pairs::NullPairs;
