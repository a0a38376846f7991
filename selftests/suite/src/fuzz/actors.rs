// SPDX-License-Identifier: GPL-2.0

//! The actors, each of which runs in its own process.

use std::path::Path;
use std::sync::Arc;

use crate::fuzz::actor::{Actor, THREADS};
use crate::fuzz::records::{Records, FILE};
use crate::fuzz::{bus, client, controller, daemon, memory_pressure, nodes, user};
use crate::lab::kernel::memlock::unlimited_memlock;

/// An actor's name, and the function that plays one of its lives.
type Entry = (&'static str, fn(&mut Actor));

/// All actors. An actor's index affects its random numbers, so a seed repeats a run only if this
/// order has not changed.
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

/// Runs the helper process `fuzz NUMBER SEED TRACE DIRECTORY`, which plays an actor. Returns only
/// if an argument is invalid or the records cannot be opened.
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
