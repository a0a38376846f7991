// SPDX-License-Identifier: GPL-2.0

//! Block devices that are accessed without the page cache.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::thread::JoinHandle;

use rustix::fs::OFlags;

use crate::lab::assert::timing::soon;
use crate::lab::kernel::sysfs;

/// Alignment of buffers for direct I/O.
const ALIGN: usize = 4096;

/// Sector size in bytes.
pub const SECTOR: u64 = 512;

/// A buffer that is aligned for direct I/O.
#[derive(Debug)]
pub struct Aligned {
    store: Vec<u8>,
    start: usize,
    len: usize,
}

impl Aligned {
    /// Creates a buffer of `len` zero bytes.
    pub fn new(len: usize) -> Self {
        let store = vec![0; len + ALIGN];
        let start = store.as_ptr().align_offset(ALIGN);
        Self { store, start, len }
    }
}

impl std::ops::Deref for Aligned {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.store[self.start..self.start + self.len]
    }
}

impl std::ops::DerefMut for Aligned {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.store[self.start..self.start + self.len]
    }
}

/// A block device or a file that is open for direct I/O.
#[derive(Debug)]
pub struct Block {
    file: File,
    name: String,
}

impl Block {
    /// Opens a disk for direct I/O. `name` is the disk's name or an absolute path.
    pub fn open(name: &str) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(OFlags::DIRECT.bits() as i32)
            .open(Path::new("/dev").join(name))?;
        Ok(Self {
            file,
            name: name.to_owned(),
        })
    }

    /// Returns the disk's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Reads `len` bytes at `offset`.
    pub fn read(&self, offset: u64, len: usize) -> io::Result<Aligned> {
        let mut buffer = Aligned::new(len);
        self.file.read_exact_at(&mut buffer, offset)?;
        Ok(buffer)
    }

    /// Writes `data` at `offset`, through an aligned copy.
    pub fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut buffer = Aligned::new(data.len());
        buffer.copy_from_slice(data);
        self.file.write_all_at(&buffer, offset)
    }

    /// Writes `data` at `offset` without a copy. The data must be page-aligned.
    pub fn write_from(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write_all_at(data, offset)
    }

    /// Flushes written data to stable storage.
    pub fn flush(&self) -> io::Result<()> {
        self.file.sync_all()
    }
}

impl AsFd for Block {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Returns the size of a disk in sectors, according to sysfs.
pub fn sectors(disk: &str) -> Option<u64> {
    let path = Path::new("/sys/block").join(disk).join("size");
    sysfs::read(&path).ok()?.parse().ok()
}

/// Threads that each read from a disk until a read fails.
#[derive(Debug)]
pub struct Readers(Vec<(JoinHandle<()>, Arc<AtomicU64>)>);

/// Starts three threads that each read from a disk until a read fails.
#[track_caller]
pub fn read_until_error(disk: &str) -> Readers {
    let readers = (0..3).map(|n| {
        let block = Block::open(disk).expect("opening the disk");
        let done = Arc::new(AtomicU64::new(0));
        let count = done.clone();
        let thread = std::thread::spawn(move || {
            while block.read(n * 4096, 16384).is_ok() {
                count.fetch_add(1, Ordering::Relaxed);
            }
        });
        (thread, done)
    });
    Readers(readers.collect())
}

impl Readers {
    /// Waits until each thread has completed `times` more reads.
    #[track_caller]
    pub fn go_on(&self, times: u64) {
        let counts = || self.0.iter().map(|(_, done)| done.load(Ordering::Relaxed));
        let before: Vec<u64> = counts().collect();
        soon("all of them read", || {
            counts()
                .zip(&before)
                .all(|(now, before)| now >= before + times)
        });
    }

    /// Waits until a read has failed in each thread.
    #[track_caller]
    pub fn join(self) {
        for (thread, _) in self.0 {
            thread.join().expect("a reader");
        }
    }
}
