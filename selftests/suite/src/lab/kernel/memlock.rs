// SPDX-License-Identifier: GPL-2.0

//! The limit on a process's locked memory.

/// Removes this process's limit on locked memory.
pub fn unlimited_memlock() {
    set_memlock(None);
}

/// Sets the number of bytes that this process may lock. `None` means no limit.
#[track_caller]
pub fn set_memlock(bytes: Option<u64>) {
    use rustix::process::{setrlimit, Resource, Rlimit};
    let limit = Rlimit {
        current: bytes,
        maximum: None,
    };
    setrlimit(Resource::Memlock, limit).expect("setting RLIMIT_MEMLOCK");
}

/// Returns the amount of this process's pinned memory in KiB.
#[track_caller]
pub fn pinned_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("reading the status");
    status
        .lines()
        .find_map(|line| line.strip_prefix("VmPin:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .expect("VmPin in the status")
}
