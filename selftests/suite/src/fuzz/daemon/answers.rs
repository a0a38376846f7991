// SPDX-License-Identifier: GPL-2.0

//! A daemon's answers to requests. Most of the answers are valid.

use rustix::io::Errno;
use vduse::request::{Answer, Kind, Request};
use vduse::Device;
use vduse_uapi::DevResponse;

use crate::fuzz::actor::Actor;
use crate::fuzz::daemon::errors::BROKEN;
use crate::fuzz::records::Wait;

/// Reads the next request, if there is one, and answers the request, mostly with a valid answer.
pub fn converse(actor: &mut Actor, device: &Device) {
    let errors = &[BROKEN, Errno::AGAIN];
    let read = || device.read_request();
    if let Some(request) = actor.call("read", Wait::Short, errors, read) {
        answer(actor, device, &request);
    }
}

/// Answers a request, mostly with a valid answer.
pub fn answer(actor: &mut Actor, device: &Device, request: &Request) {
    let right = match request.kind {
        Kind::GetVqState { index } => Answer::SplitState {
            index,
            next_avail: actor.dice.next() as u16,
        },
        _ => Answer::Ok,
    };
    let mut response = right.to_abi(request.id);
    match actor.dice.below(24) {
        0 => response = Answer::Failed.to_abi(request.id),
        1 => response.request_id = actor.dice.next() as u32,
        2 => response.request_id = response.request_id.wrapping_add(1),
        3 => response.result = actor.dice.next() as u32,
        4 => response.reserved[actor.dice.below(4) as usize] = 1,
        5 => {
            for word in &mut response.body.words {
                *word = actor.dice.next() as u32;
            }
        }
        6 => actor.pause(300),
        // Sends no answer.
        7 => return,
        _ => {}
    }
    write(actor, device, &response);
    if actor.dice.one_in(16) {
        write(actor, device, &response);
    }
}

fn write(actor: &mut Actor, device: &Device, response: &DevResponse) {
    let errors = &[Errno::NOENT, Errno::INVAL];
    actor.call("write", Wait::Short, errors, || device.write_raw(response));
}
