// SPDX-License-Identifier: GPL-2.0

//! Plain structures: nothing but bytes, with no padding between them.

use kernel::transmute::{
    AsBytes,
    FromBytes, //
};

/// A type whose values are exactly the sequences of bytes of its size.
///
/// Structures get it from [`pod!`].
///
/// # Safety
///
/// Every sequence of bytes of the right size must be a value, no byte of a value may be
/// uninitialized, and there must be no interior mutability.
// The unnamed constants that `pod!` makes do not count as uses.
#[allow(dead_code)]
pub(crate) unsafe trait Pod: FromBytes + AsBytes {}

macro_rules! impl_pod {
    ($($type:ty)*) => {
        // SAFETY: An integer is just its bytes.
        $(unsafe impl Pod for $type {})*
    };
}

impl_pod!(u8 u16 u32 u64 i8 i16 i32 i64);

// SAFETY: There is no padding between the elements of an array.
unsafe impl<T: Pod, const N: usize> Pod for [T; N] {}

/// Says that structures are plain, and checks it.
///
/// Each is given with all of its fields. It gets [`Pod`] and with it the kernel's
/// [`FromBytes`] and [`AsBytes`]. It does not compile unless the list of fields is complete, each
/// field has just that type, every such type is [`Pod`] and together they are as large as the
/// structure, so that there is no room for padding. Not for packed structures, and not for those
/// that implement `Drop`.
///
/// No `unsafe` is needed to use this, but what it expands to has some: it cannot be used where
/// `unsafe_code` is forbidden.
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
                // Complete: a pattern without `..`. Of these very types: the type of `found` is
                // settled before anything is expected of it, and then converts to no other.
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

            // SAFETY: The fields are all there is, as large as the structure together, so there is
            // no padding; and each takes any bytes, has none that is uninitialized, and no
            // interior mutability.
            unsafe impl ::kernel::transmute::FromBytes for $name {}
            // SAFETY: As above.
            unsafe impl ::kernel::transmute::AsBytes for $name {}
            // SAFETY: As above.
            unsafe impl $crate::bindings::pod::Pod for $name {}
        )*
    };
}

pub(crate) use pod;

/// Names the type behind a reference, for [`pod!`].
#[doc(hidden)]
#[allow(dead_code)]
pub(crate) fn type_behind<T>(_: &T) -> core::marker::PhantomData<T> {
    core::marker::PhantomData
}
