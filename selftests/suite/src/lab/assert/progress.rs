// SPDX-License-Identifier: GPL-2.0

//! Counters of the progress of programs, the longest time for which one stood still, and what each
//! task waits for if nothing goes on.

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use vduse::Mapping;
use vduse_uapi::ACCESS_RW;

use crate::lab::kernel::memory::PAGE;

/// The counter of a thread that has ended.
const ENDED: u64 = u64::MAX;

/// Counters in a file that two processes share, one for each thread of a program, and a request to
/// the program to end.
#[derive(Debug)]
pub struct Counters {
    page: Mapping,
    path: PathBuf,
    threads: usize,
}

impl Counters {
    /// Creates the file with the counters of `threads` threads.
    #[track_caller]
    pub fn create(path: &Path, threads: usize) -> Self {
        fs::write(path, [0; PAGE as usize]).expect("a file");
        Self::open(path, threads)
    }

    /// Opens the file that another process has created.
    #[track_caller]
    pub fn open(path: &Path, threads: usize) -> Self {
        assert!(threads < PAGE as usize / 8);
        let file = OpenOptions::new().read(true).write(true).open(path);
        let file = file.expect("opening the counters");
        let page = Mapping::of_file(file.as_fd(), 0, PAGE, ACCESS_RW).expect("mapping them");
        Self {
            page,
            path: path.to_owned(),
            threads,
        }
    }

    /// Returns the path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the number of threads.
    pub fn threads(&self) -> usize {
        self.threads
    }

    fn word(&self, index: usize) -> &AtomicU64 {
        let address = self.page.address().cast::<u64>().wrapping_add(index);
        // SAFETY: The page has the word, which is aligned, and which all processes use as an atomic.
        unsafe { AtomicU64::from_ptr(address) }
    }

    /// Records that a thread has come one step further.
    pub fn advance(&self, thread: usize) {
        self.word(1 + thread).fetch_add(1, Ordering::Relaxed);
    }

    /// Records that a thread has ended.
    pub fn end(&self, thread: usize) {
        self.word(1 + thread).store(ENDED, Ordering::Relaxed);
    }

    fn of(&self, thread: usize) -> u64 {
        self.word(1 + thread).load(Ordering::Relaxed)
    }

    /// Asks the program to end.
    pub fn stop(&self) {
        self.word(0).store(1, Ordering::Relaxed);
    }

    /// Returns whether the program is to end.
    pub fn is_stopped(&self) -> bool {
        self.word(0).load(Ordering::Relaxed) != 0
    }
}

/// Measures for how long the threads of programs stand still.
#[derive(Debug)]
pub struct Stalls {
    /// For each thread, its counter, and when that last changed.
    last: Vec<(u64, Instant)>,
    longest: Duration,
    looked: Instant,
    /// The longest time between two looks, in which this process did not run either.
    blind: Duration,
}

/// Time between two looks.
const INTERVAL: Duration = Duration::from_millis(20);

impl Stalls {
    /// Begins to measure.
    pub fn new(all: &[&Counters]) -> Self {
        let now = Instant::now();
        let threads = all.iter().map(|counters| counters.threads).sum();
        Self {
            last: vec![(0, now); threads],
            longest: Duration::ZERO,
            looked: now,
            blind: Duration::ZERO,
        }
    }

    /// Waits for a moment, and looks at the counters. Returns for how long the thread that has stood
    /// still longest has done so by now.
    pub fn look(&mut self, all: &[&Counters]) -> Duration {
        std::thread::sleep(INTERVAL);
        let now = Instant::now();
        self.blind = self.blind.max(now - self.looked);
        self.looked = now;
        let counters = all
            .iter()
            .flat_map(|counters| (0..counters.threads).map(|thread| counters.of(thread)));
        let mut worst = Duration::ZERO;
        for ((last, since), counter) in self.last.iter_mut().zip(counters) {
            if *last == ENDED {
                continue;
            }
            worst = worst.max(now - *since);
            if *last != counter {
                (*last, *since) = (counter, now);
            }
        }
        self.longest = self.longest.max(worst);
        worst
    }

