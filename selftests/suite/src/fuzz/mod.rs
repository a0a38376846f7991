// SPDX-License-Identifier: GPL-2.0

//! Hostile userspace: processes that call whatever there is to call, with arguments good and bad, all
//! at once.
//!
//! Each *actor* is a process: the controller, daemons, the bus, clients of vhost-vdpa, users of disks
//! and network cards, sysfs, memory pressure. It plays one short *life* after the other. What happens
//! in a life is decided by dice that start at a number made of the run's seed, the actor's number and
//! the life's: another run with the same seed, and perhaps with that actor only, repeats it, as far as
//! what the others do does not make a difference.
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

mod board;
mod bus;
mod client;
mod controller;
mod daemon;
mod hoarder;
mod nodes;
mod rings;
mod stage;
mod supervisor;
mod user;

use std::path::Path;
use std::sync::Arc;

use crate::fuzz::board::Board;
use crate::fuzz::stage::{Stage, THREADS};

pub use supervisor::{run, Plan};

/// An actor: its name, and what its life is.
type Actor = (&'static str, fn(&mut Stage));

/// The actors, each of which is a process. Their numbers are part of what a seed means.
const ACTORS: &[Actor] = &[
    ("controller", controller::live),
    ("daemon1", daemon::live),
    ("daemon2", daemon::live),
    ("daemon3", daemon::live),
    ("medic", daemon::heal),
    ("bus1", bus::live),
    ("bus2", bus::live),
    ("client1", client::live),
    ("client2", client::live),
    ("user1", user::live),
    ("user2", user::live),
    ("sysfs", nodes::live),
    ("hoarder", hoarder::live),
];

/// How many records the board has.
const RECORDS: usize = ACTORS.len() * THREADS;

/// Is the process of an actor: `fuzz NUMBER SEED TRACE DIRECTORY`. Returns only when it cannot.
pub fn act(arguments: &[String]) -> bool {
    let [number, seed, trace, directory] = arguments else {
        return false;
    };
    let (Ok(number), Ok(seed)) = (number.parse::<usize>(), seed.parse()) else {
        return false;
    };
    let Some((_, live)) = ACTORS.get(number) else {
        return false;
    };
    let directory = Path::new(directory);
    let Ok(board) = Board::open(&directory.join(supervisor::BOARD), RECORDS) else {
        return false;
    };
    crate::lab::kernel::memlock::unlimited_memlock();
    let mut stage = Stage::new(Arc::new(board), directory, number, seed, trace == "trace");
    loop {
        stage.live();
        live(&mut stage);
    }
}
