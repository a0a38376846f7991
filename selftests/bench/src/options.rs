// SPDX-License-Identifier: GPL-2.0

//! The options on the command line.

use std::path::PathBuf;

use vduse_selftests::differences::Driver;

use crate::drivers;

/// The usage message, which follows an error message about the command line.
pub const USAGE: &str = "\
usage: vduse-bench [OPTION]... [PATTERN]...

Measures the rows that have a PATTERN in their name (all, without one) with both drivers; one that ends
with $ is looked for at the end.
As root, with neither of them loaded.

  --module FILE            our module (or VDUSE_MODULE)
  --rounds N               how often each driver is loaded and measured (2)
  --driver-only rust|c     one driver only, to look at it with a profiler
  --ublk                   measure the rows of disks on one of ublk, too
  --daemons RUBLK          measure disk daemons instead: qemu-storage-daemon, vduse-blk, and rublk, whose program is RUBLK
  --profile DIRECTORY         mark what the machine counts the instructions of, in one round, and tell it about that there;
                           not of memory, nor of how long virtio-blk's kicks and interrupts take
  --csv                    print the figures once more, as comma-separated values
  --list                   print the names of the rows and end
  --verbose                say how long each measurement takes";

/// The options of a run.
#[derive(Debug, PartialEq, Eq)]
pub struct Options {
    /// Path of our module.
    pub module: PathBuf,
    /// Number of rounds. Each round measures each driver once.
    pub rounds: u32,
    /// The drivers to measure.
    pub drivers: Vec<Driver>,
    /// Whether to measure ublk, in addition to the drivers.
    pub ublk: bool,
    /// Path of rublk, if daemons are to be measured.
    pub rublk: Option<PathBuf>,
    /// Directory in which `qemu-test/profiler.rs` finds the symbols of each driver. `None` if no
    /// profile is wanted.
    pub profile: Option<PathBuf>,
    /// Whether to print the figures a second time, as comma-separated values.
    pub csv: bool,
    /// Whether to print only the names of the rows.
    pub list: bool,
    /// Whether to report progress.
    pub verbose: bool,
    /// The patterns that select the rows to measure.
    pub patterns: Patterns,
}

/// Patterns for the names of rows. A name matches if it contains one of the patterns, or if there
/// are no patterns. A pattern that ends with `$` must match the end of the name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Patterns(Vec<String>);

impl Patterns {
    /// Returns whether a name matches.
    pub fn fit(&self, name: &str) -> bool {
        let fits = |pattern: &String| match pattern.strip_suffix('$') {
            Some(end) => name.ends_with(end),
            None => name.contains(pattern),
        };
        self.0.is_empty() || self.0.iter().any(fits)
    }
}

impl Options {
    /// Returns whether a row should be measured.
    pub fn wants(&self, row: &str) -> bool {
        self.patterns.fit(row)
    }
}

/// Parses the command line.
pub fn parse(arguments: &[String]) -> Result<Options, String> {
    let mut options = Options {
        module: std::env::var_os("VDUSE_MODULE")
            .map_or_else(|| PathBuf::from("vduse_rs.ko"), PathBuf::from),
        rounds: 2,
        drivers: drivers::ALL.to_vec(),
        ublk: false,
        rublk: None,
        profile: None,
        csv: false,
        list: false,
        verbose: false,
        patterns: Patterns::default(),
    };
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let mut value = || {
            rest.next()
                .ok_or_else(|| format!("{argument} wants a value"))
        };
        match argument.as_str() {
            "--module" => options.module = value()?.into(),
            "--rounds" => {
                options.rounds = match value()?.parse() {
                    Ok(rounds @ 1..=100) => rounds,
                    _ => return Err("--rounds is a number from 1 to 100".to_owned()),
                }
            }
            "--driver-only" => {
                options.drivers = match value()?.as_str() {
                    "rust" => vec![Driver::Rust],
                    "c" => vec![Driver::C],
                    other => return Err(format!("{other}: no such driver")),
                }
            }
            "--ublk" => options.ublk = true,
            "--daemons" => options.rublk = Some(value()?.into()),
            "--profile" => options.profile = Some(value()?.into()),
            "--csv" => options.csv = true,
            "--list" => options.list = true,
            "--verbose" => options.verbose = true,
            option if option.starts_with('-') => return Err(format!("{option}: no such option")),
            pattern => options.patterns.0.push(pattern.to_owned()),
        }
    }
    if options.profile.is_some() {
        // A driver's code is at a different address each time the driver is loaded, so a profile
        // can cover only one round.
        options.rounds = 1;
        if options.ublk {
            return Err("--profile is of the two drivers: not with --ublk".to_owned());
        }
    }
    Ok(options)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Options, String> {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        super::parse(&words)
    }

    #[test]
    fn rows_are_chosen_by_a_part_of_their_name() {
        let options = parse("--rounds 3 read latency").unwrap();
        assert_eq!(options.rounds, 3);
        assert!(options.wants("4 KiB random read"));
        assert!(options.wants("kick latency"));
        assert!(!options.wants("4 KiB random write"));
        assert!(parse("").unwrap().wants("anything"));
        let options = parse("1$").unwrap();
        assert!(options.wants("depth 1"));
        assert!(!options.wants("depth 16"));
    }

    #[test]
    fn one_driver_can_be_measured_alone() {
        let options = parse("--driver-only rust").unwrap();
        assert_eq!(options.drivers, [Driver::Rust]);
        assert!(parse("--driver-only java").is_err());
    }
}
