// SPDX-License-Identifier: GPL-2.0

//! The lists of tests in the groups' modules.

/// A test of a group: its name, its function, and its limit in seconds.
pub type Entry = (&'static str, fn(), u64);

/// The limit of a test that specifies none, in seconds.
const LIMIT: u64 = 20;

/// Lists the tests of a group: `name`, or `name => seconds` for a test that may take long.
macro_rules! tests {
    ($($name:ident $(=> $limit:literal)?),* $(,)?) => {
        /// The tests of this group.
        pub const TESTS: &[$crate::tests::registry::Entry] =
            &[$((stringify!($name), $name, $crate::tests::registry::limit(&[$($limit)?]))),*];
    };
}

/// Returns the given limit, or else the default.
pub const fn limit(given: &[u64]) -> u64 {
    match given {
        [limit] => *limit,
        _ => LIMIT,
    }
}
