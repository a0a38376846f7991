// SPDX-License-Identifier: GPL-2.0

//! Environment variables through which the runner passes its options to tests.

/// The loaded driver: `rust` or `c`.
pub const DRIVER: &str = "VDUSE_SELFTESTS_DRIVER";
/// Path of the driver's module file. Unset if tests load the module with `modprobe`.
pub const MODULE: &str = "VDUSE_MODULE";
/// The directory with the files from which a guest boots.
pub const GUEST: &str = "VDUSE_SELFTESTS_GUEST";
/// Set if QEMU must emulate guests even if the machine has KVM.
pub const WITHOUT_KVM: &str = "VDUSE_SELFTESTS_WITHOUT_KVM";
/// Seed of the tests that use random numbers.
pub const SEED: &str = "VDUSE_SELFTESTS_SEED";
/// Duration of the fuzzer in seconds.
pub const FUZZ_SECONDS: &str = "VDUSE_SELFTESTS_FUZZ_SECONDS";
/// Name prefixes that select the fuzzer's actors, separated by commas.
pub const FUZZ_ACTORS: &str = "VDUSE_SELFTESTS_FUZZ_ACTORS";
/// Set if the fuzzer writes each of its calls to the kernel's log.
pub const FUZZ_TRACE: &str = "VDUSE_SELFTESTS_FUZZ_TRACE";
/// Duration in seconds for which memory is short in the longest test of that.
pub const SHORTAGE_SECONDS: &str = "VDUSE_SELFTESTS_SHORTAGE_SECONDS";
/// Maximum time in seconds for which a program may stand still there.
pub const LONGEST_STALL: &str = "VDUSE_SELFTESTS_LONGEST_STALL";
/// Factor by which the time limits of tests are multiplied.
pub const PATIENCE: &str = "VDUSE_SELFTESTS_PATIENCE";
