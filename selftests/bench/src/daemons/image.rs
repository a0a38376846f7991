// SPDX-License-Identifier: GPL-2.0

//! The file system with the image that the daemons serve: ext4 on a disk in memory, so that direct
//! I/O goes through the whole block layer but waits for no hardware.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;

use vduse_selftests::lab::guest::qsd::tool;
use vduse_selftests::lab::run::scratch::Scratch;

/// Size of the image in bytes.
pub const SIZE: u64 = 64 << 20;

/// Size of the disk in memory, in KiB.
const DISK: u64 = 160 << 10;

const NODE: &str = "/dev/ram0";

/// A mounted file system with the image. It is unmounted on drop.
pub struct ImageDirectory {
    scratch: Scratch,
}

impl ImageDirectory {
    /// Creates and mounts the file system, and writes the image, so that all of its blocks are
    /// allocated.
    #[track_caller]
    pub fn new() -> Self {
        tool("modprobe", &["brd", "rd_nr=1", &format!("rd_size={DISK}")]);
        tool("mkfs.ext4", &["-q", "-F", NODE]);
        let directory = Self {
            scratch: Scratch::new(),
        };
        let at = directory.scratch.path("mounted");
        std::fs::create_dir(&at).expect("a directory");
        tool("mount", &[NODE, at.to_str().expect("text")]);
        let mut image = File::create(directory.image()).expect("the image");
        for _ in 0..SIZE >> 20 {
            image
                .write_all(&[0x5a; 1 << 20])
                .expect("writing the image");
        }
        image.sync_all().expect("writing the image");
        directory
    }

    /// Returns the path of the image.
    pub fn image(&self) -> PathBuf {
        self.scratch.path("mounted").join("image")
    }

    /// Returns a path in memory for other files.
    pub fn other(&self, name: &str) -> PathBuf {
        self.scratch.path(name)
    }
}

impl Drop for ImageDirectory {
    fn drop(&mut self) {
        let at = self.scratch.path("mounted");
        let _ = std::process::Command::new("umount").arg(at).status();
    }
}
