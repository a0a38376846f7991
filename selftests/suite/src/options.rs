// SPDX-License-Identifier: GPL-2.0

//! Parsing of the command line.

use std::path::PathBuf;

use crate::differences::Driver;

/// The output of `--help`.
pub const USAGE: &str = "\
usage: vduse-selftests [OPTION]... [PATTERN]...

Runs the tests whose names have a PATTERN in them (or match it, when it has * or ?);
without one, all of them. As root, with the driver loaded.

  --driver rust|c    which driver is loaded: ours (default) or the in-tree one
  --module FILE      the module to load again after it was unloaded (or VDUSE_MODULE;
                     default: modprobe vduse)
  --guest DIR        what a guest inside this machine boots from: the directory that
                     qemu-test/nested makes; without it, tests with a guest are skipped
  --without-kvm      guests inside this machine are emulated, even if it has KVM
  --skip PATTERN     leave tests out
  --seed NUMBER      where tests that do things at random start (default: the clock);
                     they print it
  --fuzz-seconds N   how long the fuzzer goes on (default 30)
  --fuzz-actors A,B  have only those actors take part whose names begin so
  --fuzz-trace       have each of the fuzzer's calls written to the kernel's log
  --patience N       make the time limits of tests N times as long, for a slow kernel; those
                     of a slow or busy machine are longer by themselves
  --list             print the names of the tests and end
  --help             print this and end";

/// The mode of the program.
#[derive(Debug, PartialEq, Eq)]
pub enum Mode {
    /// Print the usage.
    Help,
    /// Print the names of tests.
    List(Options),
    /// Run tests.
    Run(Options),
    /// Run one test in this process.
    Test(String),
    /// Remove left-over devices in this process.
    Cleanup,
    /// Run a helper of a test in this process.
    Helper(Vec<String>),
}

/// Options for running tests.
#[derive(Debug, PartialEq, Eq)]
pub struct Options {
    /// The driver that is loaded.
    pub driver: Driver,
    /// Path of the driver's module file. If `None`, tests load the module with `modprobe`.
    pub module: Option<PathBuf>,
    /// Directory with the files from which a nested guest boots.
    pub guest: Option<PathBuf>,
    /// Whether QEMU emulates nested guests even if this machine has KVM.
    pub without_kvm: bool,
    /// Patterns that select the tests to run. If empty, all tests are selected.
    pub patterns: Vec<String>,
    /// Patterns that exclude tests.
    pub skip: Vec<String>,
    /// Seed of the tests that use random numbers.
    pub seed: Option<u64>,
    /// Options of the fuzzer.
    pub fuzz: Fuzz,
    /// Factor by which the time limits of tests are multiplied.
    pub patience: u32,
}

/// Options of the fuzzer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fuzz {
    /// Duration of a run in seconds.
    pub seconds: u64,
    /// Name prefixes that select the actors, separated by commas. If empty, all actors take part.
    pub actors: String,
    /// Whether the fuzzer writes each of its calls to the kernel's log.
    pub trace: bool,
}

impl Default for Fuzz {
    fn default() -> Self {
        Self {
            seconds: 30,
            actors: String::new(),
            trace: false,
        }
    }
}

/// Parses the command line.
pub fn parse(arguments: &[String]) -> Result<Mode, String> {
    let mut options = Options {
        driver: Driver::Rust,
        module: std::env::var_os("VDUSE_MODULE").map(PathBuf::from),
        guest: None,
        without_kvm: false,
        patterns: Vec::new(),
        skip: Vec::new(),
        seed: None,
        fuzz: Fuzz::default(),
        patience: 1,
    };
    let mut list = false;
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let mut value = || {
            rest.next()
                .cloned()
                .ok_or_else(|| format!("{argument} wants a value"))
        };
        match argument.as_str() {
            "--help" | "-h" => return Ok(Mode::Help),
            "--list" => list = true,
            "--driver" => {
                options.driver = match value()?.as_str() {
                    "rust" => Driver::Rust,
                    "c" => Driver::C,
                    other => return Err(format!("{other}: no such driver")),
                }
            }
            "--patience" => {
                options.patience = match value()?.parse() {
                    Ok(factor @ 1..=100) => factor,
                    _ => return Err("--patience is a number from 1 to 100".to_owned()),
                }
            }
            "--skip" => options.skip.push(value()?),
            "--seed" => {
                let number = value()?;
                let bad = |_| format!("{number}: no such number");
                options.seed = Some(number.parse().map_err(bad)?);
            }
            "--guest" => options.guest = Some(value()?.into()),
            "--without-kvm" => options.without_kvm = true,
            "--fuzz-seconds" => {
                options.fuzz.seconds = match value()?.parse() {
                    Ok(seconds @ 1..=86400) => seconds,
                    _ => return Err("--fuzz-seconds is a number from 1 to 86400".to_owned()),
                }
            }
            "--fuzz-actors" => options.fuzz.actors = value()?,
            "--fuzz-trace" => options.fuzz.trace = true,
            "--module" => options.module = Some(value()?.into()),
            "--run-test" => return Ok(Mode::Test(value()?)),
            "--cleanup" => return Ok(Mode::Cleanup),
            "--helper" => return Ok(Mode::Helper(rest.cloned().collect())),
            option if option.starts_with('-') => return Err(format!("{option}: no such option")),
            pattern => options.patterns.push(pattern.to_owned()),
        }
    }
    Ok(if list {
        Mode::List(options)
    } else {
        Mode::Run(options)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Mode, String> {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        super::parse(&words)
    }

    #[test]
    fn options_and_patterns_can_be_mixed() {
        let line = "control:: --driver c umem --skip twice --seed 7 --guest /a/b";
        let Mode::Run(options) = parse(line).unwrap() else {
            panic!();
        };
        assert_eq!(options.driver, Driver::C);
        assert_eq!(options.patterns, ["control::", "umem"]);
        assert_eq!(options.skip, ["twice"]);
        assert_eq!(options.seed, Some(7));
        assert_eq!(options.guest, Some(PathBuf::from("/a/b")));
        assert_eq!(options.fuzz, Fuzz::default());
    }

    #[test]
    fn what_is_not_understood_is_said() {
        assert!(parse("--driver").unwrap_err().contains("wants a value"));
        assert!(parse("--driver java").unwrap_err().contains("java"));
        assert!(parse("--fuzz-seconds x")
            .unwrap_err()
            .contains("--fuzz-seconds"));
        assert!(parse("--patience 0").unwrap_err().contains("--patience"));
        assert!(parse("--frobnicate").unwrap_err().contains("--frobnicate"));
    }

    #[test]
    fn helpers_get_all_that_follows() {
        assert_eq!(
            parse("--helper a --list").unwrap(),
            Mode::Helper(vec!["a".to_owned(), "--list".to_owned()])
        );
    }
}
