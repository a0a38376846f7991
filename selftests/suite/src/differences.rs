// SPDX-License-Identifier: GPL-2.0

//! The known differences between the two drivers: the table in `DIFFERENCES.md`.
//!
//! With the in-tree driver, a test in the table is expected to do there what the table says. One
//! that does not is a failure, so that the table stays true.

/// A driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    /// Ours.
    Rust,
    /// The in-tree one.
    C,
}

/// What the in-tree driver makes of a test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// The test fails.
    Fails,
    /// The test must not be run: it would wedge or corrupt the kernel.
    NotRun,
    /// The test passes, but the module's reference count is higher for ever.
    Leaks,
}

/// A series of kernels, as 7.2, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Series(u32, u32);

impl Series {
    /// Of a release, or a part of one: of 7.3.4+deb13-amd64, this is 7.3.
    pub fn of(release: &str) -> Option<Self> {
        let mut numbers = release.split(|c: char| !c.is_ascii_digit());
        let mut next = || numbers.next()?.parse().ok();

        Some(Self(next()?, next()?))
    }
}

/// A row of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The test's name.
    pub test: String,
    /// The first kernel that it holds on, if not on all.
    pub since: Option<Series>,
    /// The last one.
    pub until: Option<Series>,
    /// What the in-tree driver makes of it.
    pub known: Known,
    /// What happens there.
    pub reason: String,
}

/// The table, as it was when this was built.
const TABLE: &str = include_str!("../../DIFFERENCES.md");

impl Difference {
    /// Whether it holds on this kernel.
    fn is_of(&self, kernel: Series) -> bool {
        self.since.is_none_or(|since| since <= kernel)
            && self.until.is_none_or(|until| kernel <= until)
    }
}

/// The known differences on a kernel of this release.
pub fn on(release: &str) -> Result<Vec<Difference>, String> {
    let kernel = Series::of(release).ok_or_else(|| format!("the kernel calls itself {release}"))?;
    let mut known = all();
    known.retain(|difference| difference.is_of(kernel));
    Ok(known)
}

/// All known differences.
fn all() -> Vec<Difference> {
    parse(TABLE).unwrap_or_else(|row| panic!("DIFFERENCES.md: cannot read the row {row}"))
}

/// Reads the rows of the tables in a text; an `Err` is a row that makes no sense.
fn parse(text: &str) -> Result<Vec<Difference>, String> {
    text.lines()
        .filter_map(|line| line.trim().strip_prefix('|')?.strip_suffix('|'))
        // A row of a table of tests names the test as code; headings and rulers do not.
        .filter(|row| row.trim_start().starts_with('`'))
        .map(|row| row_of(row).ok_or_else(|| row.to_owned()))
        .collect()
}

fn row_of(row: &str) -> Option<Difference> {
    let cells: Vec<&str> = row.split('|').map(str::trim).collect();
    let [test, theirs, _ours, _why] = cells[..] else {
        return None;
    };
    let (marker, reason) = theirs.split_once(':')?;
    let (marker, until) = series_after(marker, " until ")?;
    let (marker, since) = series_after(marker, " since ")?;
    let known = match marker {
        "fails" => Known::Fails,
        "not run" => Known::NotRun,
        "leaks" => Known::Leaks,
        _ => return None,
    };
    Some(Difference {
        test: test.strip_prefix('`')?.strip_suffix('`')?.to_owned(),
        since,
        until,
        known,
        reason: reason.trim().to_owned(),
    })
}

/// What is before this word, and the series after it, if it is there.
fn series_after<'a>(marker: &'a str, word: &str) -> Option<(&'a str, Option<Series>)> {
    match marker.split_once(word) {
        Some((marker, text)) => {
            let series = Series::of(text)?;
            (text == format!("{}.{}", series.0, series.1)).then_some((marker, Some(series)))
        }
        None => Some((marker, None)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_read_and_headings_are_not() {
        let text = "
# Words
| test | in-tree driver | vduse_rs | why |
|---|---|---|---|
| `a::b` | fails: EPERM | EINVAL | better |
| `a::c` | not run since 7.3: hangs | ends | it ends |
";
        assert_eq!(
            parse(text).unwrap(),
            [
                Difference {
                    test: "a::b".to_owned(),
                    since: None,
                    until: None,
                    known: Known::Fails,
                    reason: "EPERM".to_owned()
                },
                Difference {
                    test: "a::c".to_owned(),
                    since: Some(Series(7, 3)),
                    until: None,
                    known: Known::NotRun,
                    reason: "hangs".to_owned()
                }
            ]
        );
    }

    #[test]
    fn a_row_holds_on_its_kernels() {
        let kernels = [
            "6.18.44",
            "7.2.12+deb13-amd64",
            "7.3.4+deb13-rt-amd64",
            "8.0-rc1",
        ];
        let holds = |marker: &str| {
            let row = row_of(&format!(" `a::b` | {marker}: x | y | z ")).unwrap();
            kernels.map(|release| row.is_of(Series::of(release).unwrap()))
        };
        assert_eq!(holds("fails"), [true; 4]);
        assert_eq!(holds("fails since 7.3"), [false, false, true, true]);
        assert_eq!(holds("not run until 7.2"), [true, true, false, false]);
        assert_eq!(
            holds("fails since 7.0 until 7.2"),
            [false, true, false, false]
        );
        assert_eq!(Series::of("unknown"), None);
    }

    #[test]
    fn a_row_without_a_marker_is_an_error() {
        assert!(parse("| `a::b` | fails since long: x | y | z |").is_err());
        assert!(parse("| `a::b` | fails since 7.3 or so: x | y | z |").is_err());
        assert!(parse("| `a::b` | EPERM | EINVAL | better |").is_err());
        assert!(parse("| `a::b` | fails: x | y |").is_err());
    }

    #[test]
    fn the_table_names_tests_that_exist_each_once() {
        let names: Vec<String> = crate::tests::all().map(|test| test.name).collect();
        let mut seen = Vec::new();
        for difference in all() {
            assert!(names.contains(&difference.test), "{}", difference.test);
            assert!(!seen.contains(&difference.test), "{}", difference.test);
            seen.push(difference.test);
        }
    }
}
