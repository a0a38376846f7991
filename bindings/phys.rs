// SPDX-License-Identifier: GPL-2.0

//! Access to memory by its physical address.
//!
//! Userspace, or a driver on another CPU, may access the same bytes at the same time. The accesses
//! here are those of C code, for which that is no undefined behaviour: bytes that change meanwhile
//! have their old or their new values.
//!
//! C header: [`include/linux/highmem.h`](srctree/include/linux/highmem.h)
//!
//! # Context
//!
//! Any.

use super::raw as bindings;

/// Copies from physical memory to `buf`.
///
/// # Safety
///
/// The bytes from `phys` on must be memory that has page structures and stays allocated during the
/// call.
pub(super) unsafe fn read(phys: u64, buf: &mut [u8]) {
    // SAFETY: By the safety requirements; `buf` can be written to.
    unsafe { bindings::memcpy_from_phys(buf.as_mut_ptr().cast(), phys, buf.len()) }
}

/// Copies `bytes` to physical memory.
///
/// # Safety
///
/// As for [`read`]. In addition, nothing may rely on the memory's contents for memory safety.
pub(super) unsafe fn write(phys: u64, bytes: &[u8]) {
    // SAFETY: By the safety requirements; `bytes` can be read.
    unsafe { bindings::memcpy_to_phys(phys, bytes.as_ptr().cast(), bytes.len()) }
}

/// Loads 16 bits. Later accesses are not moved before that.
///
/// # Safety
///
/// As for [`read`], for two bytes; `phys` must be even.
pub(super) unsafe fn load_acquire(phys: u64) -> u16 {
    // SAFETY: By the safety requirements.
    unsafe { bindings::load_acquire_phys(phys) }
}

/// Stores 16 bits. Earlier accesses are not moved behind that.
///
/// # Safety
///
/// As for [`write`], for two bytes; `phys` must be even.
pub(super) unsafe fn store_release(phys: u64, value: u16) {
    // SAFETY: By the safety requirements.
    unsafe { bindings::store_release_phys(phys, value) }
}
