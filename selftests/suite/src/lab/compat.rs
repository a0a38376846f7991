// SPDX-License-Identifier: GPL-2.0

//! System calls as a 32-bit program makes them, from this 64-bit one.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::process::Command;

use rustix::mm::{mmap_anonymous, mprotect, MapFlags, MprotectFlags, ProtFlags};

use crate::lab::memory::PAGE;
use crate::lab::skip;

/// A page below 4 GiB, where 32-bit calls can have their arguments.
#[derive(Debug)]
pub struct Low {
    base: *mut u8,
}

impl Low {
    /// Makes one, or ends the test where 32-bit calls are not possible.
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

    /// Calls an ioctl with these bytes, which the kernel may write to.
    pub fn ioctl(&self, fd: impl AsFd, number: u32, argument: &mut [u8]) -> io::Result<i32> {
        self.fill(argument);
        let result = self.call(fd, number);
        // SAFETY: The page is that long, and nobody has references to it.
        unsafe { std::ptr::copy_nonoverlapping(self.base, argument.as_mut_ptr(), argument.len()) };
        result
    }

    /// Calls an ioctl with these bytes, which the kernel may read and not write to.
    pub fn ioctl_read_only(&self, fd: impl AsFd, number: u32, argument: &[u8]) -> io::Result<i32> {
        self.fill(argument);
        self.protect(MprotectFlags::READ);
        let result = self.call(fd, number);
        self.protect(MprotectFlags::READ | MprotectFlags::WRITE);
        result
    }

    fn fill(&self, argument: &[u8]) {
        assert!(argument.len() as u64 <= PAGE);
        // SAFETY: The page is that long, and nobody has references to it.
        unsafe { std::ptr::copy_nonoverlapping(argument.as_ptr(), self.base, argument.len()) };
    }

    fn protect(&self, flags: MprotectFlags) {
        // SAFETY: The page is ours, and nobody has references to it.
        unsafe { mprotect(self.base.cast(), PAGE as usize, flags) }.expect("protecting a page");
    }

    fn call(&self, fd: impl AsFd, number: u32) -> io::Result<i32> {
        let fd = fd.as_fd().as_raw_fd() as u32;
        // SAFETY: The ioctl writes no more than its number says, which is less than a page.
        let result = unsafe { call(IOCTL, fd, number, self.base as usize as u32) };
        if result < 0 {
            Err(io::Error::from_raw_os_error(-result))
        } else {
            Ok(result)
        }
    }
}

/// `MAP_32BIT` of x86.
const MAP_32BIT: u32 = 0x40;

/// The number of `ioctl` for 32-bit programs.
const IOCTL: u32 = 54;

/// The number of `getpid` for 32-bit programs.
const GETPID: u32 = 20;

/// # Safety
///
/// The system call does nothing that Rust does not know of.
unsafe fn call(number: u32, a: u32, b: u32, c: u32) -> i32 {
    let result: i32;
    // SAFETY: The kernel keeps all registers but eax and, depending on its version, r8 to r11. rbx
    // is the compiler's, so that it is put back.
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

/// Whether the kernel takes 32-bit calls: where it does not, the one who tries is killed.
fn available() -> bool {
    Command::new("/proc/self/exe")
        .args(["--helper", "ia32"])
        .status()
        .is_ok_and(|status| status.success())
}

/// The helper that tries.
pub fn try_here() -> bool {
    // SAFETY: The call only returns a number.
    let found = unsafe { call(GETPID, 0, 0, 0) };
    u32::try_from(found).is_ok_and(|pid| pid == std::process::id())
}
