// SPDX-License-Identifier: GPL-2.0

//! The tests, a module for each group. A test's name says what it proves.

use std::time::Duration;

use crate::options::Options;
use crate::pattern;

/// A test.
#[derive(Clone, Debug)]
pub struct Test {
    /// The name, `group::what_it_proves`.
    pub name: String,
    /// The time limit.
    pub limit: Duration,
    /// The function, which returns on success and panics on failure.
    pub run: fn(),
}

/// The limit of a test that specifies none, in seconds.
const LIMIT: u64 = 20;

type Entry = (&'static str, fn(), u64);
type Group = (&'static str, &'static [Entry]);

/// Lists the tests of a group: `name`, or `name => seconds` for a test that may take long.
macro_rules! tests {
    ($($name:ident $(=> $limit:literal)?),* $(,)?) => {
        /// The tests of this group.
        pub const TESTS: &[(&str, fn(), u64)] =
            &[$((stringify!($name), $name, $crate::tests::limit(&[$($limit)?]))),*];
    };
}

/// Returns the given limit, or else the default.
const fn limit(given: &[u64]) -> u64 {
    match given {
        [limit] => *limit,
        _ => LIMIT,
    }
}

macro_rules! groups {
    ($($group:ident),* $(,)?) => {
        $(mod $group;)*

        /// The groups, in the order in which they are run.
        const GROUPS: &[Group] = &[$((stringify!($group), $group::TESTS)),*];
    };
}

groups!(
    kunit,
    control,
    device,
    sysfs,
    bus,
    messages,
    iotlb,
    umem,
    vq,
    vhost,
    groups,
    spaces,
    switching,
    control_queue,
    extremes,
    model,
    compat,
    disk,
    fs,
    net,
    reference,
    teardown,
    probes,
    transitions,
    fuzz,
    leaks,
    qsd,
    guest,
    guest_net,
    power,
    unload,
    faults,
);

/// Returns all tests, in the order in which they run.
pub fn all() -> impl Iterator<Item = Test> {
    GROUPS.iter().flat_map(|&(group, tests)| {
        tests.iter().map(move |&(name, run, limit)| Test {
            name: format!("{group}::{name}"),
            limit: Duration::from_secs(limit),
            run,
        })
    })
}

/// Returns the tests that the patterns name, or all tests if there are none, except for those to be
/// left out.
pub fn selected(options: &Options) -> impl Iterator<Item = Test> + '_ {
    let any = |patterns: &[String], name: &str| patterns.iter().any(|p| pattern::matches(p, name));
    all().filter(move |test| {
        let wanted = options.patterns.is_empty() || any(&options.patterns, &test.name);
        wanted && !any(&options.skip, &test.name)
    })
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn names_are_all_different() {
        let mut names: Vec<String> = all().map(|test| test.name).collect();
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn mutants_are_to_be_noticed_by_tests_that_exist() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../mutants");
        let mut mutants = 0;
        for entry in std::fs::read_dir(folder).unwrap() {
            let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
            let tests = text.lines().find_map(|line| line.strip_prefix("Tests: "));
            for name in tests.expect("a line that names tests").split(' ') {
                assert!(all().any(|test| test.name == name), "{name}");
            }
            mutants += 1;
        }
        assert!(mutants > 20, "{mutants}");
    }

    #[test]
    fn the_documents_name_tests_that_exist() {
        for document in [
            include_str!("../../../../SECURITY.md"),
            include_str!("../../../../docs/hazards.md"),
        ] {
            // Every second part is quoted.
            let quoted = document.split('`').skip(1).step_by(2);
            let named: Vec<&str> = quoted.filter(|text| text.contains("::")).collect();
            assert!(named.len() > 20, "{}", named.len());
            for name in named {
                let exists = |test: Test| match name.contains('*') {
                    true => pattern::matches(name, &test.name),
                    false => name == test.name,
                };
                assert!(all().any(exists), "{name}");
            }
        }
    }
}