    /// Returns the sum of the counters of threads that have not ended.
    pub fn steps(&self) -> u64 {
        let counters = self.last.iter().map(|&(counter, _)| counter);
        counters.filter(|&counter| counter != ENDED).sum()
    }

    /// Returns the longest time for which a thread stood still.
    pub fn longest(&self) -> Duration {
        self.longest
    }

    /// Returns the longest time for which this process did not look. No program may have run then, for
    /// example because the host had other things to do.
    pub fn blind(&self) -> Duration {
        self.blind
    }
}

/// The files that say how much memory there is, and the lines of interest.
const MEMORY: &[(&str, &[&str])] = &[
    (
        "/proc/meminfo",
        &[
            "MemTotal",
            "MemFree",
            "MemAvailable",
            "Active",
            "Inactive",
            "Unevictable",
            "Mlocked",
            "SwapTotal",
            "SwapFree",
            "Dirty",
            "Writeback",
            "AnonPages",
            "Slab",
            "PageTables",
        ],
    ),
    (
        "/proc/vmstat",
        &[
            "pswpin",
            "pswpout",
            "allocstall",
            "pgscan_direct ",
            "pgsteal_direct ",
            "oom_kill",
            "nr_vmscan_write",
            "nr_writeback",
        ],
    ),
];

/// The files that say what tasks wait for, opened before memory is short. To open a file takes memory,
/// and so does to read it for the first time.
#[derive(Debug)]
pub struct Waits {
    files: Vec<(String, File)>,
    buffer: Vec<u8>,
    text: String,
}

impl Waits {
    /// Opens the files of the block device called `disk`, and of the tasks whose names begin as one of
    /// `names`.
    pub fn new(disk: &str, names: &[&str]) -> Self {
        let mut paths: Vec<(String, PathBuf)> = Vec::new();
        for (path, _) in MEMORY {
            paths.push((path.to_string(), path.into()));
        }
        for name in ["inflight", "stat"] {
            let path = format!("/sys/block/{disk}/{name}");
            paths.push((format!("{disk}/{name}"), path.into()));
        }
        for task in tasks() {
            let name = fs::read_to_string(task.join("comm")).unwrap_or_default();
            if names.iter().any(|start| name.starts_with(start)) {
                let id = task.file_name().unwrap_or_default().to_string_lossy();
                for file in ["wchan", "stack"] {
                    paths.push((format!("{} {id} {file}", name.trim()), task.join(file)));
                }
            }
        }
        let open = |(name, path): (String, PathBuf)| Some((name, File::open(path).ok()?));
        let mut waits = Self {
            files: paths.into_iter().filter_map(open).collect(),
            buffer: vec![1; LONGEST],
            // Filled once, so that the memory is there.
            text: "x".repeat(4 * LONGEST),
        };
        waits.look();
        waits
    }

    /// Reads what the files say now, without an allocation.
    pub fn look(&mut self) {
        let text = &mut self.text;
        text.clear();
        for (index, (name, file)) in self.files.iter().enumerate() {
            let Ok(len) = file.read_at(&mut self.buffer, 0) else {
                continue;
            };
            let found = std::str::from_utf8(&self.buffer[..len]).unwrap_or_default();
            let wanted = MEMORY.get(index).map(|(_, wanted)| *wanted);
            let is_of_interest = |line: &&str| {
                wanted.is_none_or(|wanted| wanted.iter().any(|start| line.starts_with(start)))
            };
            text.push_str(name);
            for line in found.lines().filter(is_of_interest) {
                text.push_str("\n   ");
                for word in line.trim_start_matches("[<0>]").split_whitespace() {
                    text.push(' ');
                    text.push_str(word);
                }
            }
            text.push('\n');
        }
    }

    /// Returns what the files said.
    pub fn text(&self) -> &str {
        &self.text
    }
}

/// Maximum length in bytes of a file of [`Waits`].
const LONGEST: usize = 64 << 10;

/// Returns the directories of all tasks.
fn tasks() -> impl Iterator<Item = PathBuf> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .map(|process| process.path().join("task"))
        .filter_map(|tasks| fs::read_dir(tasks).ok())
        .flat_map(|tasks| tasks.flatten().map(|task| task.path()))
}
