// SPDX-License-Identifier: GPL-2.0

//! Physically contiguous memory.

use crate::lab::run::report::skip;

/// A huge page: 2 MiB of physically contiguous memory.
#[derive(Debug)]
pub struct HugePage {
    start: *mut u8,
}

impl HugePage {
    /// Size in bytes.
    pub const LEN: usize = 2 << 20;

    /// Allocates a huge page, which exists until the process ends. Skips the test if the kernel
    /// provides no huge page.
    #[track_caller]
    pub fn new() -> Self {
        use rustix::mm::{madvise, mmap_anonymous, Advice, MapFlags, ProtFlags};
        // SAFETY: A new mapping touches no other memory.
        let base = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                2 * Self::LEN,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )
        }
        .expect("memory")
        .cast::<u8>();
        let start = base.wrapping_add(base.align_offset(Self::LEN));
        // SAFETY: The advice does not change the contents of the memory.
        let _ = unsafe { madvise(start.cast(), Self::LEN, Advice::LinuxHugepage) };
        let mut page = Self { start };
        let before = Self::count();
        page.bytes().fill(1);
        if Self::count() < before + Self::LEN as u64 / 1024 {
            skip("no huge pages here");
        }
        page
    }

    /// Returns how much of this process's memory is in huge pages, in KiB.
    fn count() -> u64 {
        let text = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap_or_default();
        text.lines()
            .find_map(|line| line.strip_prefix("AnonHugePages:"))
            .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
            .unwrap_or(0)
    }

    /// Returns the bytes of the page.
    pub fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: `LEN` bytes from `start` on are inside the mapping, which is private, never
        // unmapped, and not used elsewhere.
        unsafe { std::slice::from_raw_parts_mut(self.start, Self::LEN) }
    }
}
