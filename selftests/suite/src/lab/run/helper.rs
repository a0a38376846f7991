// SPDX-License-Identifier: GPL-2.0

//! The helper processes of tests. Each of them runs this program with `--helper`.

use std::process::ExitCode;

use crate::lab::daemon::{groups, process};
use crate::lab::driver::block::Block;
use crate::lab::driver::client;
use crate::lab::driver::load;
use crate::lab::kernel::{compat, unprivileged};

/// The example `isolated` of the `vduse` library.
#[allow(dead_code)]
#[path = "../../../../vduse/examples/isolated.rs"]
mod isolated;

/// The example `net` of the `vduse` library.
#[allow(dead_code)]
#[path = "../../../../vduse/examples/net.rs"]
mod net;

/// Runs the helper that `arguments` name. The exit status tells whether the helper succeeded.
pub fn run(arguments: &[String]) -> ExitCode {
    let done = match arguments {
        [kind] if kind == "ia32" => compat::try_here(),
        [kind, rest @ ..] if kind == "daemon" => match process::run(rest) {
            Ok(()) => true,
            Err(error) => {
                eprintln!("daemon: {error}");
                false
            }
        },
        [kind, rest @ ..] if kind == "load" => match load::run(rest) {
            Ok(()) => true,
            Err(error) => {
                eprintln!("load: {error}");
                false
            }
        },
        [kind, name, queues] if kind == "queues" => queues.parse().is_ok_and(|queues| {
            let mut config = vduse::blk::device_config(name, 1 << 20, 1);
            config.queues = queues;
            vduse::Control::open().is_ok_and(|control| control.create(&config).is_ok())
        }),
        [kind, path, spaces] if kind == "moves" => spaces
            .parse()
            .is_ok_and(|spaces| client::move_through(path.as_ref(), spaces).is_ok()),
        [kind, path] if kind == "enable" => client::enable(path.as_ref()).is_ok(),
        [kind, path] if kind == "suspend" => client::suspend(path.as_ref()).is_ok(),
        // Reads 192 MiB of a disk at once, so that the device's bounce area fills up.
        [kind, disk] if kind == "fill" => Block::open(disk).is_ok_and(|block| {
            let read = |n: u64| block.read(n << 22, 4 << 20).is_ok();
            std::thread::scope(|scope| {
                let read = &read;
                let threads: Vec<_> = (0..48).map(|n| scope.spawn(move || read(n))).collect();
                threads
                    .into_iter()
                    .all(|thread| thread.join().unwrap_or(false))
            })
        }),
        [kind, name] if kind == "unprivileged" => unprivileged::run(name).is_ok(),
        [kind, path, spaces] if kind == "client" => spaces
            .parse()
            .is_ok_and(|spaces| client::run(path.as_ref(), spaces).is_ok()),
        [kind, name, bytes] if kind == "isolated" => bytes
            .parse()
            .is_ok_and(|bytes| isolated::serve(name, bytes).is_ok()),
        [kind, rest @ ..] if kind == "net" => {
            net::parse(rest).is_some_and(|(shape, tap)| net::serve(&shape, &tap).is_ok())
        }
        // Writes 4096 bytes with the value `byte` to the start of a disk.
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
        [kind, rest @ ..] if kind == "fuzz" => crate::fuzz::actors::run(rest),
        // Opens a file, which may block forever.
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
