// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A network card (virtio 1.3, section 5.1).
//!
//! Each pair of queues has a [`Port`], the other end of its cable: [`Tap`], [`Loopback`], or a port
//! of your own. The card does no offloads. Commands of the control queue, if the card has one, are
//! answered and take effect; an [observer](Net::observed_by) is notified of each command.

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
