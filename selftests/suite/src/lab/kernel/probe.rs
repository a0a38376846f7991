// SPDX-License-Identifier: GPL-2.0

//! Accesses to possibly unmapped memory, which fail with an error instead of a signal.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use rustix::pipe::{pipe_with, PipeFlags};

use crate::lab::kernel::memory::PAGE;

/// A pipe through which this program accesses memory that may raise `SIGBUS`. The kernel performs
/// the access when it copies the memory to or from the pipe, and returns an error instead of
/// raising the signal.
#[derive(Debug)]
pub struct Prober {
    reader: OwnedFd,
    writer: OwnedFd,
}

impl Prober {
    /// Creates a prober.
    #[track_caller]
    pub fn new() -> Self {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).expect("a pipe");
        Self { reader, writer }
    }

    /// Reads `len` bytes at `address`. `len` must not exceed the page size. Fails with `EFAULT` if
    /// not all of the bytes can be read.
    pub fn read(&self, address: *const u8, len: usize) -> io::Result<Vec<u8>> {
        assert!(len as u64 <= PAGE);
        // SAFETY: The slice is passed to a system call and not accessed by this program. The kernel
        // returns EFAULT where there is no memory.
        let bytes = unsafe { std::slice::from_raw_parts(address, len) };
        let n = rustix::io::write(&self.writer, bytes)?;
        let mut buffer = vec![0; n];
        let got = rustix::io::read(&self.reader, &mut buffer)?;
        assert_eq!(got, n);
        if n == len {
            Ok(buffer)
        } else {
            Err(rustix::io::Errno::FAULT.into())
        }
    }

    /// Writes a byte to an address. Fails with `EFAULT` if the byte cannot be written.
    pub fn write(&self, address: *mut u8, byte: u8) -> io::Result<()> {
        rustix::io::write(&self.writer, &[byte])?;
        // SAFETY: As in `read`. In addition, the byte is in shared memory, to which this program
        // makes only volatile accesses.
        let target = unsafe { std::slice::from_raw_parts_mut(address, 1) };
        match rustix::io::read(&self.reader, target) {
            Ok(_) => Ok(()),
            Err(errno) => {
                let mut lost = [0];
                rustix::io::read(&self.reader, &mut lost)?;
                Err(errno.into())
            }
        }
    }
}

/// Returns whether a page is in this process's page tables. If so, an access to the page does not
/// fault.
#[track_caller]
pub fn is_present(address: *const u8) -> bool {
    const PRESENT: u64 = 1 << 63;
    let pages = File::open("/proc/self/pagemap").expect("opening the page map");
    let mut entry = [0; 8];
    let at = address.addr() as u64 / PAGE * 8;
    pages
        .read_exact_at(&mut entry, at)
        .expect("an entry of the page map");
    u64::from_ne_bytes(entry) & PRESENT != 0
}
