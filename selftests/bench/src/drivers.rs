// SPDX-License-Identifier: GPL-2.0

//! The two VDUSE drivers, the in-tree one and ours. Only one can be loaded at a time.

use std::path::Path;

use vduse_selftests::differences::Driver;
use vduse_selftests::lab::kernel::modules;

/// Both VDUSE drivers.
pub const ALL: [Driver; 2] = [Driver::C, Driver::Rust];

/// Module parameter that allows more mappings than any measurement makes.
const PARAMETERS: &str = "max_iotlb_entries=65536";

/// Loads the drivers of the vDPA bus: virtio-vdpa and vhost-vdpa. Like a VDUSE driver, vhost-vdpa
/// has a module parameter `max_iotlb_entries`. Both get the same value.
pub fn load_bus() -> Result<(), String> {
    modules::tool("modprobe", &["vhost_vdpa", PARAMETERS])?;
    modules::load_bus()
}

/// Returns the title of a driver's column in the table.
pub fn title(driver: Driver) -> &'static str {
    match driver {
        Driver::C => "C",
        Driver::Rust => "ours",
    }
}

/// Loads a driver. `module` is the path of our driver.
pub fn load(driver: Driver, module: &Path) -> Result<(), String> {
    match driver {
        Driver::C => modules::tool("modprobe", &[modules::name(driver), PARAMETERS]),
        Driver::Rust => {
            let module = module.to_str().ok_or("the module's path is no text")?;
            modules::tool("insmod", &[module, PARAMETERS])
        }
    }
}

/// Unloads a driver.
pub fn unload(driver: Driver) -> Result<(), String> {
    let name = modules::name(driver);
    match modules::references_settled(name, 0) {
        Some(0) => modules::tool("rmmod", &[name]),
        count => Err(format!("{name} is still in use: {count:?}")),
    }
}
