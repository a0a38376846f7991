// SPDX-License-Identifier: GPL-2.0

//! An actor that reads and writes the driver's files in sysfs.

use std::path::PathBuf;

use rustix::io::Errno;

use crate::fuzz::actor::Actor;
use crate::fuzz::records::Wait;
use crate::lab::kernel::sysfs;

/// Errors of an access to a file of a device that another actor has destroyed.
const GONE: &[Errno] = &[Errno::NOENT, Errno::NODEV];

/// Values to write to attributes. Most of these values are invalid.
const JUNK: &[&str] = &[
    "",
    "\n",
    "-1",
    "0x",
    "4294967296",
    "99999999999999999999999999",
    "f,,f",
    "ffffffff,ffffffff,ffffffff,ffffffff,ffffffff,ffffffff,ffffffff",
    ",",
    "1 2",
    "\0",
    "%s%n",
];

/// Plays one life of the actor that reads and writes files in sysfs.
pub fn live(actor: &mut Actor) {
    actor.pause(20);
    let name = actor.device();
    match actor.dice.below(8) {
        0..=2 => {
            let text = if actor.dice.one_in(2) {
                actor.dice.pick(&["0", "1", "2", "86400", "4294967295"])
            } else {
                actor.dice.pick(JUNK)
            };
            store(actor, sysfs::attribute(name, "msg_timeout"), text);
            actor.pause(50);
            // Sets a short timeout again, so that later requests do not wait for long. A request
            // that already waits without a timeout ends when a daemon answers it.
            patience(actor, name);
        }
        3..=4 => {
            // The valid sizes are small, because the machine has little memory.
            let text = if actor.dice.one_in(2) {
                actor.dice.pick(&[
                    "0",
                    "1048575",
                    "1048576",
                    "1048577",
                    "8388608",
                    "1073741825",
                ])
            } else {
                actor.dice.pick(JUNK)
            };
            store(actor, sysfs::attribute(name, "bounce_size"), text);
        }
        5..=6 => {
            let queue = actor.dice.below(4) as u16;
            let text = if actor.dice.one_in(2) {
                actor.dice.pick(&["0", "1", "2", "3", "ff", "80000000"])
            } else {
                actor.dice.pick(JUNK)
            };
            store(actor, sysfs::affinity(name, queue), text);
        }
        _ => {
            let queue = actor.dice.below(4) as u16;
            for path in [
                sysfs::attribute(name, "msg_timeout"),
                sysfs::attribute(name, "bounce_size"),
                sysfs::attribute(name, "uevent"),
                sysfs::attribute(name, "status"),
                sysfs::attribute(name, "driver_features"),
                sysfs::attribute(name, "suspended"),
                sysfs::attribute(name, "broken"),
                sysfs::attribute(name, "groups"),
                sysfs::attribute(name, "vqs"),
                sysfs::affinity(name, queue),
            ] {
                actor.call("read an attribute", Wait::Short, GONE, || {
                    sysfs::read(&path)
                });
            }
        }
    }
}

fn store(actor: &mut Actor, path: PathBuf, text: &str) {
    let mut errors = vec![Errno::INVAL, Errno::RANGE, Errno::PERM, Errno::OVERFLOW];
    errors.extend(GONE);
    actor.call("write an attribute", Wait::Short, &errors, || {
        sysfs::write(&path, text)
    });
}

/// Sets a device's request timeout (`msg_timeout`) to one second.
pub fn patience(actor: &mut Actor, name: &str) {
    let path = sysfs::attribute(name, "msg_timeout");
    actor.call("write msg_timeout", Wait::Short, GONE, || {
        sysfs::write(&path, "1")
    });
}
