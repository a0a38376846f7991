// SPDX-License-Identifier: GPL-2.0

//! Memory that may not be there.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{ftruncate, memfd_create, MemfdFlags};
use rustix::pipe::{pipe_with, PipeFlags};

/// Size in bytes of a page.
pub const PAGE: u64 = 4096;

/// Looks at memory that may raise `SIGBUS` when it is looked at: the kernel is asked to look.
#[derive(Debug)]
pub struct Prober {
    reader: OwnedFd,
    writer: OwnedFd,
}

impl Prober {
    /// Makes one.
    #[track_caller]
    pub fn new() -> Self {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).expect("a pipe");
        Self { reader, writer }
    }

    /// Reads a page's bytes from `address` on, or says that there is no memory.
    pub fn read(&self, address: *const u8, len: usize) -> io::Result<Vec<u8>> {
        assert!(len as u64 <= PAGE);
        // SAFETY: The slice is handed to a system call and not looked at in this program; the
        // kernel answers EFAULT where there is no memory.
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

    /// Writes a byte to an address, or says that there is no memory.
    pub fn write(&self, address: *mut u8, byte: u8) -> io::Result<()> {
        rustix::io::write(&self.writer, &[byte])?;
        // SAFETY: As in `read`; the byte is in shared memory that is accessed as volatile only.
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

/// A file in memory.
#[track_caller]
pub fn file(bytes: u64) -> File {
    let fd = memfd_create("test", MemfdFlags::CLOEXEC).expect("a file in memory");
    ftruncate(&fd, bytes).expect("its length");
    File::from(fd)
}

/// Two MiB that are in one piece, physically.
#[derive(Debug)]
pub struct HugePage {
    start: *mut u8,
}

impl HugePage {
    /// How long it is, in bytes.
    pub const LEN: usize = 2 << 20;

    /// Makes one, or ends the test where the kernel has none. It stays until the process ends.
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
        // SAFETY: The advice changes nothing about what the memory holds.
        let _ = unsafe { madvise(start.cast(), Self::LEN, Advice::LinuxHugepage) };
        let mut page = Self { start };
        let before = Self::count();
        page.bytes().fill(1);
        if Self::count() < before + Self::LEN as u64 / 1024 {
            crate::lab::skip("no huge pages here");
        }
        page
    }

    /// How much memory of this process is in huge pages, in KiB.
    fn count() -> u64 {
        let text = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap_or_default();
        text.lines()
            .find_map(|line| line.strip_prefix("AnonHugePages:"))
            .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
            .unwrap_or(0)
    }

    /// The bytes.
    pub fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: So many bytes from `start` on are inside the mapping, which is private, never
        // unmapped, and known to nobody else.
        unsafe { std::slice::from_raw_parts_mut(self.start, Self::LEN) }
    }
}

/// Lets this process lock as much memory as it likes.
pub fn unlimited_memlock() {
    set_memlock(None);
}

/// Sets how many bytes this process may lock.
#[track_caller]
pub fn set_memlock(bytes: Option<u64>) {
    use rustix::process::{setrlimit, Resource, Rlimit};
    let limit = Rlimit {
        current: bytes,
        maximum: None,
    };
    setrlimit(Resource::Memlock, limit).expect("setting RLIMIT_MEMLOCK");
}

/// How much memory of this process is pinned, in KiB.
#[track_caller]
pub fn pinned_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("reading the status");
    status
        .lines()
        .find_map(|line| line.strip_prefix("VmPin:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .expect("VmPin in the status")
}
