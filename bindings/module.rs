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
        // SAFETY: `as_ptr` returns a module, or null for code that is built in. Both may be passed.
        if !unsafe { bindings::try_module_get(module.as_ptr()) } {
            return Err(ENODEV);
        }

        // INVARIANT: The reference was taken just now.
        Ok(Self(module))
    }
}

/// Returns whether a module called `name` is loaded, or built in and known to sysfs.
///
/// `this` is the calling module. Returns `false` if the caller is built in. The module called
/// `name` may be loaded or unloaded right after the call. May sleep.
pub(crate) fn is_present(this: &'static ThisModule, name: &CStr) -> bool {
    let this = this.as_ptr();
    if this.is_null() {
        return false;
    }
    // SAFETY: `this` is not null, so it is a loaded module, which is in the kset of all modules.
    let modules = unsafe { (*this).mkobj.kobj.kset };
    if modules.is_null() {
        return false;
    }

    // SAFETY: `modules` is the kset of all modules, which is never freed. The name is only read.
    let found = unsafe { bindings::kset_find_obj(modules, name.as_char_ptr()) };
    // SAFETY: `found` is null, or a reference that this function owns.
    unsafe { bindings::kobject_put(found) };

    !found.is_null()
}

/// Returns whether the calling module, `this`, is called `name`. Returns `false` if the caller is
/// built in.
pub(crate) fn is_called(this: &'static ThisModule, name: &CStr) -> bool {
    let this = this.as_ptr();
    if this.is_null() {
        return false;
    }

    // SAFETY: `this` is not null, so it is a loaded module. Its name is NUL-terminated and does not
    // change.
    name == unsafe { CStr::from_char_ptr((&raw const (*this).name).cast()) }
}

/// Declares the module's version, a string, for `modinfo` and `/sys/module/MODULE/version`.
///
/// The macro is for loadable modules only. It cannot be used where `unsafe_code` is forbidden,
/// because its expansion has a `link_section` attribute.
///
/// # Examples
///
/// ```ignore
/// module_version!("1.0");
/// ```
macro_rules! module_version {
    ($($version:tt)*) => {
        const _: () = {
            const TEXT: &str = ::core::concat!("version=", $($version)*, "\0");
            #[link_section = ".modinfo"]
            #[used(compiler)]
            static VERSION: [u8; TEXT.len()] = $crate::bindings::param::bytes(TEXT);
        };
    };
}

pub(crate) use module_version;

impl Drop for ModuleRef {
    fn drop(&mut self) {
        // SAFETY: By the type invariants, this value owns the reference that is released here.
        unsafe { bindings::module_put(self.0.as_ptr()) }
    }
}
