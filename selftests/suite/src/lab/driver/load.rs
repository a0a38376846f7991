// SPDX-License-Identifier: GPL-2.0

//! Programs that use more memory than there is, and check that it keeps its contents.
//!
//! - `eat` writes to all pages of its memory in turn, which are swapped out and in.
//! - `dirty` writes files through the page cache and reads them again.
//!
//! Each page has a pattern of its own in each pass, all of which is checked before the page is written
//! again. A program has two threads, each with its own part of the pages.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus};

use rustix::mm::{madvise, Advice};

use crate::lab::assert::progress::Counters;
use crate::lab::kernel::memory::PAGE;

const THREADS: usize = 2;

/// Number of 64-bit words of a page.
const WORDS: usize = PAGE as usize / 8;

/// What a program does with its memory.
#[derive(Clone, Copy, Debug)]
pub enum Kind<'a> {
    /// Writes to and reads from pages of 4 KiB.
    Eat,
    /// Does so with huge pages, as far as the kernel has some.
    EatHuge,
    /// Writes and reads files in this directory.
    Dirty(&'a Path),
}

/// A program that runs. It is killed on drop.
#[derive(Debug)]
pub struct Load {
    child: Child,
    counters: Counters,
}

impl Load {
    /// Starts a program that goes through `bytes` bytes `passes` times. `counters` is the path of a
    /// file for its counters.
    #[track_caller]
    pub fn start(kind: Kind<'_>, bytes: u64, passes: u64, counters: &Path) -> Self {
        let counters = Counters::create(counters, THREADS);
        let mut command = Command::new("/proc/self/exe");
        command.args(["--helper", "load"]).arg(counters.path());
        command.args([bytes.to_string(), passes.to_string()]);
        match kind {
            Kind::Eat => command.arg("eat"),
            Kind::EatHuge => command.arg("eat-huge"),
            Kind::Dirty(directory) => command.arg("dirty").arg(directory),
        };
        let child = command.spawn().expect("starting a program");
        Self { child, counters }
    }

    /// Returns the program's counters.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Returns how the program has ended, if it has.
    #[track_caller]
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a process")
    }

    /// Sends a signal that ends the program, as soon as that can be.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.kill();
        let _ = self.child.wait();
    }
}

/// Returns the first word of a page in a pass. The others follow from it.
fn first_word(page: u64, pass: u64) -> u64 {
    let mut word = page << 24 ^ pass;
    word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ word >> 31
}

fn fill(words: &mut [u64], page: u64, pass: u64) {
    let first = first_word(page, pass);
    for (word, step) in words.iter_mut().zip(0..) {
        *word = first.wrapping_add(step);
    }
}

fn check(words: &[u64], page: u64, pass: u64) -> io::Result<()> {
    let first = first_word(page, pass);
    for (&word, step) in words.iter().zip(0..) {
        let expected = first.wrapping_add(step);
        if word != expected {
            let message =
                format!("page {page}, pass {pass}, word {step}: {word:#x}, not {expected:#x}");
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
    }
    Ok(())
}

/// Runs the helper process `load COUNTERS BYTES PASSES eat|eat-huge|(dirty DIRECTORY)`.
pub fn run(arguments: &[String]) -> io::Result<()> {
    let [counters, bytes, passes, kind, rest @ ..] = arguments else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    // What the test itself is to be spared is what this program is for.
    rustix::process::configure_io_flusher_behavior(false)?;
    fs::write("/proc/self/oom_score_adj", "1000")?;
    let counters = Counters::open(Path::new(counters), THREADS);
    let bytes: u64 = bytes.parse().map_err(io::Error::other)?;
    let passes: u64 = passes.parse().map_err(io::Error::other)?;
    let pages = bytes / PAGE / THREADS as u64;
    let part = |thread: usize| match (kind.as_str(), rest) {
        ("eat", []) => eat(&counters, thread, pages, passes, Advice::LinuxNoHugepage),
        ("eat-huge", []) => eat(&counters, thread, pages, passes, Advice::LinuxHugepage),
        ("dirty", [directory]) => {
            let file = Path::new(directory).join(thread.to_string());
            dirty(&counters, thread, pages, passes, &file)
        }
        _ => Err(io::ErrorKind::InvalidInput.into()),
    };
    std::thread::scope(|scope| {
        let part = &part;
        let counters = &counters;
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                scope.spawn(move || {
                    let result = part(thread);
                    counters.end(thread);
                    result
                })
            })
            .collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().expect("a thread"))
    })
}

/// Returns the page that comes at `step` of a pass. Every second pass goes through the pages in order,
/// the others jump about.
fn order(step: u64, pages: u64, pass: u64) -> u64 {
    if pass % 2 == 0 {
        step
    } else {
        // A prime that does not divide the number of pages, so that each page comes once.
        step * 7919 % pages
    }
}

fn eat(
    counters: &Counters,
    thread: usize,
    pages: u64,
    passes: u64,
    advice: Advice,
) -> io::Result<()> {
    let pages = if pages % 7919 == 0 { pages - 1 } else { pages };
    // CAST: A program on a 64-bit machine.
    let len = (pages * PAGE) as usize;
    let memory = private(len)?;
    // SAFETY: The advice changes no contents. A kernel without huge pages refuses it.
    let _ = unsafe { madvise(memory.cast(), len, advice) };
    let mut pass = 0;
    while pass < passes && !(pass > 0 && counters.is_stopped()) {
        for step in 0..pages {
            let index = order(step, pages, pass);
            let at = memory.wrapping_add((index * PAGE) as usize).cast::<u64>();
            // SAFETY: The page is in the memory, which only this thread uses.
            let words = unsafe { std::slice::from_raw_parts_mut(at, WORDS) };
            let page = index * THREADS as u64 + thread as u64;
            if pass > 0 {
                check(words, page, pass - 1)?;
            }
            fill(words, page, pass);
            counters.advance(thread);
        }
        pass += 1;
    }
    Ok(())
}

/// Maps `len` bytes of memory that no other process shares, which exist until the process ends.
fn private(len: usize) -> io::Result<*mut u8> {
    use rustix::mm::{mmap_anonymous, MapFlags, ProtFlags};
    // SAFETY: A new mapping touches no other memory.
    let start = unsafe {
        mmap_anonymous(
            std::ptr::null_mut(),
            len,
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::PRIVATE,
        )
    }?;
    Ok(start.cast())
}

fn dirty(
    counters: &Counters,
    thread: usize,
    pages: u64,
    passes: u64,
    path: &Path,
) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(true);
    let file: File = options.open(path)?;
    let mut words = [0; WORDS];
    let mut pass = 0;
    while pass < passes && !(pass > 0 && counters.is_stopped()) {
        for step in 0..pages {
            if pass > 0 {
                read(&file, step, &mut words)?;
                check(&words, step, pass - 1)?;
            }
            fill(&mut words, step, pass);
            file.write_all_at(bytes(&mut words), step * PAGE)?;
            counters.advance(thread);
        }
        pass += 1;
    }
    for step in 0..pages {
        read(&file, step, &mut words)?;
        check(&words, step, pass - 1)?;
        counters.advance(thread);
    }
    Ok(())
}

fn read(file: &File, page: u64, words: &mut [u64; WORDS]) -> io::Result<()> {
    file.read_exact_at(bytes(words), page * PAGE)
}

fn bytes(words: &mut [u64; WORDS]) -> &mut [u8] {
    // SAFETY: The words are as many bytes, and any bytes are words.
    unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), PAGE as usize) }
}
