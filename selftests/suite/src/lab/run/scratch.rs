// SPDX-License-Identifier: GPL-2.0

//! A directory for a test's files.

use std::path::{Path, PathBuf};

/// A directory in memory (`/dev/shm`), removed on drop.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    /// Creates a directory with a unique name.
    #[track_caller]
    pub fn new() -> Self {
        let path = Path::new("/dev/shm").join(crate::lab::device::test_device::unique_name());
        std::fs::create_dir_all(&path).expect("making a directory");
        Self(path)
    }

    /// Returns the path of a file in the directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Creates a file with `bytes` zero bytes in the directory. Returns its path.
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
