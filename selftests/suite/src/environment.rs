// SPDX-License-Identifier: GPL-2.0

//! Environment variables through which the runner passes its options to tests.

/// The driver: `rust` or `c`.
pub const DRIVER: &str = "VDUSE_SELFTESTS_DRIVER";
/// The module's file; unset if modprobe finds the module.
pub const MODULE: &str = "VDUSE_MODULE";
/// The directory with the files that a guest boots from.
pub const GUEST: &str = "VDUSE_SELFTESTS_GUEST";
/// Set if a guest is emulated even if the machine has KVM.
pub const WITHOUT_KVM: &str = "VDUSE_SELFTESTS_WITHOUT_KVM";
/// Seed of random tests.
pub const SEED: &str = "VDUSE_SELFTESTS_SEED";
/// Duration of the fuzzer in seconds.
pub const FUZZ_SECONDS: &str = "VDUSE_SELFTESTS_FUZZ_SECONDS";
/// The actors that take part in the fuzzer.
pub const FUZZ_ACTORS: &str = "VDUSE_SELFTESTS_FUZZ_ACTORS";
/// Set if the fuzzer's calls are written to the kernel's log.
pub const FUZZ_TRACE: &str = "VDUSE_SELFTESTS_FUZZ_TRACE";
/// Factor for time limits.
pub const PATIENCE: &str = "VDUSE_SELFTESTS_PATIENCE";
