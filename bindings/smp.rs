// SPDX-License-Identifier: GPL-2.0

//! The current CPU, and whether the caller can be preempted.
//!
//! C header: [`include/linux/smp.h`](srctree/include/linux/smp.h)

#[cfg(all(CONFIG_X86_64, CONFIG_SMP, not(CONFIG_UML)))]
use super::raw as bindings;
#[cfg(all(CONFIG_X86_64, CONFIG_SMP, not(CONFIG_UML)))]
use core::arch::asm;
#[cfg(not(all(CONFIG_X86_64, CONFIG_SMP, not(CONFIG_UML))))]
use kernel::cpu::CpuId;

/// Reads a per-CPU variable of the CPU that the caller is on, or was on a moment ago, in one
/// instruction. The kernel crate's ways to do so call C functions (see [`atomic`](super::atomic)).
///
/// For variables of 4 bytes or more that each CPU has (`DECLARE_PER_CPU`); this file reads two. The
/// result is the value of the lowest 4 bytes.
#[cfg(all(CONFIG_X86_64, CONFIG_SMP, not(CONFIG_UML)))]
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

/// Returns whether both preemption and softirqs are enabled, as far as this CPU's counter tells.
/// Any context.
///
/// Returns `false` in softirqs and where softirqs or preemption are disabled. Returns `true`
/// elsewhere, in other interrupt handlers, and on kernels that do not count these (PREEMPT_RT does
/// not count disabled softirqs).
///
/// C header: [`include/linux/preempt.h`](srctree/include/linux/preempt.h)
#[inline(always)]
pub(crate) fn is_preemptible() -> bool {
    #[cfg(all(CONFIG_X86_64, CONFIG_SMP, not(CONFIG_UML)))]
    {
        /// The bits of the counter that say how often preemption and softirqs were disabled
        /// (`PREEMPT_MASK`, `SOFTIRQ_MASK`).
        const DISABLED: usize = bindings::RUST_CONST_HELPER_NOT_PREEMPTIBLE as usize;
        const { assert!(DISABLED <= u32::MAX as usize) };

        // A task whose count is not zero is not moved to another CPU, so the count that a task
        // reads is always its own.
        read_per_cpu!(bindings::__preempt_count) & DISABLED == 0
    }
    // On other configurations, the counter is not accessible.
    #[cfg(not(all(CONFIG_X86_64, CONFIG_SMP, not(CONFIG_UML))))]
    true
}
