// SPDX-License-Identifier: GPL-2.0

//! Output in KTAP format (`Documentation/dev-tools/ktap.rst`).

use std::fmt::Write;

/// The verdict on a test, which KTAP reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The test passed.
    Pass,
    /// The test failed. The lines give the reasons.
    Fail(Vec<String>),
    /// The test was not run. The text gives the reason.
    Skip(String),
    /// The test failed as expected. The text gives the reason.
    ExpectedFail(String),
}

/// Returns the KTAP header of the output for a run of `tests` tests: the version and the plan.
pub fn head(tests: usize) -> String {
    format!("KTAP version 1\n1..{tests}\n")
}

/// Returns the lines of a test's result: diagnostics, then the verdict.
pub fn result(number: usize, name: &str, verdict: &Verdict, seconds: f64) -> String {
    let mut text = String::new();
    if let Verdict::Fail(lines) = verdict {
        for line in lines.iter().flat_map(|line| line.lines()) {
            let _ = writeln!(text, "# {}", printable(line));
        }
    }
    let _ = match verdict {
        Verdict::Pass => writeln!(text, "ok {number} {name} # {seconds:.1}s"),
        Verdict::Fail(_) => writeln!(text, "not ok {number} {name} # {seconds:.1}s"),
        Verdict::Skip(why) => writeln!(text, "ok {number} {name} # SKIP {}", printable(why)),
        Verdict::ExpectedFail(why) => {
            writeln!(text, "not ok {number} {name} # XFAIL {}", printable(why))
        }
    };
    text
}

/// Returns `line` with each control character replaced by a space, because control characters would
/// confuse a terminal or a parser.
fn printable(line: &str) -> String {
    line.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

/// Counters of verdicts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Number of tests that passed.
    pub pass: usize,
    /// Number of tests that failed.
    pub fail: usize,
    /// Number of tests that were not run.
    pub skip: usize,
    /// Number of tests that failed as expected.
    pub expected: usize,
}

impl Totals {
    /// Counts a verdict.
    pub fn count(&mut self, verdict: &Verdict) {
        match verdict {
            Verdict::Pass => self.pass += 1,
            Verdict::Fail(_) => self.fail += 1,
            Verdict::Skip(_) => self.skip += 1,
            Verdict::ExpectedFail(_) => self.expected += 1,
        }
    }

    /// Returns the line of totals, with which the output of a run ends.
    pub fn line(&self) -> String {
        format!(
            "# Totals: pass:{} fail:{} xfail:{} xpass:0 skip:{} error:0\n",
            self.pass, self.fail, self.expected, self.skip
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_has_its_diagnostics_before_it() {
        let verdict = Verdict::Fail(vec!["one\ntwo".to_owned(), "th\x1bree".to_owned()]);
        assert_eq!(
            result(3, "a::b", &verdict, 1.25),
            "# one\n# two\n# th ree\nnot ok 3 a::b # 1.2s\n"
        );
    }

    #[test]
    fn directives_are_those_of_ktap() {
        let skip = Verdict::Skip("no net".to_owned());
        assert_eq!(result(1, "a", &skip, 0.0), "ok 1 a # SKIP no net\n");
        let known = Verdict::ExpectedFail("EPERM".to_owned());
        assert_eq!(result(2, "b", &known, 0.0), "not ok 2 b # XFAIL EPERM\n");
    }

    #[test]
    fn every_verdict_is_counted() {
        let mut totals = Totals::default();
        totals.count(&Verdict::Pass);
        totals.count(&Verdict::Fail(Vec::new()));
        totals.count(&Verdict::Skip(String::new()));
        totals.count(&Verdict::ExpectedFail(String::new()));
        assert_eq!(
            totals.line(),
            "# Totals: pass:1 fail:1 xfail:1 xpass:0 skip:1 error:0\n"
        );
    }
}
