// SPDX-License-Identifier: GPL-2.0

//! Access to memory by its physical address.
//!
//! Userspace, or a driver on another CPU, may access the same bytes at the same time. The functions
//! of this module let C code access the memory, because such a race is not undefined behaviour in
//! the kernel's C code. A byte that changes during the access is read as its old or its new value.
//!
//! C header: [`include/linux/highmem.h`](srctree/include/linux/highmem.h)
//!
//! # Context
//!
//! Any.

use super::raw as bindings;

/// Copies `buf.len()` bytes from the physical address `phys` to `buf`.
///
/// # Safety
///
/// The `buf.len()` bytes from `phys` on must be memory that has page structures and stays allocated
/// during the call.
pub(super) unsafe fn read(phys: u64, buf: &mut [u8]) {
    // SAFETY: By the safety requirements, the physical memory is allocated; `buf` can be written
    // to.
    unsafe { bindings::memcpy_from_phys(buf.as_mut_ptr().cast(), phys, buf.len()) }
}

/// Copies `bytes` to the physical address `phys`.
///
/// # Safety
///
/// The same as for [`read`], with the length of `bytes`. In addition, no code may rely on the
/// memory's contents for memory safety.
pub(super) unsafe fn write(phys: u64, bytes: &[u8]) {
    // SAFETY: By the safety requirements, the physical memory is allocated; `bytes` can be read.
    unsafe { bindings::memcpy_to_phys(phys, bytes.as_ptr().cast(), bytes.len()) }
}

/// Loads 16 bits from the physical address `phys`, with acquire ordering.
///
/// # Safety
///
/// The same as for [`read`], with a length of two bytes. `phys` must be even.
pub(super) unsafe fn load_acquire(phys: u64) -> u16 {
    // SAFETY: By the safety requirements, the two bytes are allocated memory.
    unsafe { bindings::load_acquire_phys(phys) }
}

/// Stores 16 bits at the physical address `phys`, with release ordering.
///
/// # Safety
///
/// The same as for [`write`], with a length of two bytes. `phys` must be even.
pub(super) unsafe fn store_release(phys: u64, value: u16) {
    // SAFETY: By the safety requirements, the two bytes are allocated memory.
    unsafe { bindings::store_release_phys(phys, value) }
}
