// SPDX-License-Identifier: GPL-2.0

//! Files in memory (memfd).

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use rustix::fs::{ftruncate, memfd_create, MemfdFlags};
use vduse::Mapping;
use vduse_uapi::ACCESS_RW;

/// Page size in bytes.
pub const PAGE: u64 = 4096;

/// Creates a file of `bytes` zero bytes in memory.
#[track_caller]
pub fn file(bytes: u64) -> File {
    let fd = memfd_create("test", MemfdFlags::CLOEXEC).expect("a file in memory");
    ftruncate(&fd, bytes).expect("its length");
    File::from(fd)
}

/// Creates a file in memory (memfd) that consists of one page filled with `byte`. Returns a mapping
/// of this page.
#[track_caller]
pub fn page_of(byte: u8) -> Mapping {
    let file = file(PAGE);
    file.write_all_at(&[byte; PAGE as usize], 0)
        .expect("filling a page");
    Mapping::of_file(file.as_fd(), 0, PAGE, ACCESS_RW).expect("mapping a page")
}
