// SPDX-License-Identifier: GPL-2.0

//! Processes that tests start: this program, with `--helper`.

use std::process::ExitCode;

use crate::lab::block::Block;
use crate::lab::{client, compat, daemon, groups};

/// The library's example.
#[allow(dead_code)]
#[path = "../../../vduse/examples/isolated.rs"]
mod isolated;

/// The library's other example.
#[allow(dead_code)]
#[path = "../../../vduse/examples/net.rs"]
mod net;

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
        [kind, path, spaces] if kind == "client" => spaces
            .parse()
            .is_ok_and(|spaces| client::run(path.as_ref(), spaces).is_ok()),
        [kind, name, bytes] if kind == "isolated" => bytes
            .parse()
            .is_ok_and(|bytes| isolated::serve(name, bytes).is_ok()),
        [kind, rest @ ..] if kind == "net" => {
            net::parse(rest).is_some_and(|(shape, tap)| net::serve(&shape, &tap).is_ok())
        }
        // Writes a page of one byte to the start of a disk.
        [kind, disk, byte] if kind == "write" => byte.parse().is_ok_and(|byte: u8| {
            Block::open(disk).is_ok_and(|block| block.write(0, &[byte; 4096]).is_ok())
        }),
        [kind, rest @ ..] if kind == "groups" => match groups::run(rest) {
            Ok(()) => true,
            Err(error) => {
                eprintln!("groups: {error}");
                false
            }
        },
        [kind, rest @ ..] if kind == "fuzz" => crate::fuzz::act(rest),
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
