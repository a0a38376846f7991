// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What a daemon does so that its device works while memory is short.
//!
//! The kernel writes to a disk exactly when it needs memory: it writes back dirty pages, and it
//! swaps. If the disk is a process, that process must not wait for memory itself, because the memory
//! would come from the request that the process is to serve. [`prepare_for_shortage`] does what a
//! process can do about that.
//!
//! # What it guarantees
//!
//! - No page of the daemon's code, data, stacks or heap is swapped out or dropped (`mlockall(2)`).
//!   All that is mapped when the function is called is in memory when it returns. A page that is
//!   mapped later stays in memory from the first access on.
//! - What the kernel allocates on behalf of the daemon never waits for I/O, and the daemon is not
//!   slowed down because of the dirty pages of others (`PR_SET_IO_FLUSHER`, see `prctl(2)`).
//! - The OOM killer spares the daemon (`oom_score_adj`, see `proc(5)`).
//! - Freed memory stays in the heap, so that the next allocation of that size needs no page of the
//!   kernel (`mallopt(3)`, with glibc).
//!
//! The servers of this library, the virtqueues and [`blk::Disk`](crate::blk::Disk) allocate nothing
//! for a request once requests of that size and number have been served.
//!
//! # What it does not guarantee
//!
//! - **Threads.** Linux keeps the state of an I/O flusher for each thread, although `prctl(2)` speaks
//!   of the process. A new thread inherits the state of the thread that starts it, and so do the
//!   threads of its io_uring. Call the function first, before the program has other threads. Locked
//!   memory and the OOM score are the process's. A thread's stack is mapped when the thread starts, and
//!   gets its pages on first use: the first thing that a thread should do is to call
//!   [`touch_stack`]. [`Threads`](crate::server::Threads) does that.
//! - **Child processes.** `fork` hands down the state of an I/O flusher and the OOM score, but no
//!   locks of memory. `execve` drops the locks as well.
//! - **What the daemon allocates for a request** comes from the kernel's free pages. It may find none,
//!   and then waits until the kernel has dropped clean pages.
//! - **What the kernel allocates below the daemon**: for the file system or the network on which the
//!   disk's data is, and for the page cache if the daemon does not use direct I/O.
//! - **Limits of memory control groups.** A daemon in a group that is at its limit waits for the group's
//!   own memory.
//!
//! Memory that a client of vhost-vdpa shares, such as that of a virtual machine, is not locked.

use std::fmt;
use std::fs;
use std::hint::black_box;
use std::io;
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::mm::{mlockall, MlockAllFlags};
use rustix::process::{configure_io_flusher_behavior, getrlimit, setrlimit, Resource, Rlimit};
use rustix::thread::{capabilities, CapabilitySet};

/// The score of a process that the OOM killer spares.
const SPARED: &str = "-1000";

const SCORE: &str = "/proc/self/oom_score_adj";

/// Size in bytes of the part of a stack that [`touch_stack`] makes ready. The threads of this library
/// need less than a quarter of it.
const STACK: usize = 128 << 10;

/// The smallest page size of Linux, in bytes.
const PAGE: usize = 4096;

/// Whether memory that is mapped from now on is locked.
static LOCKED: AtomicBool = AtomicBool::new(false);

/// A step of [`prepare_for_shortage`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Step {
    /// To lock the memory of the process.
    Lock,
    /// To become an I/O flusher.
    Flusher,
    /// To be spared by the OOM killer.
    Oom,
}

impl Step {
    /// Returns what failed if the step did, and what the daemon lacks.
    fn describe(self) -> (&'static str, &'static str) {
        match self {
            Self::Lock => (
                "locking memory",
                "needs CAP_IPC_LOCK, or no limit of locked memory (RLIMIT_MEMLOCK; \
                 LimitMEMLOCK=infinity in a unit of systemd)",
            ),
            Self::Flusher => ("becoming an I/O flusher", "needs CAP_SYS_RESOURCE"),
            Self::Oom => (
                "being spared by the OOM killer",
                "needs CAP_SYS_RESOURCE, or OOMScoreAdjust=-1000 in a unit of systemd",
            ),
        }
    }
}

/// A step that failed.
#[derive(Debug)]
pub struct Failure {
    step: Step,
    error: io::Error,
}

impl Failure {
    /// Returns the step.
    pub fn step(&self) -> Step {
        self.step
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (what, lacks) = self.step.describe();
        write!(f, "{what}: {}: {lacks}", self.error)
    }
}

/// The steps of [`prepare_for_shortage`] that failed.
#[derive(Debug)]
pub struct Error {
    failures: Vec<Failure>,
}

impl Error {
    /// Returns the steps that failed, at least one. All other steps were taken.
    pub fn failures(&self) -> &[Failure] {
        &self.failures
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, failure) in self.failures.iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(f, "{separator}{failure}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        let kind = error.failures[0].error.kind();
        Self::new(kind, error)
    }
}

