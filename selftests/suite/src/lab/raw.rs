// SPDX-License-Identifier: GPL-2.0

//! Ioctls with arguments that no library would send.

use std::ffi::c_void;
use std::io;
use std::os::fd::AsFd;

use rustix::ioctl::{Ioctl, IoctlOutput, Opcode};
use rustix::mm::{mmap_anonymous, mprotect, MapFlags, MprotectFlags, ProtFlags};

use crate::lab::memory::PAGE;

struct Call {
    number: u32,
    argument: *mut c_void,
}

// SAFETY: The callers below see to it that what the argument points to may be written to, or that
// there is no memory there.
unsafe impl Ioctl for Call {
    type Output = i32;

    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        self.number
    }

    fn as_ptr(&mut self) -> *mut c_void {
        self.argument
    }

    unsafe fn output_from_ptr(out: IoctlOutput, _: *mut c_void) -> rustix::io::Result<i32> {
        Ok(out)
    }
}

fn size_of_argument(number: u32) -> usize {
    (number >> 16) as usize & 0x3fff
}

/// An ioctl's number.
pub const fn number(direction: u32, kind: u8, nr: u8, size: usize) -> u32 {
    direction << 30 | (size as u32) << 16 | (kind as u32) << 8 | nr as u32
}

/// In [`number`]: no argument.
pub const NONE: u32 = 0;
/// In [`number`]: the argument is read by the kernel.
pub const WRITE: u32 = 1;
/// In [`number`]: the argument is written by the kernel.
pub const READ: u32 = 2;

/// Calls an ioctl with these bytes, at least as many as its number says.
pub fn call(fd: impl AsFd, number: u32, argument: &mut [u8]) -> io::Result<i32> {
    assert!(argument.len() >= size_of_argument(number));
    let argument = argument.as_mut_ptr().cast();
    // SAFETY: The kernel writes at most as many bytes as the number says, which are there.
    Ok(unsafe { rustix::ioctl::ioctl(fd, Call { number, argument }) }?)
}

/// Calls an ioctl with an address at which there is no memory.
pub fn call_at_nothing(fd: impl AsFd, number: u32) -> io::Result<i32> {
    // The first page is never mapped.
    let argument = std::ptr::without_provenance_mut(8);
    // SAFETY: There is nothing to write to.
    Ok(unsafe { rustix::ioctl::ioctl(fd, Call { number, argument }) }?)
}

/// Calls an ioctl with an argument at an address where there may or may not be memory.
///
/// # Safety
///
/// What memory there is, as far as the number says, may be written to.
pub unsafe fn call_at(fd: impl AsFd, number: u32, argument: *mut u8) -> io::Result<i32> {
    let argument = argument.cast();
    // SAFETY: The kernel writes at most as many bytes as the number says, and answers EFAULT where
    // there is no memory.
    Ok(unsafe { rustix::ioctl::ioctl(fd, Call { number, argument }) }?)
}

/// Calls an ioctl with an argument in memory that may be read only.
pub fn call_read_only(fd: impl AsFd, number: u32, memory: &vduse::Mapping) -> io::Result<i32> {
    assert!(memory.len() >= size_of_argument(number));
    let argument = memory.address().cast();
    // SAFETY: The memory is shared and accessed as volatile only.
    Ok(unsafe { rustix::ioctl::ioctl(fd, Call { number, argument }) }?)
}

/// A page that ends where no memory follows.
#[derive(Debug)]
pub struct Edge {
    base: *mut u8,
}

impl Edge {
    /// Makes one.
    #[track_caller]
    pub fn new() -> Self {
        let page = PAGE as usize;
        // SAFETY: A new mapping touches no other memory.
        let base = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                2 * page,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )
        }
        .expect("two pages")
        .cast::<u8>();
        // SAFETY: The second of the two pages is nobody's.
        unsafe { mprotect(base.add(page).cast(), page, MprotectFlags::empty()) }
            .expect("taking a page away");
        Self { base }
    }

    /// Where the last `len` bytes are.
    fn last(&self, len: usize) -> *mut u8 {
        assert!(len as u64 <= PAGE);
        self.base.wrapping_add(PAGE as usize - len)
    }

    /// Calls an ioctl whose argument starts with `bytes` and has no memory behind them.
    pub fn call(&self, fd: impl AsFd, number: u32, bytes: &[u8]) -> io::Result<i32> {
        let argument = self.last(bytes.len());
        // SAFETY: That many bytes are in the page, which nobody has references to.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), argument, bytes.len()) };
        let argument = argument.cast();
        // SAFETY: The kernel writes to the page, which is ours, and to where there is no memory.
        Ok(unsafe { rustix::ioctl::ioctl(fd, Call { number, argument }) }?)
    }

    /// Reads from a file into a buffer whose last bytes, all but `len`, have no memory.
    pub fn read(&self, fd: impl AsFd, len: usize, whole: usize) -> io::Result<usize> {
        // SAFETY: The buffer is handed to a system call and not looked at in this program; the
        // kernel answers EFAULT where there is no memory.
        let buffer = unsafe { std::slice::from_raw_parts_mut(self.last(len), whole) };
        Ok(rustix::io::read(fd, buffer)?)
    }

    /// Writes to a file from a buffer whose last bytes, all but `len`, have no memory.
    pub fn write(&self, fd: impl AsFd, len: usize, whole: usize) -> io::Result<usize> {
        // SAFETY: As in `read`.
        let buffer = unsafe { std::slice::from_raw_parts(self.last(len), whole) };
        Ok(rustix::io::write(fd, buffer)?)
    }
}

impl Drop for Edge {
    fn drop(&mut self) {
        // SAFETY: The two pages are ours, and nobody refers to them.
        let _ = unsafe { rustix::mm::munmap(self.base.cast(), 2 * PAGE as usize) };
    }
}

/// The bytes of integers of a structure, one after the other.
#[derive(Clone, Debug, Default)]
pub struct Bytes(pub Vec<u8>);

impl Bytes {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a 32-bit integer.
    pub fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_ne_bytes());
        self
    }

    /// Adds a 64-bit integer.
    pub fn u64(mut self, value: u64) -> Self {
        self.0.extend(value.to_ne_bytes());
        self
    }

    /// Adds zeroes.
    pub fn zeroes(mut self, count: usize) -> Self {
        self.0.resize(self.0.len() + count, 0);
        self
    }
}
