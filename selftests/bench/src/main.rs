// SPDX-License-Identifier: GPL-2.0

//! A benchmark of our driver against the in-tree one. It loads both drivers in turn, and measures
//! the same work of the same daemon with each.
//!
//! It must run as root in a machine that has neither driver loaded and whose state does not matter
//! (`qemu-test/bench`). Preferably, the machine's clock counts instructions. Then a figure is the
//! same in each run, whatever else the host does.
//!
//! - `rows` has the measurements.
//! - `null` has the devices of most measurements. `aio` and `packet` generate the load.
//! - `probes` counts the instructions of functions with kernel probes. `profile` lets QEMU count
//!   them.
//! - `daemons` measures daemons of disks, with the same image.
//! - `ublk` has a disk that is served through ublk, for comparison with the null disk.
//! - `drivers` loads the drivers. `measurement`, `options` and `table` are the rows, the command
//!   line and the printed table.

mod aio;
mod clock;
mod daemons;
mod drivers;
mod measurement;
mod null;
mod options;
mod packet;
mod probes;
mod profile;
mod rows;
mod table;
mod ublk;

use std::panic::{catch_unwind, AssertUnwindSafe};
use std::process::ExitCode;
use std::time::Duration;

use vduse_selftests::lab::device::bus;

use crate::measurement::Bench;
use crate::options::Options;
use crate::table::Results;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let options = match options::parse(&arguments) {
        Ok(options) => options,
        Err(message) => {
            eprintln!("{message}\n\n{}", options::USAGE);
            return ExitCode::from(2);
        }
    };
    if let Some(directory) = &options.profile {
        profile::start(directory.clone(), options.patterns.clone());
    }
    if let Some(rublk) = &options.rublk {
        return match daemons::measure(&options, rublk) {
            Ok(table) => {
                print!("{table}");
                ExitCode::SUCCESS
            }
            Err(why) => {
                eprintln!("{why}");
                ExitCode::FAILURE
            }
        };
    }
    let cpus = std::thread::available_parallelism().map_or(1, |n| n.get());
    let mut benches = rows::all(cpus);
    benches.retain(|bench| bench.rows.iter().any(|row| options.wants(&row.name)));
    if options.list {
        for row in benches.iter().flat_map(|bench| &bench.rows) {
            println!("{}", row.name);
        }
        return ExitCode::SUCCESS;
    }
    match measure(&options, &benches) {
        Ok((results, failed)) => {
            let rows: Vec<_> = benches
                .iter()
                .flat_map(|bench| &bench.rows)
                .filter(|row| options.wants(&row.name))
                .collect();
            print!("{}", table::text(&rows, &results));
            if options.csv {
                print!("\n{}", table::csv(&rows, &results));
            }
            ExitCode::from(u8::from(failed))
        }
        Err(why) => {
            eprintln!("{why}");
            ExitCode::FAILURE
        }
    }
}

/// Measures all rows with all drivers. Returns the results, and whether a measurement failed.
fn measure(options: &Options, benches: &[Bench]) -> Result<(Results, bool), String> {
    drivers::load_bus()?;
    bus::set_autoprobe(false)?;
    let mut results = Results::default();
    let mut failed = false;
    for round in 1..=options.rounds {
        let mut run = |bench: &Bench, column, measure: &dyn Fn() -> Vec<f64>| {
            // Give the kernel time to complete deferred frees of the previous measurement.
            std::thread::sleep(Duration::from_millis(500));
            let begin = std::time::Instant::now();
            let name = &bench.rows[0].name;
            match catch_unwind(AssertUnwindSafe(measure)) {
                Ok(values) => {
                    assert_eq!(values.len(), bench.rows.len(), "{name}: the number of rows");
                    for (row, value) in bench.rows.iter().zip(values) {
                        results.add(row, column, value);
                    }
                }
                // The panic's message has been printed already.
                Err(_) => {
                    eprintln!("{name}: not measured");
                    failed = true;
                }
            }
            if options.verbose {
                let took = begin.elapsed();
                eprintln!("round {round}, {column}: {name} and others: {took:.1?}");
            }
        };
        for &driver in &options.drivers {
            drivers::load(driver, &options.module)?;
            profile::next();
            for bench in benches {
                run(bench, drivers::title(driver), &bench.run);
            }
            profile::tell(drivers::title(driver));
            drivers::unload(driver)?;
        }
        if options.ublk {
            for bench in benches {
                if let Some(on_ublk) = &bench.on_ublk {
                    run(bench, table::UBLK, on_ublk);
                }
            }
        }
    }
    Ok((results, failed))
}
