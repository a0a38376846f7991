// SPDX-License-Identifier: GPL-2.0

//! An actor that adds devices to the vDPA bus, binds them, unbinds them, and deletes them.

use rustix::fs::FlockOperation;
use rustix::io::Errno;
use vdpa_netlink::Vdpa;

use crate::fuzz::actor::Actor;
use crate::fuzz::records::Wait;
use crate::lab::device::bus::{self, Driver};

/// Errors of adding a device. `EEXIST`: the device is already on the bus. `EINVAL`: the device does
/// not exist or is not set up.
const ADD: &[Errno] = &[Errno::EXIST, Errno::INVAL];
/// Errors of deleting a device.
const DELETE: &[Errno] = &[Errno::NODEV];

/// Plays one life (see [`crate::fuzz`]) of an actor that manages the vDPA bus.
pub fn live(actor: &mut Actor) {
    actor.pause(30);
    let name = actor.device();
    let Some(vdpa) = actor.call("open netlink", Wait::Short, &[], Vdpa::open) else {
        return;
    };
    match actor.dice.below(16) {
        0 => {
            actor.attempt("netlink: devices", Wait::Daemon, || vdpa.devices());
        }
        1 => {
            actor.attempt("netlink: config", Wait::Daemon, || vdpa.config(name));
        }
        2 => {
            actor.attempt("netlink: device", Wait::Daemon, || vdpa.device(name));
        }
        3..=4 => delete(actor, &vdpa, name),
        _ => {
            actor.call("netlink: add", Wait::Daemon, ADD, || {
                vdpa.add(name, "vduse")
            });
            let driver = actor.dice.pick(&[Driver::Virtio, Driver::Vhost]);
            actor.attempt("bind", Wait::Daemon, || bus::bind(name, driver));
            actor.pause(800);
            match actor.dice.below(3) {
                0 => unbind(actor, name),
                1 => delete(actor, &vdpa, name),
                _ => {}
            }
        }
    }
}

fn unbind(actor: &mut Actor, name: &str) {
    let Some(_lock) = actor.lock(name, FlockOperation::LockExclusive) else {
        return;
    };
    for driver in [Driver::Virtio, Driver::Vhost] {
        actor.attempt("unbind", Wait::Daemon, || bus::unbind(name, driver));
    }
}

fn delete(actor: &mut Actor, vdpa: &Vdpa, name: &str) {
    let Some(_lock) = actor.lock(name, FlockOperation::LockExclusive) else {
        return;
    };
    actor.call("netlink: del", Wait::Daemon, DELETE, || vdpa.delete(name));
}
