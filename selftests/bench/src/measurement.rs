// SPDX-License-Identifier: GPL-2.0

//! A measurement, with the rows of the table that it fills.

/// The figures that are better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Better {
    /// Large figures.
    Higher,
    /// Small figures.
    Lower,
}

/// A row of the table.
#[derive(Clone, Debug)]
pub struct Row {
    /// What is measured.
    pub name: String,
    /// The unit of the figures.
    pub unit: &'static str,
    /// The figures that are better.
    pub better: Better,
    /// The target, as our driver's figure divided by that of the in-tree driver.
    pub target: f64,
}

impl Row {
    /// Creates a row in which large figures are better.
    pub fn higher(name: impl Into<String>, unit: &'static str, target: f64) -> Self {
        Self {
            name: name.into(),
            unit,
            better: Better::Higher,
            target,
        }
    }

    /// Creates a row in which small figures are better.
    pub fn lower(name: impl Into<String>, unit: &'static str, target: f64) -> Self {
        Self {
            better: Better::Lower,
            ..Self::higher(name, unit, target)
        }
    }
}

/// A measurement, of one row or several.
pub struct Bench {
    /// The rows.
    pub rows: Vec<Row>,
    /// Measures the rows once, with the driver that is loaded.
    pub run: Box<dyn Fn() -> Vec<f64>>,
    /// Measures the same with ublk, which needs neither driver.
    pub on_ublk: Option<Box<dyn Fn() -> Vec<f64>>>,
}

impl Bench {
    /// Creates a measurement that ublk has no counterpart of.
    pub fn new(rows: Vec<Row>, run: impl Fn() -> Vec<f64> + 'static) -> Self {
        Self {
            rows,
            run: Box::new(run),
            on_ublk: None,
        }
    }
}
