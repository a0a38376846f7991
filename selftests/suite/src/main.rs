// SPDX-License-Identifier: GPL-2.0

//! The test program. The library crate has its description.

use std::process::ExitCode;

fn main() -> ExitCode {
    vduse_selftests::main()
}
