// SPDX-License-Identifier: GPL-2.0

//! The records of all actors, in memory that the processes share.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use vduse::Mapping;
use vduse_uapi::ACCESS_RW;
use vm_memory::Bytes;

/// Name of the file with the records, in the directory that all actors share.
pub const FILE: &str = "records";

/// Size in bytes of a record.
const RECORD: usize = 128;

/// Maximum length of a call's name in bytes, including a terminating zero.
const NAME: usize = 40;

/// Offsets of the fields of a record.
mod at {
    pub const TICKS: usize = 0;
    pub const CALLS: usize = 8;
    pub const GOOD: usize = 16;
    pub const LIFE: usize = 24;
    pub const PATIENCE: usize = 32;
    pub const NAME: usize = 40;
}

/// The expected duration of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Short, because the call does not wait for userspace.
    Short,
    /// Long enough for a few answers of a daemon.
    Daemon,
    /// Indefinite. The supervisor kills the process after a while.
    Endless,
}

impl Wait {
    /// Returns the time limit, on a machine of normal speed, for a call with this expected
    /// duration.
    pub fn limit(self) -> Duration {
        Duration::from_secs(match self {
            Self::Short => 15,
            Self::Daemon => 40,
            Self::Endless => 1,
        })
    }
}

/// The records of all threads.
#[derive(Debug)]
pub struct Records {
    memory: Mapping,
}

impl Records {
    /// Opens the file at `path` with `records` records. Creates the file if necessary.
    pub fn open(path: &Path, records: usize) -> io::Result<Self> {
        let len = (records * RECORD) as u64;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        file.set_len(len)?;
        let memory = Mapping::of_file(file.as_fd(), 0, len, ACCESS_RW)?;
        Ok(Self { memory })
    }

    /// Returns the record of the thread with the number `index`.
    pub fn record(&self, index: usize) -> Record<'_> {
        assert!((index + 1) * RECORD <= self.memory.len());
        Record {
            records: self,
            start: index * RECORD,
        }
    }
}

/// The record of a thread, which the thread writes and the supervisor reads.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    records: &'a Records,
    start: usize,
}

impl Record<'_> {
    fn get(&self, at: usize) -> u64 {
        let bytes = self.records.memory.bytes();
        bytes.load(self.start + at, Ordering::SeqCst).unwrap_or(0)
    }

    fn set(&self, at: usize, value: u64) {
        let bytes = self.records.memory.bytes();
        let _ = bytes.store(value, self.start + at, Ordering::SeqCst);
    }

    /// Returns a counter that increases whenever a call begins or ends.
    pub fn ticks(&self) -> u64 {
        self.get(at::TICKS)
    }

    /// Returns the number of calls.
    pub fn calls(&self) -> u64 {
        self.get(at::CALLS)
    }

    /// Returns the number of calls that succeeded.
    pub fn good(&self) -> u64 {
        self.get(at::GOOD)
    }

    /// Returns the expected duration of the current call, or `None` if there is no current call.
    pub fn wait(&self) -> Option<Wait> {
        match self.get(at::PATIENCE) {
            1 => Some(Wait::Short),
            2 => Some(Wait::Daemon),
            3 => Some(Wait::Endless),
            _ => None,
        }
    }

    /// Returns the name of the last call.
    pub fn name(&self) -> String {
        let mut bytes = [0; NAME];
        let _ = self
            .records
            .memory
            .bytes()
            .read_slice(&mut bytes, self.start + at::NAME);
        let text = bytes.split(|&byte| byte == 0).next().unwrap_or_default();
        String::from_utf8_lossy(text).into_owned()
    }

    /// Records that a call begins.
    pub fn begin(&self, name: &str, wait: Wait) {
        let mut bytes = [0; NAME];
        let len = name.len().min(NAME - 1);
        bytes[..len].copy_from_slice(&name.as_bytes()[..len]);
        let all = self.records.memory.bytes();
        let _ = all.write_slice(&bytes, self.start + at::NAME);
        self.set(at::CALLS, self.calls() + 1);
        let patience = match wait {
            Wait::Short => 1,
            Wait::Daemon => 2,
            Wait::Endless => 3,
        };
        self.set(at::PATIENCE, patience);
        self.set(at::TICKS, self.ticks() + 1);
    }

    /// Records that the current call has ended. `good` tells whether the call succeeded.
    pub fn end(&self, good: bool) {
        self.set(at::GOOD, self.good() + u64::from(good));
        self.rest();
    }

    /// Records that there is no current call. This is also necessary after a process was killed
    /// during a call.
    pub fn rest(&self) {
        self.set(at::PATIENCE, 0);
        self.set(at::TICKS, self.ticks() + 1);
    }

    /// Records that a life begins. Returns the number of the life, starting from 0.
    pub fn next_life(&self) -> u64 {
        let life = self.get(at::LIFE);
        self.set(at::LIFE, life + 1);
        life
    }
}
