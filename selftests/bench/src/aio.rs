// SPDX-License-Identifier: GPL-2.0

//! A generator that keeps many requests in flight with the kernel's asynchronous I/O (`io_submit`).
//! fio gives the same figures within 2 %, but for each figure, fio needs a process of its own and
//! seconds to start.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use libc::{c_long, c_ulong, timespec};
use vduse::Mapping;
use vduse_selftests::lab::kernel::memory::PAGE;
use vm_memory::Bytes;

/// The direction of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Direction {
    /// A read.
    Read = 0,
    /// A write.
    Write = 1,
}

/// A request, `struct iocb` of `include/uapi/linux/aio_abi.h`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
struct Request {
    data: u64,
    key: u32,
    rw_flags: u32,
    opcode: u16,
    priority: i16,
    fd: u32,
    buffer: u64,
    bytes: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    event: u32,
}

/// The result of a request, `struct io_event`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
struct Event {
    data: u64,
    request: u64,
    result: i64,
    second_result: i64,
}

/// Requests that are in flight at the same time. Each has its own buffer.
#[derive(Debug)]
pub struct Flight {
    context: c_ulong,
    buffers: Mapping,
    /// Distance from one buffer to the next, in bytes.
    stride: usize,
    requests: Vec<Request>,
    /// Space for the results of all requests.
    events: Vec<Event>,
    under_way: usize,
}

fn check(result: c_long) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

impl Flight {
    /// Allocates buffers for `depth` requests of at most `bytes` bytes each.
    pub fn new(depth: usize, bytes: usize) -> io::Result<Self> {
        let page = PAGE as usize;
        let stride = bytes.next_multiple_of(page);
        let buffers = Mapping::anonymous(depth * stride)?;
        // The kernel allocates a page at the first write to it, and mostly takes physically
        // consecutive pages. Write first to all even pages and then to all odd ones, so that
        // adjacent pages of a buffer are not physically adjacent. A request of many pages then
        // always has many segments.
        for parity in [0, 1] {
            for at in (parity * page..buffers.len()).step_by(2 * page) {
                buffers
                    .bytes()
                    .write_obj(1u8, at)
                    .map_err(io::Error::other)?;
            }
        }
        let mut context: c_ulong = 0;
        // SAFETY: The kernel writes a word to `context`.
        check(unsafe { libc::syscall(libc::SYS_io_setup, depth, &mut context) })?;
        Ok(Self {
            context,
            buffers,
            stride,
            requests: vec![Request::default(); depth],
            events: vec![Event::default(); depth],
            under_way: 0,
        })
    }

    /// Submits one request for each buffer whose index is in `slots`. `what` returns the direction,
    /// the offset and the length in bytes of each request.
    pub fn submit(
        &mut self,
        file: &impl AsFd,
        slots: &[usize],
        mut what: impl FnMut() -> (Direction, u64, usize),
    ) -> io::Result<()> {
        let mut list = Vec::with_capacity(slots.len());
        for &slot in slots {
            let (direction, offset, bytes) = what();
            assert!(bytes <= self.stride);
            let buffer = self.buffers.address().wrapping_add(slot * self.stride);
            let request = &mut self.requests[slot];
            *request = Request {
                data: slot as u64,
                opcode: direction as u16,
                fd: file.as_fd().as_raw_fd() as u32,
                buffer: buffer as u64,
                bytes: bytes as u64,
                offset: offset as i64,
                ..Default::default()
            };
            list.push(&raw const *request);
        }
        let mut rest = &list[..];
        while !rest.is_empty() {
            // SAFETY: The list and the requests that it points to are valid during the call. Each
            // buffer is shared memory at least as long as its request. The buffers are freed only
            // after the context is destroyed, and destroying the context waits for the requests.
            let n = check(unsafe {
                libc::syscall(libc::SYS_io_submit, self.context, rest.len(), rest.as_ptr())
            })?;
            self.under_way += n;
            rest = &rest[n..];
        }
        Ok(())
    }

    /// Waits until at least `least` requests are complete that no earlier call has reported. Sets
    /// `free` to the indices of these requests' buffers.
    pub fn wait(&mut self, least: usize, free: &mut Vec<usize>) -> io::Result<()> {
        // SAFETY: The kernel writes at most `self.events.len()` events.
        let n = check(unsafe {
            libc::syscall(
                libc::SYS_io_getevents,
                self.context,
                least,
                self.events.len(),
                self.events.as_mut_ptr(),
                std::ptr::null::<timespec>(),
            )
        })?;
        self.under_way -= n;
        free.clear();
        for event in &self.events[..n] {
            let slot = event.data as usize;
            if event.result != self.requests[slot].bytes as i64 {
                return Err(io::Error::other(format!("a request gave {}", event.result)));
            }
            free.push(slot);
        }
        Ok(())
    }

    /// Submits `count` requests and waits for them. Keeps all buffers in use as long as there are
    /// requests to submit.
    pub fn run(
        &mut self,
        file: &impl AsFd,
        count: usize,
        mut what: impl FnMut() -> (Direction, u64, usize),
    ) -> io::Result<()> {
        let mut free: Vec<usize> = (0..self.requests.len().min(count)).collect();
        let mut left = count - free.len();
        loop {
            self.submit(file, &free, &mut what)?;
            if self.under_way == 0 {
                return Ok(());
            }
            self.wait(1, &mut free)?;
            free.truncate(left);
            left -= free.len();
        }
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        // SAFETY: The context belongs to `self`, and destroying it waits for the requests in
        // flight.
        unsafe { libc::syscall(libc::SYS_io_destroy, self.context) };
    }
}
