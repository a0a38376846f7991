// SPDX-License-Identifier: GPL-2.0

//! Accesses to atomics that are inlined.
//!
//! Those of [`kernel::sync::atomic`] are calls of C functions, each of them, unless the kernel is
//! built with `CONFIG_RUST_INLINE_HELPERS`, for which it takes clang. Where a function has a handful
//! of them and little else, as on the I/O path, they are a third of what it costs.
//!
//! C header: [`include/asm-generic/rwonce.h`](srctree/include/asm-generic/rwonce.h)

#[cfg(CONFIG_X86_64)]
use core::arch::asm;
use kernel::sync::atomic::Atomic;
#[cfg(not(CONFIG_X86_64))]
use kernel::sync::atomic::{
    Acquire,
    Relaxed, //
};

/// An atomic that can be read and written without a call: on x86-64 in one instruction, elsewhere by
/// the methods that every atomic has.
pub(crate) trait Inlined {
    /// What it contains.
    type Value;

    /// As `load(Relaxed)`.
    fn read(&self) -> Self::Value;
    /// As `load(Acquire)`.
    fn read_acquire(&self) -> Self::Value;
    /// As `store(_, Relaxed)`.
    fn write(&self, value: Self::Value);
}

macro_rules! inlined {
    ($({$($generic:ident)?} $value:ty),+ $(,)?) => {
        $(
            impl<$($generic)?> Inlined for Atomic<$value> {
                type Value = $value;

                #[inline(always)]
                fn read(&self) -> $value {
                    #[cfg(CONFIG_X86_64)]
                    // SAFETY: It is valid and aligned, and no larger than a word: the kernel's
                    // own loads of it are `READ_ONCE`, which is a volatile read.
                    return unsafe { self.as_ptr().read_volatile() };
                    #[cfg(not(CONFIG_X86_64))]
                    return self.load(Relaxed);
                }

                #[inline(always)]
                fn read_acquire(&self) -> $value {
                    #[cfg(CONFIG_X86_64)]
                    {
                        let value = self.read();

                        // The CPU does not make later accesses before a load; this keeps the
                        // compiler from it.
                        // SAFETY: It does nothing.
                        unsafe { asm!("", options(nostack, preserves_flags)) };
                        value
                    }
                    #[cfg(not(CONFIG_X86_64))]
                    self.load(Acquire)
                }

                #[inline(always)]
                fn write(&self, value: $value) {
                    #[cfg(CONFIG_X86_64)]
                    // SAFETY: As for `read`, with `WRITE_ONCE`.
                    unsafe {
                        self.as_ptr().write_volatile(value)
                    };
                    #[cfg(not(CONFIG_X86_64))]
                    self.store(value, Relaxed);
                }
            }
        )+
    };
}

inlined!({} bool, {} u32, {} u64, {} usize, {T} *mut T, {T} *const T);
