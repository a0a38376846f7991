// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The worker of a virtqueue: it executes requests with io_uring, many at a time.
//!
//! Requests, completions and kicks are handled in batches: a turn of the loop takes all available
//! requests, submits their operations with one system call, and publishes all that are complete
//! with one interrupt at most. While nothing is in progress, the worker waits for the kick itself,
//! which is cheaper than to wait through the ring.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use io_uring::{opcode, types, EnterFlags, IoUring, Probe};
use vduse::blk::{complete, Status};
use vduse::memory;
use vduse::server::{self, ServedQueue};
use vduse::Mapping;

use crate::aligned::Aligned;
use crate::flight::{Copies, Disk, Fixed, Next, Slot, IMAGE};
use crate::image::Image;

/// Size of a sector in bytes.
const SECTOR: usize = 512;

/// The feature bit of disks whose driver flushes.
const FLUSH: u64 = 1 << 9;

/// The kick's index among the files that are registered with the ring.
const KICK: types::Fixed = types::Fixed(1);

/// How many turns pass until the worker tries again whether operations are complete at once.
const RETRY: u32 = 64;

/// Number of segments of a request for which there is memory before the request arrives. A kernel
/// driver's requests are not larger if the VDUSE driver limits them (`vduse_rs` does), or if the disk is
/// to have swap space.
pub const SEGMENTS: usize = 64;

/// Maximum number of requests in progress. With the operation that waits for a kick, these are as many
/// operations as the kernel keeps the memory of for later ones (`IO_ALLOC_CACHE_MAX`).
const REQUESTS: u16 = 127;

/// The tag of the operation that waits for a kick. The tags of others are indices of slots.
const KICKED: u64 = u64::MAX;

/// A worker that serves one virtqueue of a disk.
pub struct Worker {
    image: Arc<Image>,
    serial: String,
}

impl Worker {
    /// Creates a worker.
    pub fn new(image: Arc<Image>, serial: &str) -> Self {
        Self {
            image,
            serial: serial.to_owned(),
        }
    }
}

impl server::Worker for Worker {
    fn serve(&mut self, queue: &mut ServedQueue) -> io::Result<()> {
        let size = queue.vq.settings().size;
        let requests = size.min(REQUESTS);
        let segments = usize::from(size).min(SEGMENTS);
        let mut ring = new_ring(u32::from(requests) + 1)?;
        if memory::is_locked() {
            // io_uring has one thread for what may block, as for another it would wait for memory with
            // requests waiting. (Writes to the same file are one after the other in any case.)
            ring.submitter().register_iowq_max_workers(&mut [1, 1])?;
        }
        let files = [self.image.fd(), queue.kick().as_raw_fd()];
        ring.submitter().register_files(&files)?;
        let fixed = queue.umem().map(|umem| register(&ring, umem));
        let fixed = fixed.unwrap_or_default();
        // An operation with registered memory has an entry for each page that a segment touches.
        let entries = if fixed.len > 0 {
            3 * segments
        } else {
            segments
        };
        warm_up(&mut ring, requests + 1, entries, &self.image);
        let mut progress = Progress {
            disk: Disk {
                image: &self.image,
                serial: &self.serial,
                write_through: queue.vq.settings().features & FLUSH == 0,
                copies: &Copies::default(),
                fixed,
            },
            // The slots keep the driver's memory mapped, but only as long as the queue is served.
            slots: (0..requests).map(|_| Slot::new(segments)).collect(),
            free: (0..requests.into()).rev().collect(),
            ring,
            queue,
            count: Box::new(0),
            waits_for_kick: false,
            at_once: true,
            turns: 0,
        };
        progress.serve()
    }
}

/// Registers memory with a ring. If the kernel refuses that, the memory is used without.
fn register(ring: &IoUring, umem: &Arc<Mapping>) -> Fixed {
    let vector = libc::iovec {
        iov_base: umem.address().cast(),
        iov_len: umem.len(),
    };
    // SAFETY: The kernel pins the pages, so that they exist as long as the ring may use them.
    if let Err(error) = unsafe { ring.submitter().register_buffers(&[vector]) } {
        eprintln!("io_uring: registering memory: {error}");
        return Fixed::default();
    }
    let mut probe = Probe::new();
    let probed = ring.submitter().register_probe(&mut probe);
    let codes = [opcode::ReadvFixed::CODE, opcode::WritevFixed::CODE];
    Fixed {
        start: umem.address() as usize,
        len: umem.len(),
        // Linux before 6.15 has no such operations.
        vectored: probed.is_ok() && codes.iter().all(|&code| probe.is_supported(code)),
    }
}

