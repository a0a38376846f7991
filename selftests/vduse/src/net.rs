// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A backend for a network card (virtio 1.3, section 5.1).
//!
//! Each queue pair sends and receives frames through a [`Port`]: a [`Tap`], a [`Loopback`], or your
//! own implementation. The card supports no offloads. If the card has a control queue, it executes
//! the driver's commands and notifies an [observer](Net::observed_by) of each command.

mod card;
pub mod control;
mod event;
mod loopback;
mod port;
pub mod shape;
mod tap;

pub use card::{announce, Net};
pub use control::{Command, Mac, Settings};
pub use event::{Event, What};
pub use loopback::Loopback;
pub use port::Port;
pub use shape::{Groups, Shape};
pub use tap::Tap;
