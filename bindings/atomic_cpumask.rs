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

    /// # Safety
    ///
    /// `mask` must be valid for `'a`, and `index` below [`words`](Self::words).
    unsafe fn word<'a>(mask: *const bindings::cpumask, index: usize) -> &'a Atomic<usize> {
        // SAFETY: By the safety requirements. Whoever may write to a mask that is read here does so
        // word by word.
        unsafe { Atomic::from_ptr(mask.cast_mut().cast::<usize>().add(index)) }
    }

    /// The words of this mask.
    fn iter(&self) -> impl Iterator<Item = &Atomic<usize>> {
        // SAFETY: The mask is valid as long as `self` is.
        (0..Self::words()).map(|i| unsafe { Self::word(self.as_raw(), i) })
    }

    fn words() -> usize {
        (nr_cpu_ids() as usize).div_ceil(WORD)
    }

    /// Makes this the same set as `other`. Any context.
    pub(crate) fn store(&self, other: &Cpumask) {
        for (i, word) in self.iter().enumerate() {
            // SAFETY: The mask is valid during the call.
            let value = unsafe { Self::word(other.as_raw(), i) }.load(Relaxed);
            word.store(value, Relaxed);
        }
    }

    /// Makes this the set of all CPUs. Any context.
    pub(crate) fn fill(&self) {
        let cpus = nr_cpu_ids() as usize;

        for (i, word) in self.iter().enumerate() {
            // Bits of CPUs that there cannot be stay clear: C walks over all it finds.
            let bits = (cpus - i * WORD).min(WORD);
            word.store(usize::MAX >> (WORD - bits), Relaxed);
        }
    }

    /// Whether a CPU is in the set. Any context.
    pub(crate) fn test(&self, cpu: CpuId) -> bool {
        let cpu = cpu.as_u32() as usize;

        self.iter()
            .nth(cpu / WORD)
            .is_some_and(|word| word.load(Relaxed) >> (cpu % WORD) & 1 != 0)
    }

    /// The online CPU of this set that comes after `after`, with wrap-around, as
    /// [`Mask::next_online`] finds it. Any context.
    pub(crate) fn next_online(&self, after: Option<CpuId>) -> Option<CpuId> {
        self.0.next_online(after)
    }

    /// The set as it is now. May sleep.
    pub(crate) fn load(&self) -> Result<Mask> {
        // INVARIANT: Nobody else has the copy.
        let copy = Self::new_all()?;
        for (to, from) in copy.iter().zip(self.iter()) {
            to.store(from.load(Relaxed), Relaxed);
        }

        Ok(copy.0)
    }

    /// The C structure, valid for as long as `self` is.
    pub(super) fn as_raw(&self) -> *const bindings::cpumask {
        self.0.as_raw()
    }

    /// The C structure of the set of all CPUs that there can be.
    pub(super) fn all_raw() -> *const bindings::cpumask {
        &raw const bindings::__cpu_possible_mask
    }
}
