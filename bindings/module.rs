// SPDX-License-Identifier: GPL-2.0

//! The kernel's modules.
//!
//! C header: [`include/linux/module.h`](srctree/include/linux/module.h)

use super::raw as bindings;
use kernel::{
    prelude::*,
    ThisModule, //
};

/// A reference that keeps a module from being unloaded.
///
/// # Invariants
///
/// This value owns a reference to the module.
pub(crate) struct ModuleRef(&'static ThisModule);

impl ModuleRef {
    /// Takes a reference to `module`.
    ///
    /// # Errors
    ///
    /// [`ENODEV`] if the module is being unloaded.
    pub(crate) fn get(module: &'static ThisModule) -> Result<Self> {
        // SAFETY: A `ThisModule` is a module, or null for code that is built in.
        if !unsafe { bindings::try_module_get(module.as_ptr()) } {
            return Err(ENODEV);
        }

        // INVARIANT: The reference was taken just now.
        Ok(Self(module))
    }
}

/// Returns whether a module called `name` is loaded, or built in and known to sysfs.
///
/// `this` is the calling module. The module called `name` may be loaded or unloaded right after the
/// call. May sleep.
pub(crate) fn is_present(this: &'static ThisModule, name: &CStr) -> bool {
    let this = this.as_ptr();
    if this.is_null() {
        return false;
    }
    // SAFETY: A `ThisModule` is null for code that is built in, and otherwise a module, which is in
    // the set of all modules while it is loaded.
    let modules = unsafe { (*this).mkobj.kobj.kset };
    if modules.is_null() {
        return false;
    }

    // SAFETY: The set is that of all modules, which is never freed. The name is only read.
    let found = unsafe { bindings::kset_find_obj(modules, name.as_char_ptr()) };
    // SAFETY: `found` is null, or a reference that this function owns.
    unsafe { bindings::kobject_put(found) };

    !found.is_null()
}

impl Drop for ModuleRef {
    fn drop(&mut self) {
        // SAFETY: By the type invariants, this value owns the reference that is released here.
        unsafe { bindings::module_put(self.0.as_ptr()) }
    }
}
