// SPDX-License-Identifier: GPL-2.0

//! A measurement, and the rows of the table that it fills.

/// Whether large or small figures are better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Better {
    /// Large figures are better.
    Higher,
    /// Small figures are better.
    Lower,
}

/// A row of the table.
#[derive(Clone, Debug)]
pub struct Row {
    /// The row's name, which says what is measured.
    pub name: String,
    /// The unit of the figures.
    pub unit: &'static str,
    /// Whether large or small figures are better.
    pub better: Better,
    /// The target for the ratio of our driver's figure to the in-tree driver's figure.
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

/// A measurement, which fills one or more rows.
pub struct Bench {
    /// The rows.
    pub rows: Vec<Row>,
    /// Measures all rows once, with the loaded driver.
    pub run: Box<dyn Fn() -> Vec<f64>>,
    /// Measures all rows once with ublk, without a VDUSE driver. `None` if the measurement has no
    /// counterpart with ublk.
    pub on_ublk: Option<Box<dyn Fn() -> Vec<f64>>>,
}

impl Bench {
    /// Creates a measurement that has no counterpart with ublk.
    pub fn new(rows: Vec<Row>, run: impl Fn() -> Vec<f64> + 'static) -> Self {
        Self {
            rows,
            run: Box::new(run),
            on_ublk: None,
        }
    }
}
