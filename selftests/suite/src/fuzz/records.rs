// SPDX-License-Identifier: GPL-2.0

//! The records that all processes share, in a file in memory.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use vduse::Mapping;
use vduse_uapi::ACCESS_RW;
use vm_memory::Bytes;

/// Name of the file in the directory that all actors share.
pub const FILE: &str = "records";

/// Size in bytes of a record.
const RECORD: usize = 128;

/// The length of a call's name.
const NAME: usize = 40;

/// Where things are in a record.
mod at {
    pub const TICKS: usize = 0;
    pub const CALLS: usize = 8;
    pub const GOOD: usize = 16;
    pub const LIFE: usize = 24;
    pub const PATIENCE: usize = 32;
    pub const NAME: usize = 40;
}

/// How long a call may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Not long: the call does not wait for userspace.
    Short,
    /// As long as a daemon may take, a few times over.
    Daemon,
    /// For ever: the supervisor kills the process after a while.
    Endless,
}

impl Wait {
    /// How long that is.
    pub fn limit(self) -> Duration {
        Duration::from_secs(match self {
            Self::Short => 15,
            Self::Daemon => 40,
            Self::Endless => 1,
        })
    }
}

/// The records, in shared memory.
#[derive(Debug)]
pub struct Records {
    memory: Mapping,
}

impl Records {
    /// Makes the file, for so many records, or opens it.
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

    /// A thread's record.
    pub fn record(&self, index: usize) -> Record<'_> {
        assert!((index + 1) * RECORD <= self.memory.len());
        Record {
            records: self,
            start: index * RECORD,
        }
    }
}

/// What a thread says of itself.
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

    /// A number that moves whenever a call begins or ends.
    pub fn ticks(&self) -> u64 {
        self.get(at::TICKS)
    }

    /// How many calls were made.
    pub fn calls(&self) -> u64 {
        self.get(at::CALLS)
    }

    /// How many succeeded.
    pub fn good(&self) -> u64 {
        self.get(at::GOOD)
    }

    /// How long the current call may take; `None` between calls.
    pub fn wait(&self) -> Option<Wait> {
        match self.get(at::PATIENCE) {
            1 => Some(Wait::Short),
            2 => Some(Wait::Daemon),
            3 => Some(Wait::Endless),
            _ => None,
        }
    }

    /// The name of the last call.
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

    /// A call begins.
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

    /// A call has ended.
    pub fn end(&self, good: bool) {
        self.set(at::GOOD, self.good() + u64::from(good));
        self.rest();
    }

    /// No call is under way: the process that had one may be gone.
    pub fn rest(&self) {
        self.set(at::PATIENCE, 0);
        self.set(at::TICKS, self.ticks() + 1);
    }

    /// A life begins: returns its number, from 0 on.
    pub fn next_life(&self) -> u64 {
        let life = self.get(at::LIFE);
        self.set(at::LIFE, life + 1);
        life
    }
}
