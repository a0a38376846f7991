// SPDX-License-Identifier: GPL-2.0

//! The building blocks of tests, grouped by purpose.

pub mod assert;
pub mod daemon;
pub mod device;
pub mod driver;
pub mod guest;
pub mod kernel;
pub mod run;
