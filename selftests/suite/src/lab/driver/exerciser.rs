// SPDX-License-Identifier: GPL-2.0

//! Random I/O on a disk, checked against a model of the data.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;

use crate::lab::assert::data::assert_same;
use crate::lab::assert::random::Random;
use crate::lab::assert::timing::soon;
use crate::lab::driver::block::{Block, SECTOR};

/// A source of random I/O on a part of a disk. It compares the data of each read with the data
/// written before.
#[derive(Debug)]
pub struct Exerciser<'a> {
    block: &'a Block,
    start: u64,
    model: Vec<u8>,
    random: Random,
    largest: u64,
    /// Number of completed requests.
    steps: Arc<AtomicU64>,
}

impl<'a> Exerciser<'a> {
    /// Creates an exerciser of the part of a disk that begins at byte `start` and has `len` bytes,
    /// all of which must be zero. A request has at most `largest` bytes. `start`, `len` and
    /// `largest` must be multiples of the sector size.
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

    /// Performs one read or write. Panics if the request fails or a read returns wrong data.
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

    /// Asserts that the exerciser's part of `file`, which stores the disk's data, matches the
    /// model.
    #[track_caller]
    pub fn check_file(&self, file: &File) {
        let mut found = vec![0; self.model.len()];
        file.read_exact_at(&mut found, self.start)
            .expect("reading the file behind the disk");
        assert_same(&found, &self.model, "the file behind the disk");
    }

    /// Reads the exerciser's part of the disk through the block device, and asserts that the data
    /// matches the model.
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

/// The progress of running exercisers.
#[derive(Clone, Debug)]
pub struct Progress(Vec<Arc<AtomicU64>>);

impl Progress {
    /// Waits until each exerciser has completed `steps` more requests.
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

/// Runs each exerciser in its own thread while `during` runs in this thread.
#[track_caller]
pub fn exercise(exercisers: &mut [Exerciser<'_>], during: impl FnOnce(&Progress)) {
    exercise_on(exercisers, |_| (), during);
}

/// Variant of [`exercise`] in which each thread first calls `prepare` with the exerciser's number.
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
        // The threads must end even if `during` panics.
        let during = std::panic::AssertUnwindSafe(|| during(&progress));
        let result = std::panic::catch_unwind(during);
        stop.store(true, Ordering::Relaxed);
        if let Err(panic) = result {
            std::panic::resume_unwind(panic);
        }
    });
}
