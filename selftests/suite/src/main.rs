// SPDX-License-Identifier: GPL-2.0

//! The program; the library says what it does.

use std::process::ExitCode;

fn main() -> ExitCode {
    vduse_selftests::main()
}
