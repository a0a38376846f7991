// SPDX-License-Identifier: GPL-2.0

//! Ioctls with arguments that the `vduse` library would never pass.

use std::ffi::c_void;
use std::io;
use std::os::fd::AsFd;

use rustix::ioctl::{Ioctl, IoctlOutput, Opcode};
use rustix::mm::{mmap_anonymous, mprotect, MapFlags, MprotectFlags, ProtFlags};

use crate::lab::kernel::memory::PAGE;

struct Call {
    number: u32,
    argument: *mut c_void,
}

// SAFETY: Each function that makes a `Call` ensures that the kernel may write to the memory to
// which `argument` points, or that no memory is mapped there.
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

/// Returns the number of an ioctl with an argument of `size` bytes, as the macro `_IOC` does.
pub const fn number(direction: u32, kind: u8, nr: u8, size: usize) -> u32 {
    direction << 30 | (size as u32) << 16 | (kind as u32) << 8 | nr as u32
}

/// Direction for [`number`]: no argument.
pub const NONE: u32 = 0;
/// Direction for [`number`]: the kernel reads the argument.
pub const WRITE: u32 = 1;
/// Direction for [`number`]: the kernel writes to the argument.
pub const READ: u32 = 2;

/// Calls an ioctl. `argument` must be at least as long as the size that the ioctl's number encodes.
pub fn call(fd: impl AsFd, number: u32, argument: &mut [u8]) -> io::Result<i32> {
    assert!(argument.len() >= size_of_argument(number));
    let argument = argument.as_mut_ptr().cast();
    // SAFETY: The kernel writes at most as many bytes as the number encodes, and `argument` has
    // that many.
    Ok(unsafe { rustix::ioctl::ioctl(fd, Call { number, argument }) }?)
}

/// Calls an ioctl with an unmapped address as its argument.
pub fn call_at_nothing(fd: impl AsFd, number: u32) -> io::Result<i32> {
    // The first page is never mapped.
    let argument = std::ptr::without_provenance_mut(8);
    // SAFETY: The kernel cannot write to an unmapped address.
    Ok(unsafe { rustix::ioctl::ioctl(fd, Call { number, argument }) }?)
}

/// Calls an ioctl with an argument at an address that may be unmapped.
///
/// # Safety
///
/// The kernel may write to mapped memory from `argument` on, up to the size that the ioctl's number
/// encodes. Nothing else may depend on that memory.
pub unsafe fn call_at(fd: impl AsFd, number: u32, argument: *mut u8) -> io::Result<i32> {
    let argument = argument.cast();
    // SAFETY: The kernel writes at most as many bytes as the number encodes, and returns EFAULT for
    // unmapped memory.
    Ok(unsafe { rustix::ioctl::ioctl(fd, Call { number, argument }) }?)
}

/// Calls an ioctl with an argument in shared memory, which may be read-only.
pub fn call_read_only(fd: impl AsFd, number: u32, memory: &vduse::Mapping) -> io::Result<i32> {
    assert!(memory.len() >= size_of_argument(number));
    let argument = memory.address().cast();
    // SAFETY: The memory is shared, and this program makes only volatile accesses to it.
    Ok(unsafe { rustix::ioctl::ioctl(fd, Call { number, argument }) }?)
}

/// A page followed by unmapped memory.
#[derive(Debug)]
pub struct Edge {
    base: *mut u8,
}

impl Edge {
    /// Allocates the page.
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
        // SAFETY: Nothing uses the second of the two pages.
        unsafe { mprotect(base.add(page).cast(), page, MprotectFlags::empty()) }
            .expect("taking a page away");
        Self { base }
    }

    /// Returns the address at which the page's last `len` bytes start.
    fn last(&self, len: usize) -> *mut u8 {
        assert!(len as u64 <= PAGE);
        self.base.wrapping_add(PAGE as usize - len)
    }

    /// Calls an ioctl whose argument starts with `bytes` and continues in unmapped memory.
    pub fn call(&self, fd: impl AsFd, number: u32, bytes: &[u8]) -> io::Result<i32> {
        let argument = self.last(bytes.len());
        // SAFETY: The page has at least that many bytes, and no references to it exist.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), argument, bytes.len()) };
        let argument = argument.cast();
        // SAFETY: The kernel can write only to the page, which is ours. The memory after the page
        // is unmapped.
        Ok(unsafe { rustix::ioctl::ioctl(fd, Call { number, argument }) }?)
    }

    /// Reads from a file into a buffer of `whole` bytes, only the first `len` of which are mapped.
    pub fn read(&self, fd: impl AsFd, len: usize, whole: usize) -> io::Result<usize> {
        // SAFETY: The buffer is passed to a system call and not accessed by this program. The
        // kernel returns EFAULT for unmapped memory.
        let buffer = unsafe { std::slice::from_raw_parts_mut(self.last(len), whole) };
        Ok(rustix::io::read(fd, buffer)?)
    }

    /// Writes to a file from a buffer of `whole` bytes, only the first `len` of which are mapped.
    pub fn write(&self, fd: impl AsFd, len: usize, whole: usize) -> io::Result<usize> {
        // SAFETY: As in `read`.
        let buffer = unsafe { std::slice::from_raw_parts(self.last(len), whole) };
        Ok(rustix::io::write(fd, buffer)?)
    }
}

impl Drop for Edge {
    fn drop(&mut self) {
        // SAFETY: The two pages are ours, and no references to them exist.
        let _ = unsafe { rustix::mm::munmap(self.base.cast(), 2 * PAGE as usize) };
    }
}

/// The bytes of a C structure, built from integers in native byte order.
#[derive(Clone, Debug, Default)]
pub struct Bytes(pub Vec<u8>);

impl Bytes {
    /// Creates an empty sequence.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a 32-bit integer.
    pub fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_ne_bytes());
        self
    }

    /// Appends a 64-bit integer.
    pub fn u64(mut self, value: u64) -> Self {
        self.0.extend(value.to_ne_bytes());
        self
    }

    /// Appends `count` zero bytes.
    pub fn zeroes(mut self, count: usize) -> Self {
        self.0.resize(self.0.len() + count, 0);
        self
    }
}
