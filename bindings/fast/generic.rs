// SPDX-License-Identifier: GPL-2.0

//! The implementation of the operations of [`fast`](super) with the kernel's own functions, for any
//! architecture.

use super::{
    super::raw as bindings,
    Inlined,
    InlinedBits, //
};
use kernel::{
    cpu::CpuId,
    sync::atomic::{
        Acquire,
        Atomic,
        Relaxed,
        Release, //
    },
};

macro_rules! inlined {
    ($({$($generic:ident)?} $value:ty),+ $(,)?) => {
        $(
            impl<$($generic)?> Inlined for Atomic<$value> {
                type Value = $value;

                #[inline(always)]
                fn read(&self) -> $value {
                    self.load(Relaxed)
                }

                #[inline(always)]
                fn read_acquire(&self) -> $value {
                    self.load(Acquire)
                }

                #[inline(always)]
                fn write(&self, value: $value) {
                    self.store(value, Relaxed);
                }
            }
        )+
    };
}

inlined!({} bool, {} u32, {} u64, {} usize, {T} *mut T, {T} *const T);

impl InlinedBits for Atomic<u64> {
    #[inline(always)]
    fn replace_acquire(&self, old: u64, new: u64) -> Result<u64, u64> {
        self.cmpxchg(old, new, Acquire)
    }

    #[inline(always)]
    fn add_release(&self, bits: u64) {
        let _ = self.fetch_add(bits, Release);
    }
}

/// Returns the number of the current CPU. A preemptible caller may be on another CPU by the time it
/// uses the number. Any context.
#[inline(always)]
pub(in crate::bindings) fn current_cpu() -> usize {
    CpuId::current().as_u32() as usize
}

/// Returns `true`, because not every architecture has a cheap way to find out whether preemption
/// and softirqs are enabled. Any context.
#[inline(always)]
pub(in crate::bindings) fn is_preemptible() -> bool {
    true
}

/// Returns the physical address of a page.
///
/// # Safety
///
/// `page` must point to a page structure.
#[inline(always)]
pub(in crate::bindings) unsafe fn page_to_phys(page: *mut bindings::page) -> u64 {
    // SAFETY: By the safety requirements, `page` points to a page structure.
    unsafe { bindings::page_to_phys(page) }
}
