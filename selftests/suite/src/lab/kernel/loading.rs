// SPDX-License-Identifier: GPL-2.0

//! (Un)loading of the driver's module.

use std::path::Path;

use vduse::control::CONTROL_PATH;

use crate::environment;
use crate::lab::assert::timing::soon;
use crate::lab::kernel::modules;
use crate::lab::run::settings::driver;

/// Returns whether the module is loaded.
pub fn is_loaded() -> bool {
    modules::is_loaded(modules::name(driver()))
}

/// Tries to unload the module. Returns the tool's error output as the error.
pub fn try_unload() -> Result<(), String> {
    modules::tool("rmmod", &[modules::name(driver())])
}

/// Unloads the module; the test fails if that is not possible.
#[track_caller]
pub fn unload() {
    try_unload().expect("unloading");
    assert!(!is_loaded());
}

/// Loads the module with parameters, and waits until the control device exists.
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

/// Loads the module on drop unless it is loaded, for the tests that follow.
#[derive(Debug)]
pub struct LoadAgain;

impl Drop for LoadAgain {
    fn drop(&mut self) {
        if !is_loaded() {
            load(&[]);
        }
    }
}
