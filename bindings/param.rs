// SPDX-License-Identifier: GPL-2.0

//! Module parameters that show in sysfs. (Those of the `module!` macro do not.)
//!
//! C header: [`include/linux/moduleparam.h`](srctree/include/linux/moduleparam.h)

use super::{
    file_ops::this_module,
    raw, //
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

    /// The value: the default, or what the module was loaded with. Does not change after that.
    pub(crate) fn get(&self) -> c_int {
        self.value.load(Relaxed)
    }

    /// How the module loader finds the parameter.
    #[doc(hidden)]
    pub(crate) const fn description(&'static self, name: &'static CStr) -> KernelParam {
        KernelParam::new(raw::kernel_param {
            name: kernel::str::as_char_ptr_in_const_context(name),
            mod_: this_module(),
            ops: &raw const raw::param_ops_int,
            perm: 0o444,
            level: -1,
            flags: 0,
            // An atomic integer is an integer in memory. C writes to it before the module's
            // initialization, in the thread that does that, and only reads it afterwards.
            __bindgen_anon_1: raw::kernel_param__bindgen_ty_1 {
                arg: self.value.as_ptr().cast(),
            },
        })
    }
}

/// A string as an array of its bytes, `N` being its length.
#[doc(hidden)]
pub(crate) const fn bytes<const N: usize>(text: &str) -> [u8; N] {
    match text.as_bytes().first_chunk() {
        Some(bytes) => *bytes,
        None => panic!("the string is shorter"),
    }
}

/// Declares a parameter of the module that is an `int`, set when the module is loaded and readable
/// in `/sys/module/MODULE/parameters`.
///
/// For modules that can be loaded; built into the kernel, its name would need a prefix. It cannot
/// be used where `unsafe_code` is forbidden, because it names sections.
///
/// # Examples
///
/// ```ignore
/// module_param_int! {
///     /// How many entries there can be.
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
