// SPDX-License-Identifier: GPL-2.0

//! Structures that are plain bytes: without padding, and valid with any contents.

use kernel::transmute::{
    AsBytes,
    FromBytes, //
};

/// A type without padding, for which every sequence of bytes of its size is a valid value.
///
/// [`pod!`] implements this trait for structures.
///
/// # Safety
///
/// Every sequence of bytes of the right size must be a valid value, no byte of a value may be
/// uninitialized, and the type must have no interior mutability.
// `pod!` uses this trait only in unnamed constants, which the compiler does not count as uses.
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

/// Implements [`Pod`], [`FromBytes`] and [`AsBytes`] for structures, and checks at compile time
/// that the structures are plain bytes.
///
/// The caller lists each structure with all of its fields. The code compiles only if the list of
/// fields is complete, each field has exactly the listed type, each of these types is [`Pod`], and
/// the sizes of the types add up to the size of the structure, which leaves no room for padding.
/// The structures must not be packed and must not implement `Drop`.
///
/// A caller of the macro writes no `unsafe`, but the expansion contains `unsafe`. So the macro
/// cannot be used where `unsafe_code` is forbidden.
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
                // The pattern has no `..`, so the list must name all fields. `type_behind` returns
                // a `PhantomData` of a field's actual type, which does not convert to a
                // `PhantomData` of another type. So each listed type must be exactly the field's
                // type.
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
            // SAFETY: As for `FromBytes` above.
            unsafe impl ::kernel::transmute::AsBytes for $name {}
            // SAFETY: As for `FromBytes` above.
            unsafe impl $crate::bindings::pod::Pod for $name {}
        )*
    };
}

pub(crate) use pod;

/// Returns a marker for the type that a reference points to, for [`pod!`].
#[doc(hidden)]
#[allow(dead_code)]
pub(crate) fn type_behind<T>(_: &T) -> core::marker::PhantomData<T> {
    core::marker::PhantomData
}
