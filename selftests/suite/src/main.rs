// SPDX-License-Identifier: GPL-2.0

//! The test program, which the library crate describes.

use std::process::ExitCode;

fn main() -> ExitCode {
    vduse_selftests::main()
}
