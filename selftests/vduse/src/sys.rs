// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Wrappers of the `ioctl` system call. No other module calls `ioctl`.

use std::ffi::c_void;
use std::io;
use std::os::fd::AsFd;

use rustix::ioctl::{Ioctl, IoctlOutput, Opcode};
use vduse_uapi as uapi;

/// A type whose values the kernel reads or writes as plain bytes.
///
/// # Safety
///
/// The type consists of integers only, without padding, so that all of its bytes are defined and
/// any bytes are a valid value.
pub(crate) unsafe trait Plain: Copy {}

// SAFETY: The type is an integer.
unsafe impl Plain for u32 {}
// SAFETY: The type is an integer.
unsafe impl Plain for u64 {}
// SAFETY: The type is an array of integers.
unsafe impl Plain for [u8; uapi::NAME_MAX] {}

macro_rules! plain {
    ($($t:ty),*) => {
        $(
            // SAFETY: The types in `vduse-uapi` have only integers and arrays of them, and no
            // implicit padding.
            unsafe impl Plain for $t {}
        )*
    };
}

plain!(
    uapi::DevConfig,
    uapi::IotlbEntry,
    uapi::IotlbEntryV2,
    uapi::ConfigData,
    uapi::VqConfig,
    uapi::VqInfo,
    uapi::VqEventfd,
    uapi::IovaUmem,
    uapi::IovaInfo,
    uapi::DevRequest,
    uapi::DevResponse
);

/// Returns the bytes of a structure.
pub(crate) fn bytes_of<T: Plain>(value: &T) -> &[u8] {
    // SAFETY: `Plain` guarantees that all `size_of::<T>()` bytes are defined.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast(), size_of::<T>()) }
}

/// Returns the bytes of a structure as a mutable slice.
pub(crate) fn bytes_of_mut<T: Plain>(value: &mut T) -> &mut [u8] {
    // SAFETY: `Plain` guarantees that all bytes are defined and that any bytes are a valid value.
    unsafe { std::slice::from_raw_parts_mut(std::ptr::from_mut(value).cast(), size_of::<T>()) }
}

struct Call {
    number: u32,
    argument: *mut c_void,
}

// SAFETY: `as_ptr` returns the argument, whose validity the caller of `call` guarantees. The output
// is the ioctl's return value.
unsafe impl Ioctl for Call {
    type Output = i32;

    // The kernel may write to the memory at the argument, so the compiler must not assume that the
    // memory stays unchanged.
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

/// Calls an ioctl.
///
/// # Safety
///
/// `argument` must be valid for every write that the ioctl with this number performs.
unsafe fn call(fd: impl AsFd, number: u32, argument: *mut c_void) -> io::Result<i32> {
    // SAFETY: The caller guarantees that the argument is valid. The ioctl has no other requirement.
    Ok(unsafe { rustix::ioctl::ioctl(fd, Call { number, argument }) }?)
}

/// Returns the size in bytes that an ioctl's number encodes for its argument.
const fn argument_size(number: u32) -> usize {
    (number >> 16) as usize & 0x3fff
}

/// Calls an ioctl whose argument the kernel reads and writes.
pub(crate) fn exchange<T: Plain>(fd: impl AsFd, number: u32, value: &mut T) -> io::Result<i32> {
    assert_eq!(argument_size(number), size_of::<T>());
    // SAFETY: Every VDUSE ioctl writes at most a structure of the size encoded in its number.
    // `value` has that size, and any bytes are a valid value of its type.
    unsafe { call(fd, number, std::ptr::from_mut(value).cast()) }
}

/// Calls an ioctl whose argument the kernel only reads.
pub(crate) fn send<T: Plain>(fd: impl AsFd, number: u32, value: &T) -> io::Result<()> {
    exchange(fd, number, &mut { *value }).map(drop)
}

/// Calls an ioctl whose argument is the structure `head`, followed by `tail`. The structure
/// contains the length of `tail`.
pub(crate) fn send_with_tail<T: Plain>(
    fd: impl AsFd,
    number: u32,
    head: &T,
    tail: &[u8],
) -> io::Result<()> {
    assert_eq!(argument_size(number), size_of::<T>());
    let mut buffer = [bytes_of(head), tail].concat();
    // SAFETY: The kernel only reads the argument of an ioctl with a tail. The kernel copies the
    // argument byte by byte, so `buffer` needs no alignment.
    unsafe { call(fd, number, buffer.as_mut_ptr().cast()) }.map(drop)
}

/// Calls an ioctl that takes no argument.
pub(crate) fn signal(fd: impl AsFd, number: u32) -> io::Result<()> {
    assert_eq!(argument_size(number), 0);
    // SAFETY: An ioctl without an argument accesses no memory.
    unsafe { call(fd, number, std::ptr::null_mut()) }.map(drop)
}

/// The name and flags of linux/if.h's `struct ifreq`, padded to the structure's size.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct InterfaceRequest {
    name: [u8; 16],
    flags: u16,
    rest: [u8; 22],
}

// SAFETY: The fields have 16, 2 and 22 bytes and consist of integers. `flags` is at an even offset,
// so there is no padding.
unsafe impl Plain for InterfaceRequest {}

impl InterfaceRequest {
    /// Returns a request about the interface called `name`, with the given flags.
    ///
    /// # Errors
    ///
    /// `InvalidInput` when the name is too long or contains a NUL.
    pub(crate) fn new(name: &str, flags: u16) -> io::Result<Self> {
        let mut request = Self {
            name: [0; 16],
            flags,
            rest: [0; 22],
        };
        // The terminating NUL must fit as well.
        if name.len() >= request.name.len() || name.contains('\0') {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        request.name[..name.len()].copy_from_slice(name.as_bytes());
        Ok(request)
    }
}

/// Calls an ioctl of `/dev/net/tun` that reads and writes an interface request.
///
/// For historical reasons, the ioctl's number encodes a size other than that of `struct ifreq`, so
/// this function does not check the size.
pub(crate) fn interface(
    fd: impl AsFd,
    number: u32,
    mut request: InterfaceRequest,
) -> io::Result<()> {
    // SAFETY: The kernel writes at most a whole `struct ifreq`, which is as long as `request`.
    unsafe { call(fd, number, std::ptr::from_mut(&mut request).cast()) }.map(drop)
}
