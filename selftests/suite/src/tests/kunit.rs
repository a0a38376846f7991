// SPDX-License-Identifier: GPL-2.0

//! The module's own unit tests, which KUnit runs when the module is loaded.

use std::path::Path;

use crate::differences::Driver;
use crate::kmsg::Log;
use crate::lab::kernel::modules;
use crate::lab::run::report::{note, skip};
use crate::lab::run::settings::driver;

tests![the_modules_own_tests_pass];

/// The start of the log line that precedes the results of a test suite.
const SUITE: &str = "# Subtest: ";

// This test runs before all other groups, because the kernel log keeps the messages about loading
// the module only for a while.
fn the_modules_own_tests_pass() {
    if !Path::new("/sys/module/kunit").exists() {
        skip("this kernel has no KUnit");
    }
    if driver() == Driver::C {
        skip("the in-tree driver has no tests of its own");
    }
    let name = modules::name(driver());
    let log = Log::from_start().expect("reading the log").lines();
    let results = |suite: usize| {
        let mut lines = log[suite..].iter();
        // The log indents the results of single tests. The suite's own result, which is not
        // indented, comes last.
        let ends = lines.position(|line| line.starts_with("ok ") || line.starts_with("not ok "));
        &log[suite..=suite + ends.expect("the end of the suite")]
    };
    let suites: Vec<_> = (0..log.len())
        .filter(|&at| {
            log[at]
                .trim_start()
                .strip_prefix(SUITE)
                .is_some_and(|suite| suite.starts_with(name))
        })
        .map(results)
        .collect();
    assert!(!suites.is_empty(), "no suite of {name} in the log");
    for suite in suites {
        let (all, tests) = suite.split_last().expect("the suite's result");
        for test in tests.iter().filter(|line| line.contains("ok ")) {
            note(test.trim_start());
        }
        assert!(all.starts_with("ok "), "{}", suite.join("\n"));
        assert!(
            tests
                .iter()
                .any(|line| line.trim_start().starts_with("ok ")),
            "no test ran"
        );
    }
}
