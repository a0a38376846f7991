// SPDX-License-Identifier: GPL-2.0

//! A page that is missing until the test resolves it (userfaultfd).

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use crate::lab::kernel::memory::PAGE;
use crate::lab::kernel::raw::{self, Bytes};
use crate::lab::kernel::userfaultfd;
use crate::lab::run::report::skip;

/// A page that is missing until [`resolve`](Self::resolve) is called. Until then, an access to the
/// page blocks.
#[derive(Debug)]
pub struct Missing {
    base: *mut u8,
    faults: OwnedFd,
}

// SAFETY: The page is passed to system calls and never accessed by this program.
unsafe impl Send for Missing {}

// SAFETY: As above.
unsafe impl Sync for Missing {}

impl Missing {
    /// Creates a missing page, which exists until the process ends. Skips the test if the kernel
    /// does not support userfaultfd.
    #[track_caller]
    pub fn new() -> Self {
        use rustix::mm::{mmap_anonymous, userfaultfd, MapFlags, ProtFlags, UserfaultfdFlags};
        // Only a non-blocking userfaultfd can be polled.
        let flags = UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::NONBLOCK;
        // SAFETY: The descriptor handles only the faults of the page that this function maps and
        // registers. No references to that page exist.
        let Ok(faults) = (unsafe { userfaultfd(flags) }) else {
            skip("no userfaultfd here");
        };
        // SAFETY: A new mapping touches no other memory.
        let base = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                PAGE as usize,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )
        }
        .expect("a page")
        .cast();
        let page = Self { base, faults };
        let version = Bytes::new().u64(userfaultfd::VERSION).zeroes(16);
        page.call(userfaultfd::API, version);
        page.call(
            userfaultfd::REGISTER,
            page.range().u64(userfaultfd::MODE_MISSING).u64(0),
        );
        page
    }

    fn range(&self) -> Bytes {
        Bytes::new().u64(self.base as u64).u64(PAGE)
    }

    #[track_caller]
    fn call(&self, number: u32, mut bytes: Bytes) {
        raw::call(&self.faults, number, &mut bytes.0).expect("a call of userfaultfd");
    }

    /// Returns whether an access is blocked on the page.
    pub fn is_waited_for(&self) -> bool {
        use rustix::event::{poll, PollFd, PollFlags, Timespec};
        let now = Timespec::default();
        let mut fds = [PollFd::new(&self.faults, PollFlags::IN)];
        poll(&mut fds, Some(&now)).is_ok() && fds[0].revents().contains(PollFlags::IN)
    }

    /// Fills the page with zeroes, which unblocks the accesses to the page.
    #[track_caller]
    pub fn resolve(&self) {
        self.call(userfaultfd::ZEROPAGE, self.range().u64(0).u64(0));
    }

    /// Reads `len` bytes from a file into the page.
    pub fn read(&self, fd: impl AsFd, len: usize) -> io::Result<usize> {
        assert!(len as u64 <= PAGE);
        // SAFETY: The buffer is passed to a system call and not accessed by this program.
        let buffer = unsafe { std::slice::from_raw_parts_mut(self.base, len) };
        Ok(rustix::io::read(fd, buffer)?)
    }
}
