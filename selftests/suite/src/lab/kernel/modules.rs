// SPDX-License-Identifier: GPL-2.0

//! Kernel modules, both the driver's module and the other modules that the tests need.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::differences::Driver;
use crate::lab::assert::limit::Limit;

/// Returns the name of a driver's module.
pub fn name(driver: Driver) -> &'static str {
    match driver {
        Driver::Rust => "vduse_rs",
        Driver::C => "vduse",
    }
}

/// Returns whether a module is loaded.
pub fn is_loaded(module: &str) -> bool {
    Path::new("/sys/module").join(module).exists()
}

/// Returns a module's reference count, or `None` when the module is not loaded.
pub fn references(module: &str) -> Option<i64> {
    let path = Path::new("/sys/module").join(module).join("refcnt");
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Waits until a module's reference count is at most `most`, but not longer than two seconds. The
/// count may drop late, because the kernel defers the last put of a file. Returns the count.
pub fn references_settled(module: &str, most: i64) -> Option<i64> {
    let mut limit = Limit::new(Duration::from_secs(2));
    loop {
        let count = references(module)?;
        if count <= most || limit.is_over() {
            return Some(count);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Runs a program, for example `modprobe`. Returns the program's error output as the error.
pub fn tool(program: &str, arguments: &[&str]) -> Result<(), String> {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        Ok(())
    } else {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(format!("{program} {}: {said}", arguments.join(" ")))
    }
}

/// Modules that the tests need in addition to the driver's module. The runner loads the modules in
/// this order. So the vDPA bus offers a new device to virtio_vdpa first, and then to vhost_vdpa.
pub const BUS: &[&str] = &["virtio_vdpa", "vhost_vdpa", "virtio_blk"];

/// Loads the modules in [`BUS`].
pub fn load_bus() -> Result<(), String> {
    BUS.iter()
        .try_for_each(|module| tool("modprobe", &[module]))
}
