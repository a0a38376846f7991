// SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note OR BSD-3-Clause

//! The userspace ABI of VDUSE, as the kernel module sees it.

mod module;
#[allow(dead_code, unreachable_pub)]
mod vduse;

pub(crate) use vduse::*;
