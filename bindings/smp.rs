// SPDX-License-Identifier: GPL-2.0

//! Which CPU this is.
//!
//! C header: [`include/linux/smp.h`](srctree/include/linux/smp.h)

#[cfg(all(CONFIG_X86_64, CONFIG_SMP, not(CONFIG_UML)))]
use super::raw as bindings;
#[cfg(all(CONFIG_X86_64, CONFIG_SMP, not(CONFIG_UML)))]
use core::arch::asm;
#[cfg(not(all(CONFIG_X86_64, CONFIG_SMP, not(CONFIG_UML))))]
use kernel::cpu::CpuId;

/// The number of the CPU that the caller is on, or was just now. Any context.
///
/// As [`kernel::cpu::CpuId::current`], which is a call of a C function; this is none on x86-64 (see
/// [`atomic`](super::atomic)).
#[inline(always)]
pub(crate) fn current_cpu() -> usize {
    #[cfg(all(CONFIG_X86_64, CONFIG_SMP, not(CONFIG_UML)))]
    {
        let cpu;

        // SAFETY: It reads a variable that each CPU has, at the same distance from its base, `gs`.
        // A move of 4 bytes clears the upper 4 of a register.
        unsafe {
            asm!(
                "mov {cpu:e}, dword ptr gs:[rip + {number}]",
                cpu = out(reg) cpu,
                number = sym bindings::cpu_number,
                options(nostack, preserves_flags, readonly),
            )
        };
        cpu
    }
    #[cfg(not(all(CONFIG_X86_64, CONFIG_SMP, not(CONFIG_UML))))]
    {
        CpuId::current().as_u32() as usize
    }
}
