// SPDX-License-Identifier: GPL-2.0

//! Which CPU this is, and for how long.
//!
//! C header: [`include/linux/smp.h`](srctree/include/linux/smp.h)

#[cfg(all(CONFIG_X86_64, CONFIG_SMP, not(CONFIG_UML)))]
use super::raw as bindings;
#[cfg(all(CONFIG_X86_64, CONFIG_SMP, not(CONFIG_UML)))]
use core::arch::asm;
#[cfg(not(all(CONFIG_X86_64, CONFIG_SMP, not(CONFIG_UML))))]
use kernel::cpu::CpuId;

/// Reads a variable of the CPU that the caller is on, or was on just now. In one instruction; the
/// kernel crate's ways are calls of C functions (see [`atomic`](super::atomic)).
///
/// For variables of 4 bytes or more that each CPU has (`DECLARE_PER_CPU`), of which there are two here; the
/// value is that of the lowest 4 bytes.
#[cfg(all(CONFIG_X86_64, CONFIG_SMP, not(CONFIG_UML)))]
macro_rules! read_per_cpu {
    ($variable:path) => {{
        let value: usize;

        // SAFETY: Such a variable is at the same distance from each CPU's base, `gs`, and can be read
        // at any time. A move of 4 bytes clears the upper 4 of a register.
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

/// The number of the CPU that the caller is on, or was just now. Any context.
#[inline(always)]
pub(crate) fn current_cpu() -> usize {
    #[cfg(all(CONFIG_X86_64, CONFIG_SMP, not(CONFIG_UML)))]
    {
        read_per_cpu!(bindings::cpu_number)
    }
    #[cfg(not(all(CONFIG_X86_64, CONFIG_SMP, not(CONFIG_UML))))]
    {
        CpuId::current().as_u32() as usize
    }
}

/// Whether neither preemption nor softirqs are disabled, for all that this CPU's counter says: `false`
/// in softirqs and where they or preemption are disabled; `true` elsewhere, in other interrupt handlers,
/// and on kernels that do not count, as PREEMPT_RT does not count disabled softirqs. Any context.
///
/// C header: [`include/linux/preempt.h`](srctree/include/linux/preempt.h)
#[inline(always)]
pub(crate) fn is_preemptible() -> bool {
    #[cfg(all(CONFIG_X86_64, CONFIG_SMP, not(CONFIG_UML)))]
    {
        /// In the counter: how often preemption and softirqs were disabled (`PREEMPT_MASK`,
        /// `SOFTIRQ_MASK`).
        const DISABLED: usize = bindings::RUST_CONST_HELPER_NOT_PREEMPTIBLE as usize;
        const { assert!(DISABLED <= u32::MAX as usize) };

        // A task that is not on this CPU any more has not been preempted with a count, so that the
        // one it reads is its own.
        read_per_cpu!(bindings::__preempt_count) & DISABLED == 0
    }
    // Elsewhere, the counter is not within reach.
    #[cfg(not(all(CONFIG_X86_64, CONFIG_SMP, not(CONFIG_UML))))]
    true
}
