// SPDX-License-Identifier: GPL-2.0

//! 32-bit system calls made by this 64-bit program.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::process::Command;

use rustix::mm::{mmap_anonymous, mprotect, MapFlags, MprotectFlags, ProtFlags};

use crate::lab::kernel::memory::PAGE;
use crate::lab::run::report::skip;

/// A page below 4 GiB, where the kernel finds the arguments of 32-bit system calls.
#[derive(Debug)]
pub struct Low {
    base: *mut u8,
}

impl Low {
    /// Allocates a page below 4 GiB. Skips the test if the kernel does not support 32-bit system
    /// calls.
    #[track_caller]
    pub fn new() -> Self {
        if !available() {
            skip("no 32-bit system calls here");
        }
        // SAFETY: A new mapping touches no other memory.
        let base = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                PAGE as usize,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::from_bits_retain(MAP_32BIT),
            )
        }
        .expect("a page below 4 GiB")
        .cast();
        Self { base }
    }

    /// Calls an ioctl as a 32-bit program does. The kernel may write to `argument`.
    pub fn ioctl(&self, fd: impl AsFd, number: u32, argument: &mut [u8]) -> io::Result<i32> {
        self.fill(argument);
        let result = self.call(fd, number);
        // SAFETY: `fill` has checked that the page is long enough, and no references to the page
        // exist.
        unsafe { std::ptr::copy_nonoverlapping(self.base, argument.as_mut_ptr(), argument.len()) };
        result
    }

    /// Calls an ioctl as a 32-bit program does, with a copy of `argument` in read-only memory.
    pub fn ioctl_read_only(&self, fd: impl AsFd, number: u32, argument: &[u8]) -> io::Result<i32> {
        self.fill(argument);
        self.protect(MprotectFlags::READ);
        let result = self.call(fd, number);
        self.protect(MprotectFlags::READ | MprotectFlags::WRITE);
        result
    }

    fn fill(&self, argument: &[u8]) {
        assert!(argument.len() as u64 <= PAGE);
        // SAFETY: The page is long enough, and no references to the page exist.
        unsafe { std::ptr::copy_nonoverlapping(argument.as_ptr(), self.base, argument.len()) };
    }

    fn protect(&self, flags: MprotectFlags) {
        // SAFETY: The page is ours, and no references to it exist.
        unsafe { mprotect(self.base.cast(), PAGE as usize, flags) }.expect("protecting a page");
    }

    fn call(&self, fd: impl AsFd, number: u32) -> io::Result<i32> {
        let fd = fd.as_fd().as_raw_fd() as u32;
        // SAFETY: The kernel writes at most as many bytes as the ioctl's number encodes, which is
        // less than a page.
        let result = unsafe { call(IOCTL, fd, number, self.base as usize as u32) };
        if result < 0 {
            Err(io::Error::from_raw_os_error(-result))
        } else {
            Ok(result)
        }
    }
}

/// The flag `MAP_32BIT` of x86.
const MAP_32BIT: u32 = 0x40;

/// The number of the system call `ioctl` for 32-bit programs.
const IOCTL: u32 = 54;

/// The number of the system call `getpid` for 32-bit programs.
const GETPID: u32 = 20;

/// Makes a 32-bit system call.
///
/// # Safety
///
/// The system call must have no effects that violate Rust's rules.
unsafe fn call(number: u32, a: u32, b: u32, c: u32) -> i32 {
    let result: i32;
    // SAFETY: The kernel preserves all registers except eax and, depending on its version, r8 to
    // r11. The compiler reserves rbx, so the second `xchg` restores rbx.
    unsafe {
        std::arch::asm!(
            "xchg {first:r}, rbx",
            "int 0x80",
            "xchg {first:r}, rbx",
            first = inout(reg) u64::from(a) => _,
            inlateout("eax") number => result,
            in("ecx") b,
            in("edx") c,
            out("r8") _,
            out("r9") _,
            out("r10") _,
            out("r11") _,
        );
    }
    result
}

/// Returns whether the kernel supports 32-bit system calls. A child process makes the attempt,
/// because a kernel without this support kills the caller.
fn available() -> bool {
    Command::new("/proc/self/exe")
        .args(["--helper", "ia32"])
        .status()
        .is_ok_and(|status| status.success())
}

/// Makes a 32-bit system call in this process. Returns whether the call worked. A kernel without
/// 32-bit system calls kills the process.
pub fn try_here() -> bool {
    // SAFETY: `getpid` does not access memory.
    let found = unsafe { call(GETPID, 0, 0, 0) };
    u32::try_from(found).is_ok_and(|pid| pid == std::process::id())
}
