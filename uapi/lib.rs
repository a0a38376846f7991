// SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note OR BSD-3-Clause

//! The userspace ABI of VDUSE, as a crate for userspace. The kernel module includes the same
//! `vduse.rs`.

#![no_std]
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod vduse;

pub use vduse::*;
