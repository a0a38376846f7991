// SPDX-License-Identifier: GPL-2.0

//! The run of a test: its settings, its report, its files and helper processes.

pub mod helper;
pub mod report;
pub mod scratch;
pub mod settings;
