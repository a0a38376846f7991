// SPDX-License-Identifier: GPL-2.0

//! Block devices, accessed without the page cache.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;
use std::thread::JoinHandle;

use rustix::fs::OFlags;

use crate::lab::assert::expect::soon;
use crate::lab::assert::pattern::{assert_same, Random};
use crate::lab::kernel::sysfs;

/// Alignment of buffers for direct I/O.
const ALIGN: usize = 4096;

/// Sector size in bytes.
pub const SECTOR: u64 = 512;

/// A buffer for direct I/O.
#[derive(Debug)]
pub struct Aligned {
    store: Vec<u8>,
    start: usize,
    len: usize,
}

impl Aligned {
    /// Creates a zeroed buffer.
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

/// A block device.
#[derive(Debug)]
pub struct Block {
    file: File,
    name: String,
}

impl Block {
    /// Opens the disk of this name, or the file at this path, for direct I/O.
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

    /// Reads `len` bytes.
    pub fn read(&self, offset: u64, len: usize) -> io::Result<Aligned> {
        let mut buffer = Aligned::new(len);
        self.file.read_exact_at(&mut buffer, offset)?;
        Ok(buffer)
    }

    /// Writes bytes.
    pub fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut buffer = Aligned::new(data.len());
        buffer.copy_from_slice(data);
        self.file.write_all_at(&buffer, offset)
    }

    /// Writes bytes without copying them. The data must be page-aligned.
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

/// Threads that read from a disk until a read fails.
#[derive(Debug)]
pub struct Readers(Vec<(JoinHandle<()>, Arc<AtomicU64>)>);

/// Starts threads that read from a disk until a read fails.
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
    /// Waits until each thread has completed this number of further reads.
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

/// Reads and writes a part of a disk at random offsets with random sizes, and compares the data
/// read with the data written.
#[derive(Debug)]
pub struct Exerciser<'a> {
    block: &'a Block,
    start: u64,
    model: Vec<u8>,
    random: Random,
    largest: u64,
    /// Number of requests so far.
    steps: Arc<AtomicU64>,
}

impl<'a> Exerciser<'a> {
    /// Creates an exerciser for the `len` bytes from `start` on, which must be zero, with requests
    /// of up to `largest` bytes. All of these must be multiples of the sector size.
    pub fn new(block: &'a Block, start: u64, len: u64, largest: u64, seed: u64) -> Self {
        Self {
            block,
            start,
            model: vec![0; len as usize],
            random: Random::new(seed),
            largest,
            steps: Arc::default(),
        }
    }

    /// Performs one request.
    #[track_caller]
    pub fn step(&mut self) {
        let sectors = self.model.len() as u64 / SECTOR;
        let most = (self.largest / SECTOR).min(sectors);
        let len = (1 + self.random.below(most)) * SECTOR;
        let at = self.random.below(sectors - len / SECTOR + 1) * SECTOR;
        let range = at as usize..(at + len) as usize;
        if self.random.below(2) == 0 {
            let mut data = vec![0; len as usize];
            self.random.fill(&mut data);
            self.block
                .write(self.start + at, &data)
                .expect("writing to the disk");
            self.model[range].copy_from_slice(&data);
        } else {
            let found = self
                .block
                .read(self.start + at, len as usize)
                .expect("reading from the disk");
            assert_same(&found, &self.model[range], &format!("{len} bytes at {at}"));
        }
        self.steps.fetch_add(1, Ordering::Relaxed);
    }

    /// Compares the whole part with the file that holds the disk's data.
    #[track_caller]
    pub fn check_file(&self, file: &File) {
        let mut found = vec![0; self.model.len()];
        file.read_exact_at(&mut found, self.start)
            .expect("reading the file behind the disk");
        assert_same(&found, &self.model, "the file behind the disk");
    }

    /// Compares the whole part with the disk.
    #[track_caller]
    pub fn check_disk(&self) {
        let step = 64 << 10;
        for at in (0..self.model.len()).step_by(step) {
            let end = (at + step).min(self.model.len());
            let found = self
                .block
                .read(self.start + at as u64, end - at)
                .expect("reading from the disk");
            assert_same(&found, &self.model[at..end], &format!("from {at} on"));
        }
    }
}

/// The progress of exercisers, for other threads.
#[derive(Clone, Debug)]
pub struct Progress(Vec<Arc<AtomicU64>>);

impl Progress {
    /// Waits until each exerciser has completed this number of further requests.
    #[track_caller]
    pub fn go_on(&self, steps: u64) {
        let counts = || self.0.iter().map(|count| count.load(Ordering::Relaxed));
        let before: Vec<u64> = counts().collect();
        soon("all of them go on", || {
            counts()
                .zip(&before)
                .all(|(now, before)| now >= before + steps)
        });
    }
}

/// Runs exercisers in separate threads while `during` runs in this one.
#[track_caller]
pub fn exercise(exercisers: &mut [Exerciser<'_>], during: impl FnOnce(&Progress)) {
    exercise_on(exercisers, |_| (), during);
}

/// Variant of [`exercise`] in which each thread first calls `prepare` with its number.
#[track_caller]
pub fn exercise_on(
    exercisers: &mut [Exerciser<'_>],
    prepare: impl Fn(usize) + Sync,
    during: impl FnOnce(&Progress),
) {
    let stop = AtomicBool::new(false);
    let progress = Progress(
        exercisers
            .iter()
            .map(|exerciser| exerciser.steps.clone())
            .collect(),
    );
    std::thread::scope(|scope| {
        let (stop, prepare) = (&stop, &prepare);
        for (number, exerciser) in exercisers.iter_mut().enumerate() {
            scope.spawn(move || {
                prepare(number);
                while !stop.load(Ordering::Relaxed) {
                    exerciser.step();
                }
            });
        }
        // Ends the threads even if `during` panics.
        let during = std::panic::AssertUnwindSafe(|| during(&progress));
        let result = std::panic::catch_unwind(during);
        stop.store(true, Ordering::Relaxed);
        if let Err(panic) = result {
            std::panic::resume_unwind(panic);
        }
    });
}
