// SPDX-License-Identifier: GPL-2.0

//! Unloading the module, when nothing uses it, and loading it again.

use std::path::Path;

use vduse::control::CONTROL_PATH;

use crate::lab::disk::{LiveDisk, Shape};
use crate::lab::expect::soon;
use crate::lab::sysfs;
use crate::modules;
use crate::runner::environment;

tests![
    an_idle_module_is_unloaded_and_leaves_nothing,
    a_loaded_module_works_again,
];

#[track_caller]
fn unload() {
    let module = modules::name(crate::lab::driver());
    modules::tool("rmmod", &[module]).expect("unloading");
    assert!(!modules::is_loaded(module));
}

#[track_caller]
fn load() {
    let loaded = match std::env::var(environment::MODULE) {
        Ok(file) => modules::tool("insmod", &[&file]),
        Err(_) => modules::tool("modprobe", &["vduse"]),
    };
    loaded.expect("loading");
    soon("the control device appears", || {
        Path::new(CONTROL_PATH).exists()
    });
}

/// Loads the module on drop, for the tests that follow.
struct LoadAgain;

impl Drop for LoadAgain {
    fn drop(&mut self) {
        if !modules::is_loaded(modules::name(crate::lab::driver())) {
            load();
        }
    }
}

fn an_idle_module_is_unloaded_and_leaves_nothing() {
    let _again = LoadAgain;
    unload();
    assert!(!Path::new(CONTROL_PATH).exists());
    assert!(!Path::new(sysfs::CLASS).exists());
    assert!(!Path::new("/sys/devices/vduse").exists());
    let devices = std::fs::read_to_string("/proc/devices").unwrap();
    assert!(!devices.contains(" vduse"), "{devices}");
    let management = crate::lab::bus::vdpa().management_devices().unwrap();
    assert!(management.iter().all(|device| device.name != "vduse"));
}

fn a_loaded_module_works_again() {
    for _ in 0..3 {
        let again = LoadAgain;
        unload();
        drop(again);
        let disk = LiveDisk::new(Shape::default());
        disk.block().write(0, &[1; 4096]).unwrap();
        drop(disk);
    }
}
