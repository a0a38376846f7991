// SPDX-License-Identifier: GPL-2.0

//! The threads of actors. An actor is a process of the fuzzer (see [`crate::fuzz`]). Its threads
//! make the calls that the fuzzer tests.
//!
//! A thread counts its calls, and the supervisor limits the duration of each call. If a call fails,
//! its error must be one of those that are allowed for the call.

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

/// Maximum number of threads that make calls in one actor.
pub const THREADS: usize = 3;

/// Number of most recent calls that a thread prints when it fails.
const SHOWN: usize = 16;

/// Names of the devices, which all actors share.
pub const DEVICES: [&str; 5] = [
    "fuzz-disk0",
    "fuzz-disk1",
    "fuzz-net0",
    "fuzz-net1",
    "fuzz-fs1",
];

/// A thread of an actor, which is a process of the fuzzer (see [`crate::fuzz`]).
#[derive(Debug)]
pub struct Actor {
    records: Arc<Records>,
    directory: PathBuf,
    index: usize,
    seed: u64,
    /// Random numbers that decide what the actor does.
    pub dice: Random,
    /// A word that fills memory which no daemon may see.
    pub secret: u64,
    trace: Option<File>,
    last: VecDeque<String>,
    until: Instant,
}

/// Derives a number from two numbers.
fn mix(a: u64, b: u64) -> u64 {
    Random::new(a ^ Random::new(b.wrapping_add(0x5eed)).next()).next()
}

impl Actor {
    /// Creates the first thread of an actor. The thread's seed is derived from the run's seed and
    /// the actor's number.
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

    /// Begins the next life of the actor (see [`crate::fuzz`]). During this life, the random
    /// numbers depend only on the actor's seed and on the number of the life.
    pub fn live(&mut self) {
        let life = self.records.record(self.index).next_life();
        self.dice = Random::new(mix(self.seed, life));
    }

    /// Creates another thread of the same actor. `thread` is the thread's number.
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

    /// Makes [`goes_on`](Self::goes_on) return true for the next `milliseconds`.
    pub fn go_on_for(&mut self, milliseconds: u64) {
        self.until = Instant::now() + Duration::from_millis(milliseconds);
    }

    /// Returns whether the time set by [`go_on_for`](Self::go_on_for) is still running.
    pub fn goes_on(&self) -> bool {
        Instant::now() < self.until
    }

    /// Sleeps for a random time of at most `most` milliseconds.
    pub fn pause(&mut self, most: u64) {
        std::thread::sleep(Duration::from_millis(self.dice.below(most + 1)));
    }

    /// Returns the name of a random device.
    pub fn device(&mut self) -> &'static str {
        self.dice.pick(&DEVICES)
    }

    /// Returns the path of a file in the directory that all actors share.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Takes a device's lock and returns the locked file, or `None` if the lock cannot be taken. An
    /// actor that opens the device's vhost-vdpa node holds the lock shared. An actor that unbinds
    /// the device from vhost-vdpa or deletes the device holds the lock exclusively.
    ///
    /// Without the lock, the kernel may hang indefinitely. vhost_vdpa_remove() waits for a
    /// completion if the node is being opened at the same time. If that open fails, for example
    /// because the daemon makes the reset fail, the kernel never signals the completion.
    pub fn lock(&mut self, device: &str, how: FlockOperation) -> Option<File> {
        let path = self.path(&format!("{device}.lock"));
        let open = || OpenOptions::new().create(true).append(true).open(&path);
        let file = self.attempt("open a lock", Wait::Short, open)?;
        let locked = || Ok(rustix::fs::flock(&file, how)?);
        self.attempt("lock", Wait::Daemon, locked)?;
        Some(file)
    }

    /// Makes a call that may fail with any error. Returns the call's value, or `None` if the call
    /// fails.
    pub fn attempt<T>(
        &mut self,
        name: &str,
        wait: Wait,
        call: impl FnOnce() -> io::Result<T>,
    ) -> Option<T> {
        self.make(name, wait, None, call)
    }

    /// Makes a call that may fail only with one of `errors`. Returns the call's value, or `None` if
    /// the call fails.
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

    /// Prints `why` and the last calls, then ends the process with an error, which makes the test
    /// fail.
    pub fn fail(&self, why: &str) -> ! {
        let last: Vec<_> = self.last.iter().map(String::as_str).collect();
        eprintln!("{why}; the last calls:\n{}", last.join("\n"));
        std::process::exit(FAILED.into());
    }

    /// Ends the process with an error if `bytes`, which a daemon sees, contain the secret word.
    pub fn inspect(&self, bytes: &[u8], what: &str) {
        let mut words = bytes.chunks_exact(8);
        if words.any(|word| word == self.secret.to_ne_bytes()) {
            self.fail(&format!("{what} shows memory of somebody else"));
        }
    }
}
