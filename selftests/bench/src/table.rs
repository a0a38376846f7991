// SPDX-License-Identifier: GPL-2.0

//! The printed table of results.

use std::collections::HashMap;
use std::fmt::Write;

use vduse_selftests::differences::Driver;

use crate::drivers;
use crate::measurement::{Better, Row};

/// Title of ublk's column. The column of a driver has the driver's [title](drivers::title).
pub const UBLK: &str = "ublk";

/// The measured figures, keyed by the row's name and the column's title.
#[derive(Debug, Default)]
pub struct Results(HashMap<(String, &'static str), Vec<f64>>);

impl Results {
    /// Adds a figure.
    pub fn add(&mut self, row: &Row, column: &'static str, value: f64) {
        let key = (row.name.clone(), column);
        self.0.entry(key).or_default().push(value);
    }

    /// Returns the median of a row's figures.
    fn median(&self, row: &Row, column: &'static str) -> Option<f64> {
        median(self.0.get(&(row.name.clone(), column))?.clone())
    }

    /// Returns whether ublk was measured.
    fn has_ublk(&self) -> bool {
        self.0.keys().any(|&(_, column)| column == UBLK)
    }
}

/// Returns the median: the middle value, or the mean of the two middle values.
pub fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let upper = values.get(middle)?;
    Some(if values.len() % 2 == 0 {
        (values[middle - 1] + upper) / 2.0
    } else {
        *upper
    })
}

/// The figures of a row, as the table shows them.
struct Line {
    c: Option<f64>,
    ours: Option<f64>,
    ratio: Option<f64>,
    ublk: Option<f64>,
    ratio_to_ublk: Option<f64>,
}

impl Line {
    fn new(row: &Row, results: &Results) -> Self {
        let c = results.median(row, drivers::title(Driver::C));
        let ours = results.median(row, drivers::title(Driver::Rust));
        let ublk = results.median(row, UBLK);
        let to = |other: Option<f64>| Some(ours? / other?);
        Self {
            c,
            ours,
            ratio: to(c),
            ublk,
            ratio_to_ublk: to(ublk),
        }
    }
}

/// Returns whether a ratio, rounded as in the table, reaches a row's target.
fn reaches(row: &Row, ratio: f64) -> bool {
    let ratio = (ratio * 100.0).round() / 100.0;
    match row.better {
        Better::Higher => ratio >= row.target,
        Better::Lower => ratio <= row.target,
    }
}

/// Formats a figure, or `-` if there is none.
pub fn figure(value: Option<f64>) -> String {
    match value {
        None => "-".to_owned(),
        Some(value) if value.abs() < 100.0 => format!("{value:.2}"),
        Some(value) => format!("{value:.0}"),
    }
}

/// Formats a ratio, or `-` if there is none.
pub fn ratio(value: Option<f64>) -> String {
    value.map_or("-".to_owned(), |ratio| format!("{ratio:.2}"))
}

/// Formats the table.
pub fn text(rows: &[&Row], results: &Results) -> String {
    let titles = ["what", "unit", "C", "ours", "ours/C", "wanted", ""];
    let mut lines = vec![titles.map(str::to_owned).to_vec()];
    if results.has_ublk() {
        lines[0].extend(["ublk", "ours/ublk"].map(str::to_owned));
    }
    for row in rows {
        let line = Line::new(row, results);
        let sign = match row.better {
            Better::Higher => ">=",
            Better::Lower => "<=",
        };
        let missed = line.ratio.is_some_and(|ratio| !reaches(row, ratio));
        let mut cells = vec![
            row.name.clone(),
            row.unit.to_owned(),
            figure(line.c),
            figure(line.ours),
            ratio(line.ratio),
            format!("{sign} {:.2}", row.target),
            if missed { "missed" } else { "" }.to_owned(),
        ];
        if results.has_ublk() {
            cells.extend([figure(line.ublk), ratio(line.ratio_to_ublk)]);
        }
        lines.push(cells);
    }
    aligned(&lines, |column| column < 2 || column == 6)
}

/// Formats lines of cells, aligned in columns. `is_text` tells which columns are aligned to the
/// left. All lines must have as many cells as the first one.
pub fn aligned(lines: &[Vec<String>], is_text: impl Fn(usize) -> bool) -> String {
    let columns = lines.first().map_or(0, Vec::len);
    let width = |column: usize| lines.iter().map(|line| line[column].len()).max();
    let widths: Vec<usize> = (0..columns).filter_map(width).collect();
    let mut text = String::new();
    for line in lines {
        let mut shown = String::new();
        for (column, (cell, &width)) in line.iter().zip(&widths).enumerate() {
            // Align text to the left and figures to the right. Writing to a string cannot fail.
            let _ = if is_text(column) {
                write!(shown, "{cell:<width$}  ")
            } else {
                write!(shown, "{cell:>width$}  ")
            };
        }
        text.push_str(shown.trim_end());
        text.push('\n');
    }
    text
}

/// Formats the results as comma-separated values, one line for each row.
pub fn csv(rows: &[&Row], results: &Results) -> String {
    let mut text = "what,unit,better,c,ours,ratio,wanted,ublk\n".to_owned();
    for row in rows {
        let line = Line::new(row, results);
        let cell = |value: Option<f64>| value.map_or(String::new(), |value| format!("{value:.4}"));
        let better = match row.better {
            Better::Higher => "higher",
            Better::Lower => "lower",
        };
        let _ = writeln!(
            text,
            "\"{}\",{},{better},{},{},{},{},{}",
            row.name,
            row.unit,
            cell(line.c),
            cell(line.ours),
            cell(line.ratio),
            row.target,
            cell(line.ublk)
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(better: Better, target: f64) -> Row {
        Row {
            name: "work".to_owned(),
            unit: "ns",
            better,
            target,
        }
    }

    #[test]
    fn a_median_is_in_the_middle() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }

    #[test]
    fn what_is_missed_is_marked() {
        let mut results = Results::default();
        let cost = row(Better::Lower, 0.7);
        results.add(&cost, "C", 100.0);
        results.add(&cost, "ours", 80.0);
        assert!(text(&[&cost], &results).contains("0.80  <= 0.70  missed"));
        assert!(!text(&[&row(Better::Lower, 0.8)], &results).contains("missed"));
        assert!(text(&[&row(Better::Higher, 1.3)], &results).contains("missed"));
        assert!(!text(&[&row(Better::Higher, 0.5)], &results).contains("missed"));
        assert!(
            csv(&[&cost], &results).ends_with("\"work\",ns,lower,100.0000,80.0000,0.8000,0.7,\n")
        );
    }
    #[test]
    fn ublk_has_columns_if_it_was_measured() {
        let mut results = Results::default();
        let speed = row(Better::Higher, 1.0);
        results.add(&speed, "ours", 80.0);
        assert!(!text(&[&speed], &results).contains("ublk"));
        results.add(&speed, UBLK, 100.0);
        let text = text(&[&speed], &results);
        assert!(text.lines().next().unwrap().ends_with("ublk  ours/ublk"));
        assert!(text.ends_with("100       0.80\n"));
    }
}
