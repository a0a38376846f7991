// SPDX-License-Identifier: GPL-2.0

//! The operations of the I/O path that are inlined on x86-64.
//!
//! The kernel crate's own versions of these operations call C functions, unless the kernel is built
//! with `CONFIG_RUST_INLINE_HELPERS`, which requires clang. Each function of the I/O path does
//! a handful of atomic operations and little else, so calls of C functions would make up a third of
//! its cost.
//!
//! Two modules implement the same items: `x86_64` for that architecture, `generic` with the kernel
//! crate's functions. Kbuild selects `x86_64` on x86-64 with SMP, unless `make FAST=n` selects
//! `generic`. In C, `memcpy_phys` of `raw/helpers.c` has two implementations, which Kbuild selects
//! in the same way. The rest of the crate requires only a 64-bit little-endian architecture.

#[cfg(not(fast_x86_64))]
mod generic;
#[cfg(fast_x86_64)]
mod x86_64;

#[cfg(not(fast_x86_64))]
pub(super) use generic::{
    current_cpu,
    is_preemptible,
    page_to_phys, //
};
#[cfg(fast_x86_64)]
pub(super) use x86_64::{
    current_cpu,
    is_preemptible,
    page_to_phys, //
};

/// An atomic that can be read and written without a function call on x86-64.
///
/// C header: [`include/asm-generic/rwonce.h`](srctree/include/asm-generic/rwonce.h)
pub(crate) trait Inlined {
    /// The type of the value.
    type Value;

    /// Returns the value, as `load(Relaxed)` does.
    fn read(&self) -> Self::Value;
    /// Returns the value, as `load(Acquire)` does.
    fn read_acquire(&self) -> Self::Value;
    /// Sets the value, as `store(_, Relaxed)` does.
    fn write(&self, value: Self::Value);
}

/// A word of bits that can be modified without a function call on x86-64.
pub(crate) trait InlinedBits {
    /// Replaces `old` by `new`, as `cmpxchg(old, new, Acquire)` does.
    fn replace_acquire(&self, old: u64, new: u64) -> Result<u64, u64>;
    /// Adds `bits`, as `fetch_add(bits, Release)` does, without returning the old value.
    fn add_release(&self, bits: u64);
}
