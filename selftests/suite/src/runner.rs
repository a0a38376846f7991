// SPDX-License-Identifier: GPL-2.0

//! The runner of tests, which runs each test in its own process and determines the test's verdict.

use std::io::Write;
use std::process::{Command, ExitCode};
use std::time::Duration;

use crate::differences::{self, Difference, Driver, Known};
use crate::kmsg::{self, Log};
use crate::ktap::{self, Totals, Verdict};
use crate::lab::device::bus;
use crate::lab::kernel::modules;
use crate::options::Options;
use crate::outcome::{NOTE, SKIPPED};
use crate::process::{self, End};
use crate::tests::{self, Test};
use crate::{cleanup, environment};

/// Time limit of the process that removes left-over devices.
const CLEANUP_LIMIT: Duration = Duration::from_secs(20);

/// Runs the tests that `options` select, and prints the results.
pub fn run(options: &Options) -> ExitCode {
    match Runner::new(options) {
        Ok(mut runner) => runner.run(),
        Err(why) => {
            println!("Bail out! {why}");
            ExitCode::from(2)
        }
    }
}

struct Runner<'a> {
    options: &'a Options,
    module: &'static str,
    tests: Vec<(Test, Option<Difference>)>,
    log: Log,
    /// Name of the test that left the kernel in a state in which no other test can run.
    wedged_by: Option<String>,
}

impl<'a> Runner<'a> {
    fn new(options: &'a Options) -> Result<Self, String> {
        let module = modules::name(options.driver);
        if !modules::is_loaded(module) {
            return Err(format!("the module {module} is not loaded"));
        }
        let known = match options.driver {
            Driver::C => differences::on(&rustix::system::uname().release().to_string_lossy())?,
            Driver::Rust => Vec::new(),
        };
        let mut tests: Vec<_> = tests::selected(options)
            .map(|test| {
                let difference = known.iter().find(|row| row.test == test.name).cloned();
                (test, difference)
            })
            .collect();
        if tests.is_empty() {
            return Err("no test has such a name".to_owned());
        }
        // Tests that leak references to the module run last, because later tests could not unload
        // the module.
        tests.sort_by_key(|(_, row)| row.as_ref().is_some_and(|row| row.known == Known::Leaks));
        let log = Log::open().map_err(|error| format!("/dev/kmsg: {error}"))?;
        Ok(Self {
            options,
            module,
            tests,
            log,
            wedged_by: None,
        })
    }

    fn run(&mut self) -> ExitCode {
        print!("{}", ktap::head(self.tests.len()));
        process::adopt_orphans();
        if let Err(why) = modules::load_bus().and_then(|()| bus::set_autoprobe(false)) {
            println!("Bail out! {why}");
            return ExitCode::from(2);
        }
        let mut totals = Totals::default();
        let tests = std::mem::take(&mut self.tests);
        for (number, (test, difference)) in (1..).zip(&tests) {
            let (verdict, took) = self.judge(test, difference.as_ref());
            totals.count(&verdict);
            print!(
                "{}",
                ktap::result(number, &test.name, &verdict, took.as_secs_f64())
            );
            let _ = std::io::stdout().flush();
        }
        // Restores the kernel's default: automatic binding is enabled.
        let _ = bus::set_autoprobe(true);
        print!("{}", totals.line());
        ExitCode::from(u8::from(totals.fail != 0))
    }

    /// Runs a test and compares its outcome with `row`, the test's row in the table of known
    /// differences (`DIFFERENCES.md`). Returns the verdict and the time that the test took.
    fn judge(&mut self, test: &Test, row: Option<&Difference>) -> (Verdict, Duration) {
        let reason = row.map(|row| row.reason.clone()).unwrap_or_default();
        let known = row.map(|row| row.known);
        if known == Some(Known::NotRun) {
            return (Verdict::Skip(reason), Duration::ZERO);
        }
        if let Some(culprit) = &self.wedged_by {
            let why = format!("not run: {culprit} left the kernel hanging");
            return (Verdict::Fail(vec![why]), Duration::ZERO);
        }
        let (verdict, leaked, took) = self.try_test(test);
        let verdict = match (known, verdict) {
            (Some(Known::Fails), Verdict::Fail(_)) => Verdict::ExpectedFail(reason),
            (Some(Known::Fails), Verdict::Pass) => unexpected("passes", &reason),
            // The leak may take so much memory that the test fails as well.
            (Some(Known::Leaks), Verdict::Pass | Verdict::Fail(_)) if leaked.is_some() => {
                Verdict::ExpectedFail(reason)
            }
            (Some(Known::Leaks), Verdict::Pass) => unexpected("does not leak", &reason),
            (_, Verdict::Pass) => match leaked {
                Some(leaked) => Verdict::Fail(vec![leaked]),
                None => Verdict::Pass,
            },
            (_, verdict) => verdict,
        };
        (verdict, took)
    }

