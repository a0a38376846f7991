// SPDX-License-Identifier: GPL-2.0

//! The clock of the measurements. In a virtual machine that counts instructions, a nanosecond is
//! one instruction.

use std::os::fd::AsFd;

use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::time::{clock_gettime, ClockId};

/// Returns the time since some fixed moment, in ns.
pub fn now() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Returns how long `work` takes, in ns.
pub fn time(work: impl FnOnce()) -> u64 {
    let begin = now();
    work();
    now() - begin
}

/// Maximum time to wait for data, in case the data has been lost.
const PATIENCE: Timespec = Timespec {
    tv_sec: 10,
    tv_nsec: 0,
};

/// Reads up to `buffer.len()` bytes from a file. Waits for data if necessary.
#[track_caller]
pub fn read(file: &impl AsFd, buffer: &mut [u8]) {
    let mut fds = [PollFd::new(file, PollFlags::IN)];
    assert_eq!(poll(&mut fds, Some(&PATIENCE)), Ok(1), "nothing came");
    rustix::io::read(file, buffer).expect("reading");
}
