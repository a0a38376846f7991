// SPDX-License-Identifier: GPL-2.0

//! A fuzzer: processes that make all calls of the driver's interfaces at the same time, with valid
//! and invalid arguments.
//!
//! Each *actor* is a process: the controller, daemons, the bus, clients of vhost-vdpa, users of
//! disks and network cards, sysfs, memory pressure. An actor plays one short *life* after another.
//! Random numbers decide what happens in a life. Their seed is derived from the run's seed, the
//! actor's number and the life's number. So another run with the same seed repeats the lives of an
//! actor, even if only that actor takes part. A repeated life differs only where other actors
//! affect it.
//!
//! The fuzzer checks all the time:
//!
//! - A call fails only with errors that are documented for the call.
//! - A call ends in time. If one does not, the supervisor prints the kernel stacks of all actors.
//! - A daemon never sees the secret word, with which other actors fill memory that no daemon may
//!   see.
//! - All devices can be removed, however the actors end. Now and then, the supervisor kills an
//!   actor in the middle of a call.
//!
//! The runner watches the kernel's log and the module's reference count.

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
