// SPDX-License-Identifier: GPL-2.0

//! The process of a running test: its settings, its report, its files, its helper processes.

pub mod helper;
pub mod report;
pub mod scratch;
pub mod settings;
