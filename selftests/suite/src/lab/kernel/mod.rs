// SPDX-License-Identifier: GPL-2.0

//! The kernel around the driver: modules, sysfs, memory, CPUs, tracing, fault injection.

pub mod ballast;
pub mod cgroup;
pub mod compat;
pub mod cpu;
pub mod fault_injection;
pub mod file_mapping;
pub mod huge_page;
pub mod late_page;
pub mod loading;
pub mod memlock;
pub mod memory;
pub mod missing_page;
pub mod modules;
pub mod mount;
pub mod probe;
pub mod ram_disk;
pub mod raw;
pub mod rcu;
pub mod reserved_range;
pub mod suspend;
pub mod swap;
pub mod sysfs;
pub mod trace;
pub mod unprivileged;
pub mod userfaultfd;
