// SPDX-License-Identifier: GPL-2.0

//! Removal of the devices that a failed test left over.
//!
//! The runner removes them in a separate process, because removing a left-over device may block
//! forever.

use std::fs;
use std::process::ExitCode;
use std::time::Duration;

use vdpa_netlink::Vdpa;
use vduse::Control;

use crate::lab::assert::limit::Limit;
use crate::lab::daemon::refusing;
use crate::lab::kernel::sysfs;

/// Returns the names of all existing devices.
pub fn devices() -> Vec<String> {
    let Ok(entries) = fs::read_dir(sysfs::CLASS) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name != "control")
        .collect()
}

/// Removes all devices.
pub fn run() -> ExitCode {
    let mut failed = false;
    for name in devices() {
        if let Err(why) = remove(&name) {
            println!("cannot remove the device {name}: {why}");
            failed = true;
        }
    }
    ExitCode::from(u8::from(failed))
}

fn remove(name: &str) -> Result<(), String> {
    // `RefusingDaemon` answers the kernel's requests during the removal. If it cannot open the
    // device, each new request that gets no answer fails after this timeout of one second.
    let _ = fs::write(sysfs::attribute(name, "msg_timeout"), "1");
    let daemon = refusing::RefusingDaemon::start(name);
    let vdpa = Vdpa::open().map_err(|error| error.to_string())?;
    if vdpa.device(name).is_ok() {
        vdpa.delete(name).map_err(|error| error.to_string())?;
    }
    drop(daemon);
    let control = Control::open().map_err(|error| error.to_string())?;
    let mut limit = Limit::new(Duration::from_secs(3));
    loop {
        match control.destroy(name) {
            Ok(()) => return Ok(()),
            Err(error) if limit.is_over() => return Err(error.to_string()),
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}
