// SPDX-License-Identifier: GPL-2.0

//! Null devices. A null device completes the driver's requests without accessing the data of the
//! requests, so that a measurement covers only the round trip. Each virtqueue has its own thread.
//!
//! - `disk` is a disk.
//! - `card` is a network card. It counts the frames that the driver sends, and writes only the
//!   headers of the frames that the driver receives.
//! - `pairs` is a network card with several queue pairs. It counts the frames that the driver
//!   sends.

mod card;
mod device;
mod disk;
mod pairs;
mod pause;
mod stamps;

pub use card::{ethernet, NullCard, LAST, OTHER};
pub use disk::{NullDisk, Shape, CAPACITY};
pub use pairs::NullPairs;
