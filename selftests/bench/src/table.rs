// SPDX-License-Identifier: GPL-2.0

//! What is printed.

use std::collections::HashMap;
use std::fmt::Write;

use vduse_selftests::differences::Driver;

use crate::drivers;
use crate::rows::{Better, Row};

/// What was measured: the figures of each driver, by the row's name.
#[derive(Debug, Default)]
pub struct Results(HashMap<(String, &'static str), Vec<f64>>);

impl Results {
    /// Adds a figure.
    pub fn add(&mut self, row: &Row, driver: Driver, value: f64) {
        let key = (row.name.clone(), drivers::title(driver));
        self.0.entry(key).or_default().push(value);
    }

    /// The median of a row's figures.
    fn median(&self, row: &Row, driver: Driver) -> Option<f64> {
        let key = (row.name.clone(), drivers::title(driver));
        median(self.0.get(&key)?.clone())
    }
}

/// The middle one of some figures, or the mean of the two in the middle.
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

/// A row as it is shown.
struct Line {
    c: Option<f64>,
    ours: Option<f64>,
    ratio: Option<f64>,
}

impl Line {
    fn new(row: &Row, results: &Results) -> Self {
        let c = results.median(row, Driver::C);
        let ours = results.median(row, Driver::Rust);
        let ratio = c.zip(ours).map(|(c, ours)| ours / c);
        Self { c, ours, ratio }
    }
}

/// Whether a ratio, as it is shown, reaches a row's target.
fn reaches(row: &Row, ratio: f64) -> bool {
    let ratio = (ratio * 100.0).round() / 100.0;
    match row.better {
        Better::Higher => ratio >= row.target,
        Better::Lower => ratio <= row.target,
    }
}

fn figure(value: Option<f64>) -> String {
    match value {
        None => "-".to_owned(),
        Some(value) if value.abs() < 100.0 => format!("{value:.2}"),
        Some(value) => format!("{value:.0}"),
    }
}

/// The table.
pub fn text(rows: &[&Row], results: &Results) -> String {
    let mut lines = vec![["what", "unit", "C", "ours", "ours/C", "wanted", ""].map(str::to_owned)];
    for row in rows {
        let line = Line::new(row, results);
        let sign = match row.better {
            Better::Higher => ">=",
            Better::Lower => "<=",
        };
        let missed = line.ratio.is_some_and(|ratio| !reaches(row, ratio));
        lines.push([
            row.name.clone(),
            row.unit.to_owned(),
            figure(line.c),
            figure(line.ours),
            line.ratio
                .map_or("-".to_owned(), |ratio| format!("{ratio:.2}")),
            format!("{sign} {:.2}", row.target),
            if missed { "missed" } else { "" }.to_owned(),
        ]);
    }
    let width = |column: usize| lines.iter().map(|line| line[column].len()).max();
    let widths: Vec<usize> = (0..7).filter_map(width).collect();
    let mut text = String::new();
    for line in &lines {
        let mut shown = String::new();
        for (column, (cell, &width)) in line.iter().zip(&widths).enumerate() {
            // Words to the left, figures to the right. Writing to a string does not fail.
            let _ = if column < 2 || column == 6 {
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

/// The same as comma-separated values, one line for each row.
pub fn csv(rows: &[&Row], results: &Results) -> String {
    let mut text = "what,unit,better,c,ours,ratio,wanted\n".to_owned();
    for row in rows {
        let line = Line::new(row, results);
        let cell = |value: Option<f64>| value.map_or(String::new(), |value| format!("{value:.4}"));
        let better = match row.better {
            Better::Higher => "higher",
            Better::Lower => "lower",
        };
        let _ = writeln!(
            text,
            "\"{}\",{},{better},{},{},{},{}",
            row.name,
            row.unit,
            cell(line.c),
            cell(line.ours),
            cell(line.ratio),
            row.target
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
        results.add(&cost, Driver::C, 100.0);
        results.add(&cost, Driver::Rust, 80.0);
        assert!(text(&[&cost], &results).contains("0.80  <= 0.70  missed"));
        assert!(!text(&[&row(Better::Lower, 0.8)], &results).contains("missed"));
        assert!(text(&[&row(Better::Higher, 1.3)], &results).contains("missed"));
        assert!(!text(&[&row(Better::Higher, 0.5)], &results).contains("missed"));
        assert!(
            csv(&[&cost], &results).ends_with("\"work\",ns,lower,100.0000,80.0000,0.8000,0.7\n")
        );
    }
}
