// SPDX-License-Identifier: GPL-2.0

//! The driver's files in sysfs.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The class of VDUSE devices.
pub const CLASS: &str = "/sys/class/vduse";

/// The folder of a device.
pub fn folder(name: &str) -> PathBuf {
    Path::new(CLASS).join(name)
}

/// An attribute of a device.
pub fn attribute(name: &str, attribute: &str) -> PathBuf {
    folder(name).join(attribute)
}

/// The affinity of a virtqueue.
pub fn affinity(name: &str, queue: u16) -> PathBuf {
    folder(name)
        .join(format!("vq{queue}"))
        .join("irq_cb_affinity")
}

/// Reads a file's one line.
pub fn read(path: &Path) -> io::Result<String> {
    Ok(fs::read_to_string(path)?.trim_end().to_owned())
}

/// Writes a file with a single call, and does not create it.
pub fn write(path: &Path, text: &str) -> io::Result<()> {
    let file = fs::OpenOptions::new().write(true).open(path)?;
    match rustix::io::write(&file, text.as_bytes())? {
        n if n == text.len() => Ok(()),
        _ => Err(io::ErrorKind::WriteZero.into()),
    }
}
