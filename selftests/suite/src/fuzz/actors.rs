// SPDX-License-Identifier: GPL-2.0

//! The actors, each of which is a process.

use std::path::Path;
use std::sync::Arc;

use crate::fuzz::actor::{Actor, THREADS};
use crate::fuzz::records::{Records, FILE};
use crate::fuzz::{bus, client, controller, daemon, memory_pressure, nodes, user};
use crate::lab::kernel::memlock::unlimited_memlock;

/// An actor: its name, and one life of it.
type Entry = (&'static str, fn(&mut Actor));

/// The actors. Their numbers are part of what a seed means.
pub const ACTORS: &[Entry] = &[
    ("controller", controller::live),
    ("daemon1", daemon::life::live),
    ("daemon2", daemon::life::live),
    ("daemon3", daemon::life::live),
    ("repair", daemon::life::repair),
    ("bus1", bus::live),
    ("bus2", bus::live),
    ("client1", client::live),
    ("client2", client::live),
    ("user1", user::live),
    ("user2", user::live),
    ("sysfs", nodes::live),
    ("memory", memory_pressure::live),
];

/// Number of records: one for each thread of each actor.
pub const RECORDS: usize = ACTORS.len() * THREADS;

/// Runs the process of an actor: `fuzz NUMBER SEED TRACE DIRECTORY`. Returns only when it cannot.
pub fn run(arguments: &[String]) -> bool {
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
    let Ok(records) = Records::open(&directory.join(FILE), RECORDS) else {
        return false;
    };
    unlimited_memlock();
    let mut actor = Actor::new(Arc::new(records), directory, number, seed, trace == "trace");
    loop {
        actor.live();
        live(&mut actor);
    }
}
