// SPDX-License-Identifier: GPL-2.0

//! Assertions: what a test expects, and how long it waits for that.

pub mod counts;
pub mod expect;
pub mod limit;
pub mod pattern;
pub mod waiting;
