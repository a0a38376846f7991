// SPDX-License-Identifier: GPL-2.0

//! Plain structures: nothing but bytes, without padding.

use kernel::transmute::{
    AsBytes,
    FromBytes, //
};

/// A type whose values are exactly the sequences of bytes of its size.
///
/// [`pod!`] implements this trait for structures.
///
/// # Safety
///
/// Every sequence of bytes of the right size must be a value, no byte of a value may be
/// uninitialized, and there must be no interior mutability.
// The compiler does not count the unnamed constants that `pod!` expands to as uses.
#[allow(dead_code)]
pub(crate) unsafe trait Pod: FromBytes + AsBytes {}

macro_rules! impl_pod {
    ($($type:ty)*) => {
        // SAFETY: The values of an integer are exactly the sequences of bytes of its size.
        $(unsafe impl Pod for $type {})*
    };
}

impl_pod!(u8 u16 u32 u64 i8 i16 i32 i64);

// SAFETY: The elements of the array are `Pod`, and there is no padding between them.
unsafe impl<T: Pod, const N: usize> Pod for [T; N] {}

/// Implements [`Pod`] for structures, and checks at compile time that they are plain.
///
/// Each structure is given with all of its fields, and gets [`Pod`] and the kernel's [`FromBytes`]
/// and [`AsBytes`]. The code does not compile unless the list of fields is complete, each field has
/// exactly the given type, every such type is [`Pod`], and the types together are as large as the
/// structure, which leaves no room for padding. Not for packed structures, and not for those that
/// implement `Drop`.
///
/// Using the macro takes no `unsafe`, but its expansion contains some: the macro cannot be used
/// where `unsafe_code` is forbidden.
///
/// # Examples
///
/// ```ignore
/// #[repr(C)]
/// struct Range {
///     start: u64,
///     last: u64,
///     reserved: [u32; 4],
/// }
///
/// pod! {
///     Range { start: u64, last: u64, reserved: [u32; 4] }
/// }
/// ```
macro_rules! pod {
    ($($name:path { $($field:ident: $type:ty),* $(,)? })*) => {
        $(
            const _: () = {
                // The pattern has no `..`, so the list must be complete. The types must be exactly
                // these: the type of `found` is settled before the next line expects one, and does
                // not convert to another.
                const _: fn(&$name) = |value| {
                    let $name { $($field),* } = value;
                    $(
                        let found = $crate::bindings::pod::type_behind($field);
                        let _: ::core::marker::PhantomData<$type> = found;
                    )*
                };
                const fn plain<T: $crate::bindings::pod::Pod>() -> usize {
                    ::core::mem::size_of::<T>()
                }
                assert!(
                    ::core::mem::size_of::<$name>() == 0 $(+ plain::<$type>())*,
                    "the structure has padding",
                );
            };

            // SAFETY: The list has all fields, which together are as large as the structure, so
            // there is no padding. Each field accepts any bytes, has no uninitialized byte, and has
            // no interior mutability.
            unsafe impl ::kernel::transmute::FromBytes for $name {}
            // SAFETY: As above.
            unsafe impl ::kernel::transmute::AsBytes for $name {}
            // SAFETY: As above.
            unsafe impl $crate::bindings::pod::Pod for $name {}
        )*
    };
}

pub(crate) use pod;

/// Names the type that a reference points to, for [`pod!`].
#[doc(hidden)]
#[allow(dead_code)]
pub(crate) fn type_behind<T>(_: &T) -> core::marker::PhantomData<T> {
    core::marker::PhantomData
}
