// SPDX-License-Identifier: GPL-2.0

//! Daemons: some serve a device well, some do not, some look at all they can.

pub mod life;

mod answers;
mod arguments;
mod calls;
mod errors;
mod regions;
mod serve;
mod torn;
mod umem;
