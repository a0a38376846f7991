// SPDX-License-Identifier: GPL-2.0

//! Files in sysfs.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Sysfs directory of the VDUSE device class.
pub const CLASS: &str = "/sys/class/vduse";

/// Returns the sysfs directory of a VDUSE device.
pub fn directory(name: &str) -> PathBuf {
    Path::new(CLASS).join(name)
}

/// Returns the path of a VDUSE device's sysfs attribute.
pub fn attribute(name: &str, attribute: &str) -> PathBuf {
    directory(name).join(attribute)
}

/// Returns the path of the attribute with a virtqueue's interrupt affinity.
pub fn affinity(name: &str, queue: u16) -> PathBuf {
    directory(name)
        .join(format!("vq{queue}"))
        .join("irq_cb_affinity")
}

/// Reads a file of one line. Returns the line without white space at its end.
pub fn read(path: &Path) -> io::Result<String> {
    Ok(fs::read_to_string(path)?.trim_end().to_owned())
}

/// Writes to an existing file with a single system call.
pub fn write(path: &Path, text: &str) -> io::Result<()> {
    let file = fs::OpenOptions::new().write(true).open(path)?;
    match rustix::io::write(&file, text.as_bytes())? {
        n if n == text.len() => Ok(()),
        _ => Err(io::ErrorKind::WriteZero.into()),
    }
}
