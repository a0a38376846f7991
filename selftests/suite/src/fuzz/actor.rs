// SPDX-License-Identifier: GPL-2.0

//! A thread of an actor, which makes calls.
//!
//! The calls are counted, watched, and held against the errors that they may fail with.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use crate::fuzz::records::{Records, Wait};
use crate::lab::assert::random::Random;
use crate::outcome::FAILED;

/// How many threads of an actor make calls, at most.
pub const THREADS: usize = 3;

/// How many of the last calls are shown when one fails as it must not.
const SHOWN: usize = 16;

/// The devices, by which everybody finds them.
pub const DEVICES: [&str; 5] = [
    "fuzz-disk0",
    "fuzz-disk1",
    "fuzz-net0",
    "fuzz-net1",
    "fuzz-fs1",
];

/// A thread of an actor.
#[derive(Debug)]
pub struct Actor {
    records: Arc<Records>,
    directory: PathBuf,
    index: usize,
    seed: u64,
    /// Decides.
    pub dice: Random,
    /// A word that no daemon is ever to see.
    pub secret: u64,
    trace: Option<File>,
    last: VecDeque<String>,
    until: Instant,
}

/// Makes one number of two.
fn mix(a: u64, b: u64) -> u64 {
    Random::new(a ^ Random::new(b.wrapping_add(0x5eed)).next()).next()
}

impl Actor {
    /// Creates the first thread of an actor. Its seed comes from the run's seed and the actor's
    /// number.
    pub fn new(
        records: Arc<Records>,
        directory: &Path,
        actor: usize,
        seed: u64,
        trace: bool,
    ) -> Self {
        let trace = trace.then(|| OpenOptions::new().write(true).open("/dev/kmsg").ok());
        Self {
            records,
            directory: directory.to_owned(),
            index: actor * THREADS,
            seed: mix(seed, actor as u64),
            dice: Random::new(0),
            secret: mix(seed, u64::MAX) | 1,
            trace: trace.flatten(),
            last: VecDeque::new(),
            until: Instant::now(),
        }
    }

    /// Begins a life: from here on, the dice fall as the seed and the life's number say.
    pub fn live(&mut self) {
        let life = self.records.record(self.index).next_life();
        self.dice = Random::new(mix(self.seed, life));
    }

    /// Another thread of the same actor.
    pub fn beside(&mut self, thread: usize) -> Self {
        assert!(thread < THREADS);
        Self {
            records: self.records.clone(),
            directory: self.directory.clone(),
            index: self.index + thread,
            seed: self.seed,
            dice: Random::new(self.dice.next()),
            secret: self.secret,
            trace: self.trace.as_ref().and_then(|file| file.try_clone().ok()),
            last: VecDeque::new(),
            until: self.until,
        }
    }

    /// What follows goes on for so many milliseconds.
    pub fn go_on_for(&mut self, milliseconds: u64) {
        self.until = Instant::now() + Duration::from_millis(milliseconds);
    }

    /// Whether it is to go on.
    pub fn goes_on(&self) -> bool {
        Instant::now() < self.until
    }

    /// Waits, up to so many milliseconds.
    pub fn pause(&mut self, most: u64) {
        std::thread::sleep(Duration::from_millis(self.dice.below(most + 1)));
    }

    /// Any of the devices.
    pub fn device(&mut self) -> &'static str {
        self.dice.pick(&DEVICES)
    }

    /// A file that all actors share.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Returns a file with its lock held; `None` if the lock cannot be taken. An actor that opens a
    /// device's vhost-vdpa node holds the lock shared; an actor that takes the device away from
    /// vhost-vdpa holds it exclusively.
    ///
    /// Without the lock, an open that fails (the daemon may make the reset fail) at the same time
    /// as an unbind hangs the kernel indefinitely: vhost_vdpa_remove() waits for a wake-up when the
    /// node is closed, and an open that fails does not wake it.
    pub fn lock(&mut self, device: &str, how: FlockOperation) -> Option<File> {
        let path = self.path(&format!("{device}.lock"));
        let open = || OpenOptions::new().create(true).append(true).open(&path);
        let file = self.attempt("open a lock", Wait::Short, open)?;
        let locked = || Ok(rustix::fs::flock(&file, how)?);
        self.attempt("lock", Wait::Daemon, locked)?;
        Some(file)
    }

    /// Makes a call that may fail with any error.
    pub fn attempt<T>(
        &mut self,
        name: &str,
        wait: Wait,
        call: impl FnOnce() -> io::Result<T>,
    ) -> Option<T> {
        self.make(name, wait, None, call)
    }

    /// Makes a call that may fail with these errors only.
    pub fn call<T>(
        &mut self,
        name: &str,
        wait: Wait,
        errors: &[Errno],
        call: impl FnOnce() -> io::Result<T>,
    ) -> Option<T> {
        self.make(name, wait, Some(errors), call)
    }

    fn make<T>(
        &mut self,
        name: &str,
        wait: Wait,
        errors: Option<&[Errno]>,
        call: impl FnOnce() -> io::Result<T>,
    ) -> Option<T> {
        let record = self.records.record(self.index);
        record.begin(name, wait);
        if let Some(trace) = &mut self.trace {
            let _ = writeln!(trace, "fuzz {}: {name}", self.index);
        }
        let result = call();
        record.end(result.is_ok());
        let said = match &result {
            Ok(_) => "ok".to_owned(),
            Err(error) => error.to_string(),
        };
        if let Some(trace) = &mut self.trace {
            let _ = writeln!(trace, "fuzz {}: {name}: {said}", self.index);
        }
        self.last.push_back(format!("{name}: {said}"));
        if self.last.len() > SHOWN {
            self.last.pop_front();
        }
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                let errno = Errno::from_io_error(&error);
                if errors.is_some_and(|known| !errno.is_some_and(|errno| known.contains(&errno))) {
                    self.fail(&format!("{name} must not fail with: {error}"));
                }
                None
            }
        }
    }

    /// Ends the process, and with it the test: this must not happen.
    pub fn fail(&self, why: &str) -> ! {
        let last: Vec<_> = self.last.iter().map(String::as_str).collect();
        eprintln!("{why}; the last calls:\n{}", last.join("\n"));
        std::process::exit(FAILED.into());
    }

    /// Fails if a daemon sees what it is not to see.
    pub fn inspect(&self, bytes: &[u8], what: &str) {
        let mut words = bytes.chunks_exact(8);
        if words.any(|word| word == self.secret.to_ne_bytes()) {
            self.fail(&format!("{what} shows memory of somebody else"));
        }
    }
}
