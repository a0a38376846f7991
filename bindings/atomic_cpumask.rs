// SPDX-License-Identifier: GPL-2.0

//! Sets of CPUs that may be read while they change.
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

/// A set of CPUs that Rust and C code may read while the set changes.
///
/// A reader may see some CPUs of the old set and some of the new one.
///
/// # Invariants
///
/// The mask's words are written only by atomic operations.
pub(crate) struct AtomicCpumask(Mask);

/// The number of CPUs per word of a mask.
const WORD: usize = usize::BITS as usize;

impl AtomicCpumask {
    /// Returns the set of all CPUs.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    ///
    /// # Context
    ///
    /// May sleep.
    pub(crate) fn new_all() -> Result<Self> {
        // INVARIANT: No other code has access to the mask yet.
        Ok(Self(Mask::all()?))
    }

    /// Returns the word at `index` of `mask`.
    ///
    /// # Safety
    ///
    /// `mask` must be valid for `'a`, and `index` must be less than [`words`](Self::words).
    unsafe fn word<'a>(mask: *const bindings::cpumask, index: usize) -> &'a Atomic<usize> {
        // SAFETY: By the safety requirements, the word is valid for `'a`. All code that may write
        // to a mask at the same time writes whole words.
        unsafe { Atomic::from_ptr(mask.cast_mut().cast::<usize>().add(index)) }
    }

    /// Returns an iterator over the words of this mask.
    fn iter(&self) -> impl Iterator<Item = &Atomic<usize>> {
        // SAFETY: The mask is valid as long as `self` is, and `i` is less than `words()`.
        (0..Self::words()).map(|i| unsafe { Self::word(self.as_raw(), i) })
    }

    fn words() -> usize {
        (nr_cpu_ids() as usize).div_ceil(WORD)
    }

    /// Replaces the set by `other`. Any context.
    pub(crate) fn store(&self, other: &Cpumask) {
        for (i, word) in self.iter().enumerate() {
            // SAFETY: `other` is valid during the call, and `i` is less than `words()`.
            let value = unsafe { Self::word(other.as_raw(), i) }.load(Relaxed);
            word.store(value, Relaxed);
        }
    }

    /// Replaces the set by the set of all CPUs. Any context.
    pub(crate) fn fill(&self) {
        let cpus = nr_cpu_ids() as usize;

        for (i, word) in self.iter().enumerate() {
            // The bits after the last possible CPU stay clear, because C code visits every bit that
            // is set.
            let bits = (cpus - i * WORD).min(WORD);
            word.store(usize::MAX >> (WORD - bits), Relaxed);
        }
    }

    /// Returns whether `cpu` is in the set. Any context.
    pub(crate) fn test(&self, cpu: CpuId) -> bool {
        let cpu = cpu.as_u32() as usize;

        self.iter()
            .nth(cpu / WORD)
            .is_some_and(|word| word.load(Relaxed) >> (cpu % WORD) & 1 != 0)
    }

    /// Returns the next online CPU of the set after `after`, wrapping around to the first one, as
    /// [`Mask::next_online`] does. Any context.
    pub(crate) fn next_online(&self, after: Option<CpuId>) -> Option<CpuId> {
        self.0.next_online(after)
    }

    /// Returns a copy of the current set.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    ///
    /// # Context
    ///
    /// May sleep.
    pub(crate) fn load(&self) -> Result<Mask> {
        // INVARIANT: No other code has access to the copy.
        let copy = Self::new_all()?;
        for (to, from) in copy.iter().zip(self.iter()) {
            to.store(from.load(Relaxed), Relaxed);
        }

        Ok(copy.0)
    }

    /// Returns a pointer to the C structure, which is valid as long as `self` exists.
    pub(super) fn as_raw(&self) -> *const bindings::cpumask {
        self.0.as_raw()
    }

    /// Returns a pointer to the C structure of the set of all possible CPUs.
    pub(super) fn all_raw() -> *const bindings::cpumask {
        &raw const bindings::__cpu_possible_mask
    }
}
