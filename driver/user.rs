// SPDX-License-Identifier: GPL-2.0

//! The userspace memory that an ioctl's argument points to.

use kernel::{
    alloc::flags::GFP_KERNEL_ACCOUNT,
    prelude::*,
    transmute::{
        AsBytes,
        FromBytes, //
    },
    uaccess::{
        UserPtr,
        UserSlice, //
    },
};

/// The userspace memory that an ioctl's argument points to.
#[derive(Clone, Copy)]
pub(super) struct Argument(UserPtr);

impl Argument {
    pub(super) fn new(arg: usize) -> Self {
        Self(UserPtr::from_addr(arg))
    }

    /// Returns the argument of an ioctl that a 32-bit program calls.
    #[cfg(CONFIG_COMPAT)]
    pub(super) fn new_compat(arg: usize) -> Self {
        // A 32-bit program's pointer has 32 bits. The upper bits of `arg` are ignored.
        Self::new(arg & u32::MAX as usize)
    }

    /// Copies a structure in from userspace, or returns [`EFAULT`].
    pub(super) fn read<T: FromBytes>(self) -> Result<T> {
        UserSlice::new(self.0, size_of::<T>()).reader().read()
    }

    /// Copies a structure out to userspace, or returns [`EFAULT`].
    pub(super) fn write<T: AsBytes>(self, value: &T) -> Result {
        UserSlice::new(self.0, size_of::<T>()).writer().write(value)
    }

    /// Copies in the `len` bytes that follow the `T` to which the argument points.
    ///
    /// # Errors
    ///
    /// - [`EFAULT`] if the memory cannot be read.
    /// - [`ENOMEM`] if memory is short.
    pub(super) fn read_after<T>(self, len: usize) -> Result<KVVec<u8>> {
        let start = self.0.wrapping_byte_add(size_of::<T>());
        let mut buf = KVVec::with_capacity(len, GFP_KERNEL_ACCOUNT)?;

        UserSlice::new(start, len).read_all(&mut buf, GFP_KERNEL_ACCOUNT)?;

        Ok(buf)
    }
}
