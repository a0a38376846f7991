// SPDX-License-Identifier: GPL-2.0

//! Module parameters that are visible in sysfs, unlike the parameters of the `module!` macro.
//!
//! C header: [`include/linux/moduleparam.h`](srctree/include/linux/moduleparam.h)

use super::{
    file_ops::this_module,
    raw as bindings, //
};
use kernel::{
    module_param::KernelParam,
    prelude::*,
    sync::atomic::{
        Atomic,
        Relaxed, //
    }, //
};

/// The value of a parameter that [`module_param_int!`] declares.
pub(crate) struct IntParam {
    value: Atomic<c_int>,
}

impl IntParam {
    #[doc(hidden)]
    pub(crate) const fn new(default: c_int) -> Self {
        Self {
            value: Atomic::new(default),
        }
    }

    /// Returns the value: the default, or the value that was given when the module was loaded. The
    /// value does not change after loading.
    pub(crate) fn get(&self) -> c_int {
        self.value.load(Relaxed)
    }

    /// Returns the C structure that describes the parameter to the module loader.
    #[doc(hidden)]
    pub(crate) const fn description(&'static self, name: &'static CStr) -> KernelParam {
        KernelParam::new(bindings::kernel_param {
            name: kernel::str::as_char_ptr_in_const_context(name),
            mod_: this_module(),
            ops: &raw const bindings::param_ops_int,
            perm: 0o444,
            level: -1,
            flags: 0,
            // An atomic integer has the memory layout of an integer. C code writes to the integer
            // before the module's initialization, in the thread that then runs the initialization,
            // and only reads the integer afterwards.
            __bindgen_anon_1: bindings::kernel_param__bindgen_ty_1 {
                arg: self.value.as_ptr().cast(),
            },
        })
    }
}

/// Returns the bytes of a string as an array, where `N` is the length of the string.
#[doc(hidden)]
pub(crate) const fn bytes<const N: usize>(text: &str) -> [u8; N] {
    match text.as_bytes().first_chunk() {
        Some(bytes) => *bytes,
        None => panic!("the string is shorter"),
    }
}

/// Declares an `int` parameter of the module. The parameter can be set when the module is loaded,
/// and can be read in `/sys/module/MODULE/parameters`.
///
/// The macro is for loadable modules only: in code that is built into the kernel, the parameter's
/// name would need a prefix. The macro cannot be used where `unsafe_code` is forbidden, because its
/// expansion has `link_section` attributes.
///
/// # Examples
///
/// ```ignore
/// module_param_int! {
///     /// The maximum number of entries.
///     pub(crate) static MAX_ENTRIES: max_entries = 2048, "Maximum number of entries";
/// }
///
/// let max = MAX_ENTRIES.get();
/// ```
macro_rules! module_param_int {
    (
        $(#[$meta:meta])*
        $vis:vis static $variable:ident: $name:ident = $default:expr, $description:literal;
    ) => {
        $(#[$meta])*
        $vis static $variable: $crate::bindings::param::IntParam =
            $crate::bindings::param::IntParam::new($default);

        const _: () = {
            #[link_section = "__param"]
            #[used(compiler)]
            static PARAM: ::kernel::module_param::KernelParam =
                $variable.description(::kernel::c_str!(::core::stringify!($name)));

            const TYPE: &str = ::core::concat!("parmtype=", ::core::stringify!($name), ":int\0");
            #[link_section = ".modinfo"]
            #[used(compiler)]
            static TYPE_INFO: [u8; TYPE.len()] = $crate::bindings::param::bytes(TYPE);

            const TEXT: &str =
                ::core::concat!("parm=", ::core::stringify!($name), ":", $description, "\0");
            #[link_section = ".modinfo"]
            #[used(compiler)]
            static TEXT_INFO: [u8; TEXT.len()] = $crate::bindings::param::bytes(TEXT);
        };
    };
}

pub(crate) use module_param_int;
