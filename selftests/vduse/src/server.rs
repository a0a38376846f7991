// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A server that runs a whole device: it answers the kernel's requests, serves the virtqueues on
//! kicks, and interrupts the driver.
//!
//! [`Server`] serves all virtqueues in one thread, request by request. [`Threads`] has a thread for
//! each virtqueue, which may execute many requests at a time.
//!
//! A [`Server`] completes the requests of a virtqueue in order of arrival. This order makes it
//! simple to take over a device in use. The new server resumes where the used
//! ring ends, and so repeats the requests that its predecessor began but did not complete. When the
//! new server starts, it interrupts the driver once for each virtqueue in use. The predecessor may
//! have ended after it added an entry to the used ring but before it interrupted the driver, and
//! nothing records the missing interrupt. A spurious interrupt only makes the driver check its used
//! ring, but a driver that misses an interrupt waits forever.
//!
//! Virtqueues may be split or packed. A packed virtqueue does not show how far the device has come,
//! so a server cannot take over a device with packed virtqueues while a driver uses them.
//!
//! After each reset, the virtqueue groups of a version 1 device ([`Server::with_groups`]) are in
//! address space 0. The driver can move groups to other address spaces before it sets `DRIVER_OK`.
//! If the VDUSE driver shows the device's state in sysfs ([`DeviceState`](crate::state)), a server
//! that takes over the device reads from sysfs which address space each group is in and whether the
//! device is suspended. Otherwise the server assumes address space 0 for all groups.
//!
//! With the VDUSE features ([`Control::offer_all`](crate::Control::offer_all)), the kernel tells
//! the server when the driver enables a virtqueue, so that the server need not poll for that. The
//! driver can also suspend the device, for a migration without loss, and resume it. After a resume,
//! the server continues each virtqueue where the server stopped before, unless the driver has
//! changed the virtqueue's settings in the meantime.

mod backend;
mod handle;
mod run;
mod session;
mod threads;
mod virtqueue;

pub use backend::Backend;
pub use handle::Handle;
pub use run::Server;
pub use threads::{ServedQueue, Threads, Worker};
