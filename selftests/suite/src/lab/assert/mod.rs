// SPDX-License-Identifier: GPL-2.0

//! Assertions about results, resources and timing, with their helpers.

pub mod counts;
pub mod data;
pub mod errors;
pub mod fault_paths;
pub mod limit;
pub mod progress;
pub mod race;
pub mod random;
pub mod timing;
pub mod waiting;