/// Makes this process fit to serve a device to which the kernel writes while memory is short, such as
/// a disk that has swap space. See the [module](self) for what that means.
///
/// A daemon calls this once, as the first thing that it does: threads that exist already do not become
/// I/O flushers. The limit of locked memory is raised as far as the process may.
///
/// # Errors
///
/// Fails if the process lacks a privilege or a limit is too low. The error says which step failed, and
/// what the process lacks. The other steps are taken all the same, so that a daemon without privileges
/// can print the error and go on.
pub fn prepare_for_shortage() -> Result<(), Error> {
    keep_freed_memory();
    let steps = [
        (Step::Flusher, become_flusher()),
        (Step::Oom, be_spared()),
        (Step::Lock, lock()),
    ];
    let failures: Vec<Failure> = steps
        .into_iter()
        .filter_map(|(step, result)| result.err().map(|error| Failure { step, error }))
        .collect();
    if failures.is_empty() {
        Ok(())
    } else {
        Err(Error { failures })
    }
}

/// Makes the pages of a thread's stack ready that the thread may use later. A thread calls this first.
///
/// Does nothing if memory is not [locked](prepare_for_shortage).
pub fn touch_stack() {
    if is_locked() {
        touch();
    }
}

/// Returns an empty vector with memory for `capacity` elements, all of which is there: writing to it
/// for the first time takes no page of the kernel.
pub fn touched<T>(capacity: usize) -> Vec<T> {
    let mut vector = Vec::with_capacity(capacity);
    // The compiler must not combine both steps to an allocation of pages that are zero anyway.
    let spare = black_box(vector.spare_capacity_mut());
    spare.fill_with(MaybeUninit::zeroed);
    black_box(spare);
    vector
}

/// Returns whether [`prepare_for_shortage`] has locked the memory of this process.
pub fn is_locked() -> bool {
    LOCKED.load(Ordering::Relaxed)
}

#[inline(never)]
fn touch() {
    let mut bytes = [const { MaybeUninit::<u8>::uninit() }; STACK];
    for at in (0..STACK).step_by(PAGE) {
        bytes[at].write(0);
    }
    black_box(&mut bytes);
}

/// Makes the allocator keep memory that is freed.
fn keep_freed_memory() {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: The function only changes settings of the allocator.
        unsafe {
            // The heap never becomes smaller, and large blocks are part of it.
            libc::mallopt(libc::M_TRIM_THRESHOLD, -1);
            libc::mallopt(libc::M_MMAP_MAX, 0);
        }
    }
}

fn become_flusher() -> io::Result<()> {
    Ok(configure_io_flusher_behavior(true)?)
}

fn be_spared() -> io::Result<()> {
    if fs::read_to_string(SCORE)?.trim() == SPARED {
        return Ok(());
    }
    fs::write(SCORE, SPARED)
}

fn lock() -> io::Result<()> {
    let unlimited = Rlimit {
        current: None,
        maximum: None,
    };
    if setrlimit(Resource::Memlock, unlimited).is_err() {
        let limit = getrlimit(Resource::Memlock);
        let highest = Rlimit {
            current: limit.maximum,
            ..limit
        };
        // If this fails, the limit is as high as it may be.
        let _ = setrlimit(Resource::Memlock, highest);
    }
    let may_exceed = capabilities(None)?
        .effective
        .contains(CapabilitySet::IPC_LOCK);
    if !may_exceed {
        if let Some(limit) = getrlimit(Resource::Memlock).current {
            // With a limit, the driver's memory could not be mapped some time later, when the driver is
            // there and its requests wait.
            let message = format!("the limit is {} KiB", limit >> 10);
            return Err(io::Error::new(io::ErrorKind::OutOfMemory, message));
        }
    }
    // Pages that exist are needed now. Of what is mapped later, only the pages that are used are
    // needed, not all of each thread's stack.
    mlockall(MlockAllFlags::CURRENT)?;
    mlockall(MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT)?;
    LOCKED.store(true, Ordering::Relaxed);
    touch();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_which_steps_failed_and_what_is_lacking() {
        let failure = |step| Failure {
            step,
            error: io::ErrorKind::PermissionDenied.into(),
        };
        let error = Error {
            failures: vec![failure(Step::Lock), failure(Step::Flusher)],
        };
        let text = error.to_string();
        assert!(text.contains("locking memory: permission denied: needs CAP_IPC_LOCK"));
        assert!(text.contains("; becoming an I/O flusher: permission denied: needs CAP_SYS_RES"));
        let error = io::Error::from(error);
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        assert_eq!(error.to_string(), text);
    }

    #[test]
    fn a_stack_is_touched() {
        // Must not overflow the stack of a thread, which is 2 MiB.
        std::thread::spawn(touch).join().unwrap();
    }
}
