// SPDX-License-Identifier: GPL-2.0

//! The raw bindings. These are the bindings of the kernel crate, and bindgen's output for more
//! kernel headers and for `raw/helpers.c`.
//!
//! Only files in `bindings/` may use this module.

#[allow(
    clippy::all,
    dead_code,
    missing_docs,
    non_camel_case_types,
    non_upper_case_globals,
    non_snake_case,
    improper_ctypes,
    unreachable_pub,
    unsafe_op_in_unsafe_fn
)]
#[allow(clippy::as_underscore)]
#[allow(clippy::cast_lossless)]
#[allow(clippy::ptr_as_ptr)]
#[allow(clippy::ref_as_ptr)]
#[allow(clippy::undocumented_unsafe_blocks)]
mod headers {
    use kernel::ffi;
    use pin_init::MaybeZeroable;

    pub use super::helpers::*;
    pub use kernel::bindings::*;

    include!(concat!(
        env!("VDUSE_RS_OBJ"),
        "/bindings/raw/bindings_generated.rs"
    ));
}

#[allow(clippy::all, dead_code, missing_docs, improper_ctypes, unreachable_pub)]
#[allow(clippy::undocumented_unsafe_blocks)]
mod helpers {
    use super::headers::*;
    use kernel::ffi;

    include!(concat!(
        env!("VDUSE_RS_OBJ"),
        "/bindings/raw/helpers_generated.rs"
    ));
}

pub(crate) use headers::*;
