// SPDX-License-Identifier: GPL-2.0

//! Processes that tests start: this program, with `--helper`.

use std::process::ExitCode;

use crate::lab::{compat, daemon};

/// Does what the arguments say.
pub fn run(arguments: &[String]) -> ExitCode {
    let done = match arguments {
        [kind] if kind == "ia32" => compat::try_here(),
        [kind, rest @ ..] if kind == "daemon" => match daemon::run(rest) {
            Ok(()) => true,
            Err(error) => {
                eprintln!("daemon: {error}");
                false
            }
        },
        // Opens a file, which may wait for ever.
        [kind, path] if kind == "open" => std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .is_ok(),
        _ => {
            eprintln!("no such helper: {arguments:?}");
            false
        }
    };
    ExitCode::from(u8::from(!done))
}
