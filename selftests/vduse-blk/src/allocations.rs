// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A count of the heap allocations of a thread, for tests.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

/// The system's allocator, which counts.
struct Counting;

fn count() {
    COUNT.set(COUNT.get() + 1);
}

// SAFETY: All calls are passed on to the system's allocator. Counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: By the requirements of this function.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        // SAFETY: By the requirements of this function.
        unsafe { System.dealloc(start, layout) }
    }

    unsafe fn realloc(&self, start: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: By the requirements of this function.
        unsafe { System.realloc(start, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Returns the number of allocations that this thread makes in `act`.
pub(crate) fn during(act: impl FnOnce()) -> u64 {
    let before = COUNT.get();
    act();
    COUNT.get() - before
}

#[test]
fn allocations_are_counted() {
    let mut vector: Vec<u8> = Vec::new();
    assert_eq!(during(|| vector.reserve_exact(1)), 1);
    assert_eq!(during(|| vector.push(1)), 0);
    assert_eq!(during(|| vector.push(2)), 1);
}
