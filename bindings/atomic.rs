// SPDX-License-Identifier: GPL-2.0

//! Atomic operations that are inlined.
//!
//! Each operation of [`kernel::sync::atomic`] calls a C function, unless the kernel is built with
//! `CONFIG_RUST_INLINE_HELPERS`, which requires clang. In a function that does a handful of atomic
//! operations and little else, as on the I/O path, these calls are a third of the cost.
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

/// An atomic that can be read and written without a function call: in one instruction on x86-64,
/// elsewhere through the methods that every [`Atomic`] has.
pub(crate) trait Inlined {
    /// The type of the value.
    type Value;

    /// Returns the value, as `load(Relaxed)` does.
    fn read(&self) -> Self::Value;
    /// Returns the value, as `load(Acquire)` does.
    fn read_acquire(&self) -> Self::Value;
    /// Sets the value, as `store(_, Relaxed)` does.
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
                    // SAFETY: The atomic is valid, aligned and no larger than a word: the kernel's
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

                        // The CPU does not reorder later accesses before a load; the empty
                        // `asm!` keeps the compiler from doing so.
                        // SAFETY: No instruction is emitted.
                        unsafe { asm!("", options(nostack, preserves_flags)) };
                        value
                    }
                    #[cfg(not(CONFIG_X86_64))]
                    self.load(Acquire)
                }

                #[inline(always)]
                fn write(&self, value: $value) {
                    #[cfg(CONFIG_X86_64)]
                    // SAFETY: As for `read`: the kernel's own stores are `WRITE_ONCE`, which is a
                    // volatile write.
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

/// A word of bits that can be modified without a function call: in one instruction on x86-64.
pub(crate) trait InlinedBits {
    /// Replaces `old` by `new`, as `cmpxchg(old, new, Acquire)` does.
    fn replace_acquire(&self, old: u64, new: u64) -> Result<u64, u64>;
    /// Adds `bits`, as `fetch_add(bits, Release)` does, without returning the old value.
    fn add_release(&self, bits: u64);
}

impl InlinedBits for Atomic<u64> {
    #[inline(always)]
    fn replace_acquire(&self, old: u64, new: u64) -> Result<u64, u64> {
        #[cfg(CONFIG_X86_64)]
        {
            let found;

            // SAFETY: The word is valid and aligned, and all other code that changes it uses such
            // instructions too. The instruction is a full barrier for the CPU and, because the
            // `asm!` may touch any memory, for the compiler.
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
