// SPDX-License-Identifier: GPL-2.0

//! A block device in memory (brd).

use std::path::Path;

use crate::lab::driver::block::Block;
use crate::lab::kernel::modules::{is_loaded, tool};
use crate::lab::run::report::skip;

const MODULE: &str = "brd";

/// A block device all of whose data is in memory, from the beginning: writing to it takes no memory.
/// It goes on drop.
#[derive(Debug)]
pub struct RamDisk(());

impl RamDisk {
    /// Creates the device, of `bytes` bytes. Skips the test if the kernel has no such devices.
    #[track_caller]
    pub fn new(bytes: u64) -> Self {
        if is_loaded(MODULE) {
            let _ = tool("rmmod", &[MODULE]);
        }
        let size = format!("rd_size={}", bytes >> 10);
        if let Err(why) = tool("modprobe", &[MODULE, "rd_nr=1", &size]) {
            skip(why);
        }
        let disk = Self(());
        let block = Block::open("ram0").expect("the disk in memory");
        let piece = vec![0xa5; 1 << 20];
        for at in (0..bytes).step_by(piece.len()) {
            block.write(at, &piece).expect("filling the disk");
        }
        disk
    }

    /// Returns the path of the device.
    pub fn path(&self) -> &Path {
        Path::new("/dev/ram0")
    }
}

impl Drop for RamDisk {
    fn drop(&mut self) {
        let _ = tool("rmmod", &[MODULE]);
    }
}
