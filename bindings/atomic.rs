// SPDX-License-Identifier: GPL-2.0

//! Operations on atomics that are inlined.
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
    Relaxed,
    Release, //
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

/// A word of bits that can be changed without a call as well: on x86-64 in one instruction.
pub(crate) trait InlinedBits {
    /// As `cmpxchg(old, new, Acquire)`.
    fn replace_acquire(&self, old: u64, new: u64) -> Result<u64, u64>;
    /// As `fetch_add(bits, Release)`, whose answer nobody wants.
    fn add_release(&self, bits: u64);
}

impl InlinedBits for Atomic<u64> {
    #[inline(always)]
    fn replace_acquire(&self, old: u64, new: u64) -> Result<u64, u64> {
        #[cfg(CONFIG_X86_64)]
        {
            let found;

            // SAFETY: The word is valid and aligned, and whoever else changes it does so by the
            // same instructions. They order all accesses before and after them, the CPU's and, as
            // they may touch any memory, the compiler's.
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
        #[cfg(not(CONFIG_X86_64))]
        self.cmpxchg(old, new, Acquire)
    }

    #[inline(always)]
    fn add_release(&self, bits: u64) {
        #[cfg(CONFIG_X86_64)]
        // SAFETY: As above.
        unsafe {
            asm!(
                "lock add qword ptr [{word}], {bits}",
                word = in(reg) self.as_ptr(),
                bits = in(reg) bits,
                options(nostack),
            )
        };
        #[cfg(not(CONFIG_X86_64))]
        let _ = self.fetch_add(bits, Release);
    }
}