/// Returns the error of `io_uring_enter`, unless it only has to be called again: a signal interrupted
/// it, memory is short, or completions have to be reaped first.
fn permanent(result: io::Result<usize>) -> io::Result<()> {
    match result {
        Err(error)
            if !matches!(
                error.kind(),
                io::ErrorKind::Interrupted
                    | io::ErrorKind::WouldBlock
                    | io::ErrorKind::ResourceBusy
            ) =>
        {
            Err(error)
        }
        _ => Ok(()),
    }
}

/// Creates a ring for operations of this thread.
fn new_ring(entries: u32) -> io::Result<IoUring> {
    let mut builder = IoUring::builder();
    builder.setup_clamp();
    let mut of_this_thread = builder.clone();
    of_this_thread.setup_single_issuer().setup_defer_taskrun();
    // Linux before 6.1 has no such rings.
    of_this_thread
        .build(entries)
        .or_else(|_| builder.build(entries))
}

/// Makes the kernel allocate what it needs for `count` operations of `segments` segments at a time,
/// by as many reads from the beginning of the image, less one, and a flush. The kernel keeps that
/// memory for the operations that follow, so that they need none when memory is short, and the thread
/// that flushes. (Reads that are complete at once need less, here as well as later.)
fn warm_up(ring: &mut IoUring, count: u16, segments: usize, image: &Image) {
    let mut buffer = Aligned::new(image.alignment().max(SECTOR));
    let bytes = buffer.bytes_mut();
    let vector = libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: bytes.len(),
    };
    let vectors = vec![vector; segments];
    // CAST: There are few segments.
    let read = opcode::Readv::new(IMAGE, vectors.as_ptr(), vectors.len() as u32).build();
    let flush = opcode::Fsync::new(IMAGE).build();
    for number in 0..count {
        let entry = if number == 0 { &flush } else { &read };
        // SAFETY: The buffer and the vectors exist until all operations are complete, below. What is
        // read does not matter.
        let pushed = unsafe { ring.submission().push(entry) };
        pushed.expect("an entry for each operation");
    }

    let mut left = count;
    while left != 0 {
        if let Err(error) = permanent(ring.submit_and_wait(left.into())) {
            // The kernel may write to memory that would be freed.
            eprintln!("io_uring: {error}");
            std::process::abort();
        }
        // What fails, for example on an empty image, would fail later as well.
        // CAST: There are no more than `count`.
        left -= ring.completion().count() as u16;
    }
}

/// The requests in progress.
struct Progress<'a> {
    disk: Disk<'a>,
    slots: Vec<Slot>,
    /// The slots without a request.
    free: Vec<usize>,
    ring: IoUring,
    queue: &'a mut ServedQueue,
    /// Where an operation that waits for a kick puts the eventfd's counter.
    count: Box<u64>,
    /// Whether there is such an operation.
    waits_for_kick: bool,
    /// Whether the last operations were complete when the system call that began them returned, as
    /// with a file in memory.
    at_once: bool,
    /// Number of turns in which operations were submitted.
    turns: u32,
}

