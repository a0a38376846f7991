// SPDX-License-Identifier: GPL-2.0

//! Mounted file systems.

use std::path::{Path, PathBuf};

use crate::lab::guest::qsd::tool;
use crate::lab::kernel::modules;

/// A file system that is mounted, unmounted on drop.
#[derive(Debug)]
pub struct Mounted(PathBuf);

impl Mounted {
    /// Creates the directory `at` and mounts a file system there. `arguments` are those of `mount`
    /// before the directory.
    #[track_caller]
    pub fn new(arguments: &[&str], at: &Path) -> Self {
        std::fs::create_dir(at).expect("a directory");
        let directory = at.to_str().expect("a path of text");
        tool("mount", &[arguments, &[directory]].concat());
        Self(at.to_owned())
    }

    /// Returns the path of the directory.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = modules::tool("umount", &[&self.0.to_string_lossy()]);
    }
}
