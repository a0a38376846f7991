// SPDX-License-Identifier: GPL-2.0

//! Hostile userspace: processes that make every call there is, with valid or invalid arguments, all
//! at once.
//!
//! Each *actor* is a process: the controller, daemons, the bus, clients of vhost-vdpa, users of
//! disks and network cards, sysfs, memory pressure. It plays one short *life* after the other. What
//! happens in a life is decided by dice that start at a number made of the run's seed, the actor's
//! number and the life's: another run with the same seed, and perhaps with that actor only, repeats
//! it, as far as what the others do does not make a difference.
//!
//! What must be true all the time:
//!
//! - Calls fail with those errors only that they are documented to fail with.
//! - Calls end, in time. The supervisor watches, and tells where the kernel is when one does not.
//! - A daemon never sees a certain word that is all over everybody's other memory.
//! - However the actors end (the supervisor kills one now and then, in the middle of whatever), all
//!   that they left can be taken away.
//!
//! The kernel's log and the module's references are watched by the runner.

pub mod actors;
pub mod supervisor;

mod actor;
mod bus;
mod client;
mod controller;
mod daemon;
mod memory_pressure;
mod nodes;
mod records;
mod rings;
mod user;
