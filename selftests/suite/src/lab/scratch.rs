// SPDX-License-Identifier: GPL-2.0

//! A folder for a test's files.

use std::path::{Path, PathBuf};

/// A folder in memory, removed on drop.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    /// Makes one.
    #[track_caller]
    pub fn new() -> Self {
        let path = Path::new("/dev/shm").join(crate::lab::device::unique_name());
        std::fs::create_dir_all(&path).expect("making a folder");
        Self(path)
    }

    /// A file in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// A file in it, of so many zeroes.
    #[track_caller]
    pub fn file(&self, name: &str, bytes: u64) -> PathBuf {
        let path = self.path(name);
        let file = std::fs::File::create(&path).expect("making a file");
        file.set_len(bytes).expect("its length");
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
