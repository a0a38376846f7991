// SPDX-License-Identifier: GPL-2.0

//! Sets of CPUs that are read while they change.
//!
//! C header: [`include/linux/cpumask.h`](srctree/include/linux/cpumask.h)

use super::{
    cpumask::Mask,
    raw as bindings, //
};
use kernel::{
    cpu::{
        nr_cpu_ids,
        CpuId, //
    },
    cpumask::Cpumask,
    prelude::*,
    sync::atomic::{
        Atomic,
        Relaxed, //
    },
};

/// A set of CPUs that may be read, by Rust and by C, while it changes.
///
/// A reader may see some CPUs of the old set and some of the new one.
///
/// # Invariants
///
/// The mask's words are only written through atomic operations.
pub(crate) struct AtomicCpumask(Mask);

/// How many CPUs a word of a mask stands for.
const WORD: usize = usize::BITS as usize;

impl AtomicCpumask {
    /// The set of all CPUs. May sleep.
    pub(crate) fn new_all() -> Result<Self> {
        // INVARIANT: Nobody else has the mask yet.
        Ok(Self(Mask::all()?))
    }

    fn word(mask: *const bindings::cpumask, index: usize) -> &'static Atomic<usize> {
        // SAFETY: Callers pass a mask that is valid for the time that they use this, and an index
        // below the number of its words. Only this file gets to see the reference.
        unsafe { Atomic::from_ptr(mask.cast_mut().cast::<usize>().add(index)) }
    }

    fn words() -> usize {
        (nr_cpu_ids() as usize).div_ceil(WORD)
    }

    /// Makes this the same set as `other`. Any context.
    pub(crate) fn store(&self, other: &Cpumask) {
        for i in 0..Self::words() {
            let value = Self::word(other.as_raw(), i).load(Relaxed);
            Self::word(self.as_raw(), i).store(value, Relaxed);
        }
    }

    /// Makes this the set of all CPUs. Any context.
    pub(crate) fn fill(&self) {
        for i in 0..Self::words() {
            Self::word(self.as_raw(), i).store(usize::MAX, Relaxed);
        }
    }

    /// Whether a CPU is in the set. Any context.
    pub(crate) fn test(&self, cpu: CpuId) -> bool {
        let cpu = cpu.as_u32() as usize;

        Self::word(self.as_raw(), cpu / WORD).load(Relaxed) >> (cpu % WORD) & 1 != 0
    }

    /// The online CPU of this set that comes after `after`, with wrap-around, as
    /// [`Mask::next_online`] finds it. Any context.
    pub(crate) fn next_online(&self, after: Option<CpuId>) -> Option<CpuId> {
        self.0.next_online(after)
    }

    /// The set as it is now. May sleep.
    pub(crate) fn load(&self) -> Result<Mask> {
        // SAFETY: The mask is valid. If it changes during the copy, the copy has some of both.
        unsafe { Mask::from_raw(self.as_raw()) }
    }

    /// The C structure, valid for as long as `self` is.
    pub(super) fn as_raw(&self) -> *const bindings::cpumask {
        self.0.as_raw()
    }

    /// The C structure of the set of all CPUs.
    pub(super) fn all_raw() -> *const bindings::cpumask {
        (&raw const bindings::cpu_all_bits).cast()
    }
}
