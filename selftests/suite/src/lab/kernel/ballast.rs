// SPDX-License-Identifier: GPL-2.0

//! Memory that is taken away from the machine, so that the rest of it is short of memory.

use vduse::Mapping;

use crate::lab::assert::counts::available;
use crate::lab::kernel::memory::PAGE;

/// Length in bytes of the pieces in which memory is taken.
const PIECE: usize = 1 << 20;

/// Locked memory, given back on drop.
#[derive(Debug)]
pub struct Ballast(Vec<Mapping>);

impl Ballast {
    /// Takes memory until `left` bytes or less are available.
    #[track_caller]
    pub fn leave(left: u64) -> Self {
        let mut pieces = Vec::new();
        while available() > (left >> 10) as i64 {
            let piece = Mapping::anonymous(PIECE).expect("memory");
            // SAFETY: Locking memory does not change it.
            unsafe { rustix::mm::mlock(piece.address().cast(), PIECE) }.expect("locking memory");
            pieces.push(piece);
        }
        Self(pieces)
    }

    /// Returns how many pages were taken.
    pub fn pages(&self) -> u64 {
        (self.0.len() * PIECE) as u64 / PAGE
    }

    /// Gives all memory back.
    pub fn release(&mut self) {
        self.0.clear();
    }
}
