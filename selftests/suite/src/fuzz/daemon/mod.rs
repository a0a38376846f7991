// SPDX-License-Identifier: GPL-2.0

//! Daemons: those that serve a device well, those that do not, and those that look at all they can.

pub mod life;

mod answers;
mod arguments;
mod calls;
mod errors;
mod regions;
mod serve;
mod torn;
mod umem;
