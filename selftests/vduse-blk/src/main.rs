// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A daemon that serves a file or a block device as a VDUSE disk.
//!
//! - `options` is the command line, `image` the file.
//! - `worker` serves a virtqueue: it turns requests into operations of io_uring. `flight` has the
//!   requests in progress. `aligned` is memory for direct I/O.
//! - `disk` is the life of the device: created or taken over, resized, ended.

mod aligned;
mod disk;
mod flight;
mod image;
mod options;
mod worker;

use std::process::ExitCode;

use crate::options::Action;

fn main() -> ExitCode {
    let options = match options::parse(std::env::args_os().skip(1)) {
        Ok(Action::Serve(options)) => options,
        Ok(Action::Help) => {
            print!("{}", options::HELP);
            return ExitCode::SUCCESS;
        }
        Ok(Action::Version) => {
            println!("vduse-blk {}", env!("CARGO_PKG_VERSION"));
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("vduse-blk: {error}\nTry `vduse-blk --help`.");
            return ExitCode::from(2);
        }
    };
    match disk::serve(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vduse-blk: {}: {error}", options.name);
            ExitCode::FAILURE
        }
    }
}