    /// Runs a test. Returns its verdict, a description of the references that it leaked, and the
    /// time that it took.
    fn try_test(&mut self, test: &Test) -> (Verdict, Option<String>, Duration) {
        let before = modules::references(self.module);
        self.log.lines();
        let finished = match process::run(
            self.command().args(["--run-test", &test.name]),
            self.limit(test),
        ) {
            Ok(finished) => finished,
            Err(error) => {
                let why = format!("cannot start the test: {error}");
                return (Verdict::Fail(vec![why]), None, Duration::ZERO);
            }
        };
        let took = finished.took;
        for line in finished.output.lines() {
            if let Some(note) = line.strip_prefix(NOTE) {
                println!("# {}: {note}", test.name);
            }
        }
        let skipped = matches!(&finished.end, End::Ended(status)
            if status.code() == Some(i32::from(SKIPPED)));
        let mut complaints = Vec::new();
        if !skipped {
            if let Some(complaint) = finished.complaint() {
                complaints.extend(finished.output.lines().map(str::to_owned));
                complaints.push(complaint);
            }
        }
        self.clean_up(test, &mut complaints);
        if let Some(lines) = kmsg::complaints(&self.log.lines()) {
            complaints.push("the kernel's log has:".to_owned());
            complaints.extend(lines.iter().cloned());
        }
        let leaked = self.leaked(before);
        let verdict = if !complaints.is_empty() {
            complaints.extend(leaked.clone());
            Verdict::Fail(complaints)
        } else if skipped {
            let reason = finished.output.lines().last().unwrap_or("no reason given");
            Verdict::Skip(reason.to_owned())
        } else {
            Verdict::Pass
        };
        (verdict, leaked, took)
    }

    /// Returns the time limit of a test.
    fn limit(&self, test: &Test) -> Duration {
        let limit = test.limit * self.options.patience;
        if test.name.starts_with("fuzz::") {
            limit + Duration::from_secs(self.options.fuzz.seconds)
        } else {
            limit
        }
    }

    fn command(&self) -> Command {
        let mut command = Command::new("/proc/self/exe");
        command.env(
            environment::DRIVER,
            match self.options.driver {
                Driver::Rust => "rust",
                Driver::C => "c",
            },
        );
        let fuzz = &self.options.fuzz;
        command
            .env(environment::PATIENCE, self.options.patience.to_string())
            .env(environment::FUZZ_SECONDS, fuzz.seconds.to_string())
            .env(environment::FUZZ_ACTORS, &fuzz.actors);
        if fuzz.trace {
            command.env(environment::FUZZ_TRACE, "1");
        }
        if let Some(module) = &self.options.module {
            command.env(environment::MODULE, module);
        }
        if let Some(guest) = &self.options.guest {
            command.env(environment::GUEST, guest);
        }
        if self.options.without_kvm {
            command.env(environment::WITHOUT_KVM, "1");
        }
        if let Some(seed) = self.options.seed {
            command.env(environment::SEED, seed.to_string());
        }
        command
    }

    fn clean_up(&mut self, test: &Test, complaints: &mut Vec<String>) {
        if let Err(why) = bus::set_autoprobe(false) {
            complaints.push(why);
        }
        let left = cleanup::devices();
        if left.is_empty() {
            return;
        }
        complaints.push(format!("devices left over: {}", left.join(", ")));
        match process::run(self.command().arg("--cleanup"), CLEANUP_LIMIT) {
            Ok(finished) => {
                if matches!(finished.end, End::Stuck(_)) {
                    self.wedged_by = Some(test.name.clone());
                }
                if let Some(complaint) = finished.complaint() {
                    complaints.push(finished.output.trim_end().to_owned());
                    complaints.push(format!("cleaning up {complaint}"));
                }
            }
            Err(error) => complaints.push(format!("cannot clean up: {error}")),
        }
    }

    fn leaked(&self, before: Option<i64>) -> Option<String> {
        let before = before?;
        match modules::references_settled(self.module, before) {
            Some(after) if after == before => None,
            Some(after) => Some(format!(
                "the module had {before} references before and has {after} now"
            )),
            None => Some("the module is not loaded any more".to_owned()),
        }
    }
}

fn unexpected(what: &str, reason: &str) -> Verdict {
    Verdict::Fail(vec![format!(
        "{what}, but DIFFERENCES.md says of the in-tree driver: {reason}"
    )])
}
