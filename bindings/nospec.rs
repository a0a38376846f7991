// SPDX-License-Identifier: GPL-2.0

//! Indexing with numbers that come from userspace.
//!
//! C header: [`include/linux/nospec.h`](srctree/include/linux/nospec.h)

use super::raw as bindings;

/// Returns the element at `index`, or [`None`] if there is none.
///
/// An index that is out of bounds is not used speculatively either, so that the caches reveal
/// nothing about the memory beyond the slice. Any context.
pub(crate) fn get_nospec<T>(slice: &[T], index: usize) -> Option<&T> {
    if index >= slice.len() {
        return None;
    }

    // SAFETY: Any two numbers may be passed.
    slice.get(unsafe { bindings::array_index_nospec(index, slice.len()) })
}
