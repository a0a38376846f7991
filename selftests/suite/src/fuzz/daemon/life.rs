// SPDX-License-Identifier: GPL-2.0

//! The lives of the actors that are daemons.

use std::sync::Arc;

use vduse::Device;

use crate::fuzz::actor::Actor;
use crate::fuzz::controller::GROUPS;
use crate::fuzz::daemon::answers::{answer, converse};
use crate::fuzz::daemon::calls::act;
use crate::fuzz::daemon::errors::{BROKEN, INVALID, OPEN};
use crate::fuzz::daemon::serve::{queues, serve};
use crate::fuzz::records::Wait;
use crate::fuzz::rings;
use crate::lab::device::spaces::set_up;

/// Opens a random device. In 11 of 12 calls, also sets up the device's virtqueues.
fn open(actor: &mut Actor) -> Option<(&'static str, Arc<Device>)> {
    let name = actor.device();
    let device = actor.call("open a device", Wait::Short, OPEN, || {
        Device::open_nonblocking(name)
    })?;
    let count = queues(&device);
    if !actor.dice.one_in(12) {
        // `set_up` sets a size of virtqueue that a vhost-vdpa client can use. The call of `set_up`
        // fails if the group does not exist, or if a device with API version 1 is on the bus.
        for index in 0..count {
            let group = match name.ends_with('1') {
                true => actor.dice.below(GROUPS) as u32,
                false => 0,
            };
            let refused = actor.call("VQ_SETUP", Wait::Short, INVALID, || {
                set_up(&device, index, group)
            });
            if refused.is_none() {
                actor.call("VQ_SETUP", Wait::Short, INVALID, || {
                    set_up(&device, index, 0)
                });
            }
        }
    }
    Some((name, Arc::new(device)))
}

/// Plays one life of an actor that serves devices that have no daemon.
pub fn repair(actor: &mut Actor) {
    actor.pause(5);
    let name = actor.device();
    let open = || Device::open_nonblocking(name);
    if let Some(device) = actor.call("open a device", Wait::Short, OPEN, open) {
        let milliseconds = 100 + actor.dice.below(300);
        serve(actor, name, device, milliseconds);
    }
}

/// Plays one life of a daemon.
pub fn live(actor: &mut Actor) {
    actor.pause(50);
    let Some((name, device)) = open(actor) else {
        return;
    };
    match actor.dice.below(8) {
        0..=2 => {
            let milliseconds = 50 + actor.dice.below(1200);
            if let Some(device) = Arc::into_inner(device) {
                serve(actor, name, device, milliseconds);
            }
        }
        // A daemon whose reads block until there is a request. If a read blocks for long, the
        // supervisor kills this daemon.
        3 if actor.dice.one_in(4) => {
            drop(device);
            let open = || Device::open(name);
            if let Some(device) = actor.call("open to wait", Wait::Short, OPEN, open) {
                for _ in 0..3 {
                    let read = || device.read_request();
                    let request = actor.call("read and wait", Wait::Endless, &[BROKEN], read);
                    if let Some(request) = request {
                        answer(actor, &device, &request);
                    }
                }
            }
        }
        // A daemon whose threads all use the same open file.
        _ => {
            let milliseconds = 100 + actor.dice.below(1000);
            actor.go_on_for(milliseconds);
            let threads = actor.dice.below(3) as usize;
            std::thread::scope(|scope| {
                for thread in 1..=threads {
                    let (mut beside, device) = (actor.beside(thread), device.clone());
                    scope.spawn(move || {
                        while beside.goes_on() {
                            act(&mut beside, &device);
                        }
                    });
                }
                // One daemon in four answers no requests.
                let answers = !actor.dice.one_in(4);
                while actor.goes_on() {
                    if answers {
                        converse(actor, &device);
                    }
                    if name.starts_with("fuzz-net") && actor.dice.one_in(3) {
                        rings::corrupt_used_ring(actor, &device);
                        rings::corrupt_control_queue(actor, &device);
                    }
                    act(actor, &device);
                }
            });
        }
    }
}
