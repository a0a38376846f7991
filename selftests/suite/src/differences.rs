// SPDX-License-Identifier: GPL-2.0

//! The known differences between the two drivers: the table in `DIFFERENCES.md`.
//!
//! With the in-tree driver, the runner expects each test in the table to behave as the table says.
//! Any other behaviour is a failure, so that the table stays correct.

/// A VDUSE kernel driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Driver {
    /// The driver of this project, `vduse_rs`.
    Rust,
    /// The in-tree driver.
    C,
}

/// The known outcome of a test with the in-tree driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// The test fails.
    Fails,
    /// The runner skips the test, because the test would hang or corrupt the kernel.
    NotRun,
    /// The test passes, but the module's reference count never returns to its previous value.
    Leaks,
}

/// A kernel series such as 7.2, ordered by version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Series(u32, u32);

impl Series {
    /// Parses a kernel series at the start of a text, for example 7.3 in `7.3.4+deb13-amd64`.
    /// Returns `None` if the text does not start with two numbers.
    pub fn of(release: &str) -> Option<Self> {
        let mut numbers = release.split(|c: char| !c.is_ascii_digit());
        let mut next = || numbers.next()?.parse().ok();

        Some(Self(next()?, next()?))
    }
}

/// A row of the table of differences.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The test's name.
    pub test: String,
    /// The first kernel series to which the row applies, or `None` if there is no lower limit.
    pub since: Option<Series>,
    /// The last kernel series to which the row applies, or `None` if there is no upper limit.
    pub until: Option<Series>,
    /// The outcome with the in-tree driver.
    pub known: Known,
    /// The behaviour of the in-tree driver.
    pub reason: String,
}

/// The text of `DIFFERENCES.md` when this program was built.
const TABLE: &str = include_str!("../../DIFFERENCES.md");

impl Difference {
    /// Returns whether the row applies to the kernel series `kernel`.
    fn is_of(&self, kernel: Series) -> bool {
        self.since.is_none_or(|since| since <= kernel)
            && self.until.is_none_or(|until| kernel <= until)
    }
}

/// Returns the known differences that apply to the kernel release `release`. Returns an error
/// message if `release` does not start with a series.
pub fn on(release: &str) -> Result<Vec<Difference>, String> {
    let kernel = Series::of(release).ok_or_else(|| format!("the kernel calls itself {release}"))?;
    let mut known = all();
    known.retain(|difference| difference.is_of(kernel));
    Ok(known)
}

/// Returns all known differences. Panics if `DIFFERENCES.md` has a malformed row.
pub fn all() -> Vec<Difference> {
    parse(TABLE).unwrap_or_else(|row| panic!("DIFFERENCES.md: cannot read the row {row}"))
}

/// Parses the rows of the tables in `text`. If a row is malformed, returns that row as the error.
fn parse(text: &str) -> Result<Vec<Difference>, String> {
    text.lines()
        .filter_map(|line| line.trim().strip_prefix('|')?.strip_suffix('|'))
        // The first cell of a row about a test is the test's name in backquotes. Headings and
        // rulers have no backquote there.
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

/// Splits `marker` before `word` and parses the series after `word`. Returns the text before `word`
/// and the series, or the whole `marker` and no series if `word` is absent. Returns `None` if the
/// text after `word` is not a series.
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
}
