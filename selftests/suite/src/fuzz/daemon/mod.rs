// SPDX-License-Identifier: GPL-2.0

//! Daemons. Some serve a device correctly, some do not, and some access all memory that they can
//! map.

pub mod life;

mod answers;
mod arguments;
mod calls;
mod errors;
mod regions;
mod serve;
mod torn;
mod umem;
