// SPDX-License-Identifier: GPL-2.0

//! The kernel around the driver: modules, sysfs, memory, CPUs, tracing, fault injection.

pub mod cgroup;
pub mod compat;
pub mod cpu;
pub mod faults;
pub mod injection;
pub mod loading;
pub mod memory;
pub mod modules;
pub mod outsider;
pub mod raw;
pub mod rcu;
pub mod suspend;
pub mod sysfs;
pub mod trace;
pub mod window;
