// SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note OR BSD-3-Clause

//! The userspace ABI of VDUSE, as a crate for userspace. The kernel module includes the same
//! `vduse.rs`.

#![no_std]
#![forbid(unsafe_code)]

mod vduse;

pub use vduse::*;

/// The examples of the README, which are compiled as documentation tests.
#[cfg(doctest)]
#[doc = include_str!("README.md")]
mod readme {}
