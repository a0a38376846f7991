// SPDX-License-Identifier: GPL-2.0

//! Random arguments of a daemon's calls. Most of the arguments are valid.

use std::time::Duration;

use crate::fuzz::actor::Actor;
use crate::fuzz::controller::{QUEUES, SPACES};
use crate::lab::kernel::late_page::Manner;
use crate::lab::kernel::memory::PAGE;

/// Returns a random index of a virtqueue. Most of the indices are valid.
pub fn queue(actor: &mut Actor) -> u32 {
    match actor.dice.below(12) {
        0 => actor.dice.next() as u32,
        1 => actor
            .dice
            .pick(&[QUEUES as u32, u32::MAX, 0x1_0000, 0xffff]),
        _ => actor.dice.below(3) as u32,
    }
}

/// Returns a random number of an address space. Most of the numbers are valid.
pub fn asid(actor: &mut Actor) -> u32 {
    match actor.dice.below(8) {
        0 => actor.dice.pick(&[SPACES as u32, u32::MAX, 0x1_0000]),
        _ => actor.dice.below(SPACES) as u32,
    }
}

/// Returns a random first IOVA and a random last IOVA. The last IOVA may be less than the first.
pub fn range(actor: &mut Actor) -> (u64, u64) {
    let mut address = || match actor.dice.below(8) {
        0..=2 => actor.dice.below(64) * PAGE,
        3 => actor.dice.below(1 << 31),
        4 => u64::MAX - actor.dice.below(2 * PAGE),
        5 => actor.dice.next(),
        6 => 0,
        _ => u64::MAX,
    };
    (address(), address())
}

/// Returns a random way in which a [`LatePage`](crate::lab::kernel::late_page::LatePage) resolves a
/// fault.
pub fn manner(actor: &mut Actor) -> Manner {
    Manner {
        delay: Duration::from_millis(actor.dice.below(20)),
        comes: !actor.dice.one_in(3),
    }
}
