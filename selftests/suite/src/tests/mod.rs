// SPDX-License-Identifier: GPL-2.0

//! The tests. Each group of tests has its own module. The name of a test says what the test proves.

#[macro_use]
mod registry;

mod blk_daemon;
mod bus;
mod card_faults;
mod compat;
mod control;
mod control_queue;
mod device;
mod disk;
mod disk_faults;
mod extremes;
mod faults;
mod features;
mod fs;
mod fuzz;
mod give_back;
mod groups;
mod guest;
mod guest_net;
mod handover;
mod hostile_cards;
mod interrupts;
mod iotlb;
mod kicks;
mod kunit;
mod leaks;
mod memory_shortage;
mod messages;
mod model;
mod net;
mod ovs;
mod power;
mod probes;
mod qsd;
mod queue_ready;
mod reference;
mod reserve;
mod shadow;
mod spaces;
mod state;
mod suspend;
mod switching;
mod sysfs;
mod teardown;
mod timeouts;
mod transitions;
mod umem;
mod umem_faults;
mod unload;
mod vhost;
mod vhost_faults;
mod vq;

use std::time::Duration;

use crate::options::Options;
use crate::pattern;
use crate::tests::registry::Entry;

/// A test.
#[derive(Clone, Debug)]
pub struct Test {
    /// The test's name, in the form `group::what_it_proves`.
    pub name: String,
    /// The test's time limit.
    pub limit: Duration,
    /// The test's function. It returns on success and panics on failure.
    pub run: fn(),
}

type Group = (&'static str, &'static [Entry]);

macro_rules! groups {
    ($($group:ident),* $(,)?) => {
        &[$((stringify!($group), $group::TESTS)),*]
    };
}

/// All groups, in the order in which the runner runs them.
const GROUPS: &[Group] = groups![
    kunit,
    control,
    features,
    device,
    sysfs,
    state,
    bus,
    messages,
    timeouts,
    iotlb,
    umem,
    vq,
    kicks,
    interrupts,
    queue_ready,
    vhost,
    suspend,
    handover,
    groups,
    spaces,
    switching,
    control_queue,
    extremes,
    model,
    compat,
    disk,
    reserve,
    give_back,
    blk_daemon,
    fs,
    net,
    shadow,
    hostile_cards,
    ovs,
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
    memory_shortage,
    unload,
    faults,
    vhost_faults,
    disk_faults,
    umem_faults,
    card_faults,
];

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

/// Returns the tests whose names match a pattern of `options.patterns`, except for tests whose
/// names match a pattern of `options.skip`. If `options.patterns` is empty, every name matches.
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
    use crate::differences;

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
        let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../mutants");
        let mut mutants = 0;
        for entry in std::fs::read_dir(directory).unwrap() {
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
    fn the_table_of_differences_names_tests_that_exist_each_once() {
        let names: Vec<String> = all().map(|test| test.name).collect();
        let mut seen = Vec::new();
        for difference in differences::all() {
            assert!(names.contains(&difference.test), "{}", difference.test);
            assert!(!seen.contains(&difference.test), "{}", difference.test);
            seen.push(difference.test);
        }
    }

    #[test]
    fn the_documents_name_tests_that_exist() {
        for document in [
            include_str!("../../../../SECURITY.md"),
            include_str!("../../../../docs/hazards.md"),
        ] {
            // Backquotes split the document into parts, every second of which is quoted.
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
