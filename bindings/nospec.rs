// SPDX-License-Identifier: GPL-2.0

//! Indexing with numbers that come from userspace.
//!
//! C header: [`include/linux/nospec.h`](srctree/include/linux/nospec.h)

use super::raw as bindings;

/// Returns the element at `index`, or [`None`] if `index` is out of bounds.
///
/// Even during speculative execution, the CPU does not use an index that is out of bounds. So the
/// CPU's caches reveal nothing about the memory after the slice. Any context.
pub(crate) fn get_nospec<T>(slice: &[T], index: usize) -> Option<&T> {
    if index >= slice.len() {
        return None;
    }

    // SAFETY: `array_index_nospec` accepts any two numbers.
    slice.get(unsafe { bindings::array_index_nospec(index, slice.len()) })
}
