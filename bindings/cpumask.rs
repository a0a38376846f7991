// SPDX-License-Identifier: GPL-2.0

//! Sets of CPUs that own their memory.
//!
//! C header: [`include/linux/cpumask.h`](srctree/include/linux/cpumask.h)

use super::raw as bindings;
use core::{
    fmt,
    ops::Deref, //
};
use kernel::{
    cpu::{
        nr_cpu_ids,
        CpuId, //
    },
    cpumask::{
        Cpumask,
        CpumaskVar, //
    },
    error::to_result,
    prelude::*, //
};

/// A set of CPUs that owns its memory.
///
/// The text form of a set is that of `%*pb` in C: one bit for each CPU that this machine can have,
/// in hexadecimal, in groups of 32 bits separated by commas, the highest group first.
pub(crate) struct Mask(CpumaskVar);

// SAFETY: The memory belongs to this value alone, and can be freed by any thread.
unsafe impl Send for Mask {}

// SAFETY: The owner writes to the mask only before the mask is shared. In an `AtomicCpumask`, later
// writes are atomic operations.
unsafe impl Sync for Mask {}

impl Mask {
    /// Returns the set of all CPUs.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    ///
    /// # Context
    ///
    /// May sleep.
    pub(crate) fn all() -> Result<Self> {
        let mut mask = CpumaskVar::new_zero(GFP_KERNEL)?;
        mask.setall();
        Ok(Self(mask))
    }

    /// Parses a set from hexadecimal text, in groups of at most 32 bits separated by commas.
    /// Parsing stops at a newline or at the end of the text.
    ///
    /// # Errors
    ///
    /// `EINVAL` if the text does not have this form; `EOVERFLOW` if the set has CPUs that this
    /// machine cannot have, or if a group has more than 32 bits; `ENOMEM`.
    ///
    /// # Context
    ///
    /// May sleep.
    pub(crate) fn parse(text: &CStr) -> Result<Self> {
        let mask = CpumaskVar::new_zero(GFP_KERNEL)?;
        // SAFETY: The text ends in a NUL, where parsing stops. The mask has room for `nr_cpu_ids()`
        // bits, rounded up to a word, and no other code has access to it.
        // CAST: There are at most thousands of CPUs.
        to_result(unsafe {
            bindings::bitmap_parse(
                text.as_char_ptr(),
                c_uint::MAX,
                mask.as_raw().cast::<c_ulong>(),
                nr_cpu_ids() as c_int,
            )
        })?;
        Ok(Self(mask))
    }

    /// Returns whether any CPU of this set is online. CPUs can go online or offline at any time.
    /// Any context.
    pub(crate) fn intersects_online(&self) -> bool {
        self.next_online(None).is_some()
    }

    /// Returns the next online CPU of this set after `after`, wrapping around to the first one. If
    /// `after` is [`None`], returns the first online CPU of this set.
    ///
    /// Returns `after` itself if it is the only online CPU of this set, and [`None`] if no CPU of
    /// this set is online. The returned CPU may be offline by the time this function returns. Any
    /// context.
    pub(crate) fn next_online(&self, after: Option<CpuId>) -> Option<CpuId> {
        // CAST: These casts are widening, and these types have no `From` conversion.
        let start = after.map_or(0, |cpu| cpu.as_u32() as c_ulong + 1);

        self.first_online_from(start)
            .or_else(|| self.first_online_from(0))
    }

    fn first_online_from(&self, start: c_ulong) -> Option<CpuId> {
        // SAFETY: Both masks have room for `nr_cpu_ids()` bits, rounded up to a word. The C
        // function tolerates concurrent changes of the bits, and accepts any `start`.
        let cpu = unsafe {
            bindings::_find_next_and_bit(
                self.0.as_raw().cast::<c_ulong>(),
                (&raw const bindings::__cpu_online_mask).cast::<c_ulong>(),
                nr_cpu_ids() as c_ulong,
                start,
            )
        };

        // If no CPU was found, `cpu` is at least `nr_cpu_ids()`, which is not a valid CPU number.
        u32::try_from(cpu).ok().and_then(CpuId::from_u32)
    }

    /// Returns a pointer to the C structure, which is valid as long as `self` exists.
    pub(crate) fn as_raw(&self) -> *const bindings::cpumask {
        self.0.as_raw()
    }
}

impl Deref for Mask {
    type Target = Cpumask;

    fn deref(&self) -> &Cpumask {
        &self.0
    }
}

impl fmt::Display for Mask {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        const GROUP: u32 = 32;

        let cpus = nr_cpu_ids();
        for group in (0..cpus.div_ceil(GROUP)).rev() {
            // OVERFLOW: The result of this line, and that of the next line, is at most `cpus`.
            let first = group * GROUP;
            let bits = (cpus - first).min(GROUP);
            let value = (0..bits).fold(0u32, |value, bit| {
                let set = CpuId::from_u32(first + bit).is_some_and(|cpu| self.0.test(cpu));
                value | u32::from(set) << bit
            });

            // Only the first group that is written can have fewer than 8 digits.
            // CAST: The result is at most 8.
            write!(out, "{value:0digits$x}", digits = bits.div_ceil(4) as usize)?;
            if group != 0 {
                out.write_str(",")?;
            }
        }
        Ok(())
    }
}

// `pr_info!` and similar macros require this trait.
impl kernel::fmt::Display for Mask {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}
