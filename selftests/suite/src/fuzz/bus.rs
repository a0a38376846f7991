// SPDX-License-Identifier: GPL-2.0

//! Puts devices on the bus, gives them to drivers, and takes them away again.

use rustix::fs::FlockOperation;
use rustix::io::Errno;
use vdpa_netlink::Vdpa;

use crate::fuzz::board::Wait;
use crate::fuzz::stage::Stage;
use crate::lab::device::bus::{self, Driver};

/// Adding a device: it may be there, or not be created, or not be set up.
const ADD: &[Errno] = &[Errno::EXIST, Errno::INVAL];
/// Deleting a device.
const DELETE: &[Errno] = &[Errno::NODEV];

/// The life of who manages the bus.
pub fn live(stage: &mut Stage) {
    stage.pause(30);
    let name = stage.device();
    let Some(vdpa) = stage.call("open netlink", Wait::Short, &[], Vdpa::open) else {
        return;
    };
    match stage.dice.below(16) {
        0 => {
            stage.attempt("netlink: devices", Wait::Daemon, || vdpa.devices());
        }
        1 => {
            stage.attempt("netlink: config", Wait::Daemon, || vdpa.config(name));
        }
        2 => {
            stage.attempt("netlink: device", Wait::Daemon, || vdpa.device(name));
        }
        3..=4 => delete(stage, &vdpa, name),
        _ => {
            stage.call("netlink: add", Wait::Daemon, ADD, || {
                vdpa.add(name, "vduse")
            });
            let driver = stage.dice.pick(&[Driver::Virtio, Driver::Vhost]);
            stage.attempt("bind", Wait::Daemon, || bus::bind(name, driver));
            stage.pause(800);
            match stage.dice.below(3) {
                0 => unbind(stage, name),
                1 => delete(stage, &vdpa, name),
                _ => {}
            }
        }
    }
}

fn unbind(stage: &mut Stage, name: &str) {
    let Some(_lock) = stage.lock(name, FlockOperation::LockExclusive) else {
        return;
    };
    for driver in [Driver::Virtio, Driver::Vhost] {
        stage.attempt("unbind", Wait::Daemon, || bus::unbind(name, driver));
    }
}

fn delete(stage: &mut Stage, vdpa: &Vdpa, name: &str) {
    let Some(_lock) = stage.lock(name, FlockOperation::LockExclusive) else {
        return;
    };
    stage.call("netlink: del", Wait::Daemon, DELETE, || vdpa.delete(name));
}
