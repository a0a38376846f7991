// SPDX-License-Identifier: GPL-2.0

//! The operations of [`fast`](super) in line, on x86-64 with SMP.
//!
//! # What each operation saves
//!
//! On Linux 7.3.4, with `make bench`: the instructions that mapping and unmapping 512 bytes take,
//! and how much slower a disk is, if the operation is replaced by the one of `generic`.
//!
//! | without | instructions | 4 KiB read, depth 16 | 128 KiB write |
//! |---|---|---|---|
//! | nothing: `x86_64` as it is | 348 | | |
//! | `Inlined`, `InlinedBits` | 474 | 4.3 % | 5.2 % |
//! | `is_preemptible`, so that RCU's lock is always taken | 491 | 4.4 % | 5.3 % |
//! | `current_cpu` | 371 | 0.8 % | 0.8 % |
//! | `page_to_phys` | 377 | 1.0 % | 1.1 % |
//! | `copy_page` and the linear mapping, in `memcpy_phys` | 386 | 2.9 % | 8.0 % |
//! | all of them: `generic` | 679 | 11.1 % | 16.8 % |

use super::{
    super::{
        page::PAGE_SHIFT,
        raw as bindings, //
    },
    Inlined,
    InlinedBits, //
};
use core::arch::asm;
use kernel::sync::atomic::Atomic;

macro_rules! inlined {
    ($({$($generic:ident)?} $value:ty),+ $(,)?) => {
        $(
            impl<$($generic)?> Inlined for Atomic<$value> {
                type Value = $value;

                #[inline(always)]
                fn read(&self) -> $value {
                    // SAFETY: The atomic is valid, aligned and no larger than a word: the kernel's
                    // own loads of it are `READ_ONCE`, which is a volatile read.
                    unsafe { self.as_ptr().read_volatile() }
                }

                #[inline(always)]
                fn read_acquire(&self) -> $value {
                    let value = self.read();

                    // The CPU does not reorder later accesses before a load; the empty `asm!` keeps
                    // the compiler from doing so.
                    // SAFETY: No instruction is emitted.
                    unsafe { asm!("", options(nostack, preserves_flags)) };
                    value
                }

                #[inline(always)]
                fn write(&self, value: $value) {
                    // SAFETY: As for `read`: the kernel's own stores are `WRITE_ONCE`, which is a
                    // volatile write.
                    unsafe {
                        self.as_ptr().write_volatile(value)
                    };
                }
            }
        )+
    };
}

inlined!({} bool, {} u32, {} u64, {} usize, {T} *mut T, {T} *const T);

impl InlinedBits for Atomic<u64> {
    #[inline(always)]
    fn replace_acquire(&self, old: u64, new: u64) -> Result<u64, u64> {
        let found;

        // SAFETY: The word is valid and aligned, and all other code that changes it uses locked
        // instructions too. The instruction is a full barrier for the CPU and, because the `asm!`
        // may touch any memory, for the compiler.
        unsafe {
            asm!(
                "lock cmpxchg qword ptr [{word}], {new}",
                word = in(reg) self.as_ptr(),
                new = in(reg) new,
                inout("rax") old => found,
                options(nostack),
            )
        };
        if found == old {
            Ok(found)
        } else {
            Err(found)
        }
    }

    #[inline(always)]
    fn add_release(&self, bits: u64) {
        // SAFETY: As above.
        unsafe {
            asm!(
                "lock add qword ptr [{word}], {bits}",
                word = in(reg) self.as_ptr(),
                bits = in(reg) bits,
                options(nostack),
            )
        };
    }
}

/// Reads a per-CPU variable of the CPU that the caller is on, or was on a moment ago, in one
/// instruction.
///
/// For variables of 4 bytes or more that each CPU has (`DECLARE_PER_CPU`); this file reads two. The
/// result is the value of the lowest 4 bytes.
macro_rules! read_per_cpu {
    ($variable:path) => {{
        let value: usize;

        // SAFETY: A per-CPU variable has the same offset from each CPU's base, `gs`, and can be
        // read at any time. A move of 4 bytes clears the upper 4 bytes of a register.
        unsafe {
            asm!(
                "mov {value:e}, dword ptr gs:[rip + {variable}]",
                value = out(reg) value,
                variable = sym $variable,
                options(nostack, preserves_flags, readonly),
            )
        };
        value
    }};
}

/// Returns the number of the CPU that the caller is on, or was on a moment ago. Any context.
///
/// C header: [`include/linux/smp.h`](srctree/include/linux/smp.h)
#[inline(always)]
pub(in crate::bindings) fn current_cpu() -> usize {
    read_per_cpu!(bindings::cpu_number)
}

/// Returns whether both preemption and softirqs are enabled, as far as this CPU's counter tells.
/// Any context.
///
/// Returns `false` in softirqs and where softirqs or preemption are disabled. Returns `true`
/// elsewhere, in other interrupt handlers, and on kernels that do not count these (PREEMPT_RT does
/// not count disabled softirqs).
///
/// C header: [`include/linux/preempt.h`](srctree/include/linux/preempt.h)
#[inline(always)]
pub(in crate::bindings) fn is_preemptible() -> bool {
    /// The bits of the counter that say how often preemption and softirqs were disabled
    /// (`PREEMPT_MASK`, `SOFTIRQ_MASK`).
    const DISABLED: usize = bindings::RUST_CONST_HELPER_NOT_PREEMPTIBLE as usize;
    const { assert!(DISABLED <= u32::MAX as usize) };

    // A task whose count is not zero is not moved to another CPU, so the count that a task reads is
    // always its own.
    read_per_cpu!(bindings::__preempt_count) & DISABLED == 0
}

/// Returns the physical address of a page.
///
/// # Safety
///
/// `page` must be a page.
///
/// C header: [`arch/x86/include/asm/pgtable_64_types.h`](srctree/arch/x86/include/asm/pgtable_64_types.h)
#[inline(always)]
pub(in crate::bindings) unsafe fn page_to_phys(page: *mut bindings::page) -> u64 {
    // All page structures are in one array, indexed as if there were memory everywhere. The array's
    // address differs from boot to boot.
    // SAFETY: `vmemmap_base` is written when the kernel starts, and never again.
    let first = unsafe { bindings::vmemmap_base };
    let pfn = (page as usize).wrapping_sub(first) / size_of::<bindings::page>();

    (pfn << PAGE_SHIFT) as u64
}
