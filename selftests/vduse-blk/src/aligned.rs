// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Memory that begins at a page, as direct I/O needs it.

use std::alloc::{alloc_zeroed, dealloc, handle_alloc_error, Layout};
use std::ptr::NonNull;

const PAGE: usize = 4096;

/// A buffer that begins at a multiple of 4096 bytes.
///
/// # Invariants
///
/// `start` was allocated with `layout`, whose size is not 0.
#[derive(Debug)]
pub struct Aligned {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: The buffer belongs to the value.
unsafe impl Send for Aligned {}

impl Aligned {
    /// Allocates `len` zeroed bytes.
    ///
    /// # Panics
    ///
    /// Panics if `len` is 0 or more than memory can have.
    pub fn new(len: usize) -> Self {
        assert!(len != 0);
        let layout = Layout::from_size_align(len, PAGE).expect("a size");
        // SAFETY: The size is not 0.
        let start = NonNull::new(unsafe { alloc_zeroed(layout) });
        let start = start.unwrap_or_else(|| handle_alloc_error(layout));
        // INVARIANT: Allocated just now.
        Self { start, layout }
    }

    /// Returns the bytes.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: By the type invariant. Nothing writes to the bytes while `self` is borrowed.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.layout.size()) }
    }

    /// Returns the bytes, for writing.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: By the type invariant. `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.layout.size()) }
    }
}

impl Drop for Aligned {
    fn drop(&mut self) {
        // SAFETY: By the type invariant.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}
