// SPDX-License-Identifier: GPL-2.0

//! The operations of [`fast`](super) through the kernel's own functions, on any architecture.

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

/// Returns the number of the CPU that the caller is on, or was on a moment ago. Any context.
#[inline(always)]
pub(in crate::bindings) fn current_cpu() -> usize {
    CpuId::current().as_u32() as usize
}

/// Returns `true`: in general, whether preemption and softirqs are enabled cannot be told.
#[inline(always)]
pub(in crate::bindings) fn is_preemptible() -> bool {
    true
}

/// Returns the physical address of a page.
///
/// # Safety
///
/// `page` must be a page.
#[inline(always)]
pub(in crate::bindings) unsafe fn page_to_phys(page: *mut bindings::page) -> u64 {
    // SAFETY: By the safety requirements.
    unsafe { bindings::page_to_phys(page) }
}