impl Progress<'_> {
    fn in_progress(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Serves requests until the queue is stopped.
    fn serve(&mut self) -> io::Result<()> {
        loop {
            self.take()?;
            if self.queue.is_stopped() {
                return Ok(());
            }
            if self.in_progress() == 0 && !self.waits_for_kick {
                if !self.queue.vq.enable_kicks() {
                    self.queue.wait()?;
                    self.queue.vq.disable_kicks();
                }
                continue;
            }
            if self.in_progress() != 0 && self.expects_at_once() {
                self.submit()?;
                self.reap();
                self.at_once = self.in_progress() == 0;
                if self.at_once {
                    continue;
                }
            }
            // While there is room for another request, the worker waits for a kick as well.
            if !self.free.is_empty() {
                if self.queue.vq.enable_kicks() {
                    continue;
                }
                if !self.waits_for_kick {
                    self.wait_for_kick();
                }
            }
            self.submit_and_wait()?;
            self.reap();
        }
    }

    /// Returns whether the operations that were added are likely to be complete once they are
    /// submitted. If so, the worker need not wait for kicks through the ring meanwhile.
    fn expects_at_once(&mut self) -> bool {
        self.turns = self.turns.wrapping_add(1);
        self.at_once || self.turns % RETRY == 0
    }

    /// Takes all available requests, and begins them.
    fn take(&mut self) -> io::Result<()> {
        while let Some(&index) = self.free.last() {
            let slot = &mut self.slots[index];
            if !self.queue.vq.pop(&mut slot.chain)? {
                break;
            }
            match slot.begin(self.disk) {
                Next::Operation => {
                    self.free.pop();
                    self.push(index);
                }
                Next::Done(status, written) => self.finish(index, status, written),
            }
        }
        self.queue.complete();
        Ok(())
    }

    /// Adds the operation of a slot to the ring.
    fn push(&mut self, index: usize) {
        // SAFETY: The slot stays in `slots`, and is not free before the operation is complete.
        let entry = unsafe { self.slots[index].entry() }.user_data(index as u64);
        // SAFETY: The operation's buffers are the slot's. Dropping `self` waits until the operation
        // is complete.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        pushed.expect("an entry for each slot");
    }

    /// Adds the operation that waits for a kick.
    fn wait_for_kick(&mut self) {
        let into = (&raw mut *self.count).cast::<u8>();
        let entry = opcode::Read::new(KICK, into, size_of::<u64>() as u32)
            .build()
            .user_data(KICKED);
        // SAFETY: `count` is as long as the operation says, and dropping `self` waits until the
        // operation is complete.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        pushed.expect("an entry for the kick");
        self.waits_for_kick = true;
    }

    /// Submits the operations that were added. Those that can be are complete when this returns.
    fn submit(&mut self) -> io::Result<()> {
        // CAST: The ring has fewer entries than 2^32.
        let count = self.ring.submission().len() as u32;
        // SAFETY: The ring's queues are as the kernel expects them, and there is no argument.
        let result = unsafe {
            self.ring.submitter().enter::<libc::sigset_t>(
                count,
                0,
                EnterFlags::GETEVENTS.bits(),
                None,
            )
        };
        permanent(result)
    }

    /// Submits the operations that were added, and waits until at least one is complete.
    fn submit_and_wait(&mut self) -> io::Result<()> {
        permanent(self.ring.submit_and_wait(1))
    }

    /// Handles the operations that are complete, and publishes the requests that are.
    fn reap(&mut self) {
        loop {
            let Some(done) = self.ring.completion().next() else {
                break;
            };
            if done.user_data() == KICKED {
                self.waits_for_kick = false;
                self.queue.vq.disable_kicks();
                continue;
            }
            // CAST: The tag is the index of a slot.
            let index = done.user_data() as usize;
            match self.slots[index].go_on(done.result()) {
                Next::Operation => self.push(index),
                Next::Done(status, written) => {
                    self.finish(index, status, written);
                    self.free.push(index);
                }
            }
        }
        self.queue.complete();
    }

    /// Completes a request. The driver sees that when the queue's requests are next published.
    fn finish(&mut self, index: usize, status: Status, written: u32) {
        let chain = &self.slots[index].chain;
        let written = complete(chain, status, written);
        self.queue.vq.push(chain, written);
    }
}

/// Completes all requests in progress, whatever has happened: the kernel may still use the memory of
/// the slots.
impl Drop for Progress<'_> {
    fn drop(&mut self) {
        while self.in_progress() != 0 || self.waits_for_kick {
            if self.waits_for_kick && self.in_progress() == 0 {
                // A queue that is stopped was kicked, so that this operation ends. After an error,
                // it is ended here.
                self.queue.kick_self();
            }
            if let Err(error) = self.submit_and_wait() {
                // The kernel may write to memory that would be freed.
                eprintln!("io_uring: {error}");
                std::process::abort();
            }
            self.reap();
        }
        self.queue.complete();
        // A ring that is dropped gives its files back some time later, but the image must be free
        // when the program has ended.
        let _ = self.ring.submitter().unregister_files();
    }
}
