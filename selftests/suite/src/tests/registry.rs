// SPDX-License-Identifier: GPL-2.0

//! The macro with which each group's module lists its tests.

/// A test of a group: its name, its function, and its time limit in seconds.
pub type Entry = (&'static str, fn(), u64);

/// The default time limit of a test, in seconds.
const LIMIT: u64 = 20;

/// Lists the tests of a group. An entry is `name`, or `name => seconds` for a test that may take
/// long.
macro_rules! tests {
    ($($name:ident $(=> $limit:literal)?),* $(,)?) => {
        /// The tests of this group.
        pub const TESTS: &[$crate::tests::registry::Entry] =
            &[$((stringify!($name), $name, $crate::tests::registry::limit(&[$($limit)?]))),*];
    };
}

/// Returns the given time limit, or the default if none is given.
pub const fn limit(given: &[u64]) -> u64 {
    match given {
        [limit] => *limit,
        _ => LIMIT,
    }
}
