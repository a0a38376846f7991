// SPDX-License-Identifier: GPL-2.0

//! Loading and unloading of the driver's module.

use std::path::Path;

use vduse::control::CONTROL_PATH;

use crate::environment;
use crate::lab::assert::timing::soon;
use crate::lab::kernel::modules;
use crate::lab::run::settings::driver;

/// Returns whether the driver's module is loaded.
pub fn is_loaded() -> bool {
    modules::is_loaded(modules::name(driver()))
}

/// Tries to unload the driver's module. Returns the error output of `rmmod` as the error.
pub fn try_unload() -> Result<(), String> {
    modules::tool("rmmod", &[modules::name(driver())])
}

/// Unloads the driver's module. Panics if the module cannot be unloaded.
#[track_caller]
pub fn unload() {
    try_unload().expect("unloading");
    assert!(!is_loaded());
}

/// Loads the driver's module with `parameters`, and waits until the control device exists.
#[track_caller]
pub fn load(parameters: &[&str]) {
    let file = std::env::var(environment::MODULE);
    let (program, module) = match &file {
        Ok(file) => ("insmod", file.as_str()),
        Err(_) => ("modprobe", "vduse"),
    };
    modules::tool(program, &[&[module], parameters].concat()).expect("loading");
    soon("the control device appears", || {
        Path::new(CONTROL_PATH).exists()
    });
}

/// A guard that loads the driver's module on drop if the module is not loaded, because later tests
/// need it.
#[derive(Debug)]
pub struct LoadAgain;

impl Drop for LoadAgain {
    fn drop(&mut self) {
        if !is_loaded() {
            load(&[]);
        }
    }
}
