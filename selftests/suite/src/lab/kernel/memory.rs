// SPDX-License-Identifier: GPL-2.0

//! Memory that may not exist.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{ftruncate, memfd_create, MemfdFlags};
use rustix::pipe::{pipe_with, PipeFlags};

use crate::lab::kernel::raw::{self, Bytes};

/// Page size in bytes.
pub const PAGE: u64 = 4096;

/// Accesses memory that may raise `SIGBUS`, by having the kernel access it.
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

    /// Reads up to a page of bytes from `address` on. Fails if there is no memory.
    pub fn read(&self, address: *const u8, len: usize) -> io::Result<Vec<u8>> {
        assert!(len as u64 <= PAGE);
        // SAFETY: The slice is passed to a system call and not accessed by this program; the kernel
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

    /// Writes a byte to an address. Fails if there is no memory.
    pub fn write(&self, address: *mut u8, byte: u8) -> io::Result<()> {
        rustix::io::write(&self.writer, &[byte])?;
        // SAFETY: As in `read`; the byte is in shared memory that is accessed only as volatile.
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

/// Returns whether a page is in this process's page tables, so that an access does not fault.
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

/// A page that is missing until it is resolved: accesses to it block until then.
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
        // SAFETY: Only the page below is registered, to which no references exist.
        let Ok(faults) = (unsafe { userfaultfd(flags) }) else {
            crate::lab::run::report::skip("no userfaultfd here");
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
        let version = Bytes::new().u64(uffd::VERSION).zeroes(16);
        page.call(uffd::API, version);
        page.call(uffd::REGISTER, page.range().u64(uffd::MISSING).u64(0));
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

    /// Fills the page with zeroes, which unblocks the accesses.
    #[track_caller]
    pub fn resolve(&self) {
        self.call(uffd::ZEROPAGE, self.range().u64(0).u64(0));
    }

    /// Reads from a file into the page.
    pub fn read(&self, fd: impl AsFd, len: usize) -> io::Result<usize> {
        assert!(len as u64 <= PAGE);
        // SAFETY: The buffer is passed to a system call and not accessed by this program.
        let buffer = unsafe { std::slice::from_raw_parts_mut(self.base, len) };
        Ok(rustix::io::read(fd, buffer)?)
    }
}

/// Ioctls and constants of userfaultfd (`include/uapi/linux/userfaultfd.h`).
mod uffd {
    use crate::lab::kernel::raw::{number, READ, WRITE};

    const TYPE: u8 = 0xaa;

    pub const VERSION: u64 = 0xaa;
    pub const MISSING: u64 = 1;
    pub const API: u32 = number(READ | WRITE, TYPE, 0x3f, 24);
    pub const REGISTER: u32 = number(READ | WRITE, TYPE, 0x00, 32);
    pub const ZEROPAGE: u32 = number(READ | WRITE, TYPE, 0x04, 32);
}

/// Creates a file in memory.
#[track_caller]
pub fn file(bytes: u64) -> File {
    let fd = memfd_create("test", MemfdFlags::CLOEXEC).expect("a file in memory");
    ftruncate(&fd, bytes).expect("its length");
    File::from(fd)
}

/// Two MiB of physically contiguous memory.
#[derive(Debug)]
pub struct HugePage {
    start: *mut u8,
}

impl HugePage {
    /// Size in bytes.
    pub const LEN: usize = 2 << 20;

    /// Allocates a huge page, which exists until the process ends. Skips the test if the kernel has
    /// none.
    #[track_caller]
    pub fn new() -> Self {
        use rustix::mm::{madvise, mmap_anonymous, Advice, MapFlags, ProtFlags};
        // SAFETY: A new mapping touches no other memory.
        let base = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                2 * Self::LEN,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )
        }
        .expect("memory")
        .cast::<u8>();
        let start = base.wrapping_add(base.align_offset(Self::LEN));
        // SAFETY: The advice does not change the contents of the memory.
        let _ = unsafe { madvise(start.cast(), Self::LEN, Advice::LinuxHugepage) };
        let mut page = Self { start };
        let before = Self::count();
        page.bytes().fill(1);
        if Self::count() < before + Self::LEN as u64 / 1024 {
            crate::lab::run::report::skip("no huge pages here");
        }
        page
    }

    /// Returns the amount of this process's memory in huge pages, in KiB.
    fn count() -> u64 {
        let text = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap_or_default();
        text.lines()
            .find_map(|line| line.strip_prefix("AnonHugePages:"))
            .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
            .unwrap_or(0)
    }

    /// Returns the bytes of the page.
    pub fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: The range of bytes from `start` on is inside the mapping, which is private, never
        // unmapped, and not used elsewhere.
        unsafe { std::slice::from_raw_parts_mut(self.start, Self::LEN) }
    }
}

/// Removes this process's limit on locked memory.
pub fn unlimited_memlock() {
    set_memlock(None);
}

/// Sets the number of bytes that this process may lock.
#[track_caller]
pub fn set_memlock(bytes: Option<u64>) {
    use rustix::process::{setrlimit, Resource, Rlimit};
    let limit = Rlimit {
        current: bytes,
        maximum: None,
    };
    setrlimit(Resource::Memlock, limit).expect("setting RLIMIT_MEMLOCK");
}

/// Returns the amount of this process's pinned memory, in KiB.
#[track_caller]
pub fn pinned_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("reading the status");
    status
        .lines()
        .find_map(|line| line.strip_prefix("VmPin:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .expect("VmPin in the status")
}
