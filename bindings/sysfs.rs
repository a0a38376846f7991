// SPDX-License-Identifier: GPL-2.0

//! Attributes: the files in a sysfs directory.
//!
//! An attribute is a type that implements [`Attribute`]. A tuple of such types, all for the same
//! type of data, is a list of [`Attributes`], for a device ([`super::chrdev::Node`]) or for a
//! directory under a device ([`super::kobject::KObject`]).
//!
//! C header: [`include/linux/sysfs.h`](srctree/include/linux/sysfs.h)

use super::raw as bindings;
use core::{
    fmt,
    ptr, //
};
use kernel::{
    container_of,
    error::{
        to_result,
        VTABLE_DEFAULT_ERROR, //
    },
    page::PAGE_SIZE,
    prelude::*, //
};

/// One attribute: readable by everyone and, if it has a [`store`](Self::store), writable by its
/// owner.
///
/// The methods must not drop the device or the directory that the attribute is part of: the drop
/// would wait for them.
///
/// # Context
///
/// The methods run in process context and may sleep.
#[vtable]
pub(crate) trait Attribute: Sized + 'static {
    /// The data that the attribute's methods work on.
    type Data: Send + Sync + 'static;

    /// The name of the attribute's file.
    const NAME: &'static CStr;

    /// Writes the value as text, by convention with a newline at its end.
    fn show(data: &Self::Data, out: &mut Output<'_>) -> Result;

    /// Takes a new value from `text`: the bytes that one call wrote, up to the first NUL and less
    /// than a page, usually with a newline at the end. All bytes count as consumed.
    fn store(_data: &Self::Data, _text: &CStr) -> Result {
        build_error!(VTABLE_DEFAULT_ERROR)
    }
}

/// The buffer that [`Attribute::show`] writes to: one page, less the byte for a NUL. Text that does
/// not fit is left out.
pub(crate) struct Output<'a> {
    page: &'a mut [u8],
    len: usize,
}

impl fmt::Write for Output<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let free = self
            .page
            .get_mut(self.len..)
            .and_then(<[u8]>::split_last_mut);
        if let Some((_, free)) = free {
            let count = text.len().min(free.len());
            for (to, from) in free.iter_mut().zip(text.as_bytes()) {
                *to = *from;
            }
            // OVERFLOW: The sum is not more than the page.
            self.len += count;
        }
        Ok(())
    }
}

/// Parses an unsigned decimal number as integer attributes do everywhere in the kernel: with an
/// optional `+` before the number and an optional newline after it.
///
/// # Errors
///
/// `EINVAL` if the text is not a number; `ERANGE` if the number is too large.
pub(crate) fn parse_u32(text: &CStr) -> Result<u32> {
    let mut value = 0;
    // SAFETY: The text ends in a NUL, and `value` is valid for a write.
    to_result(unsafe { bindings::kstrtouint(text.as_char_ptr(), 10, &mut value) })?;
    Ok(value)
}

/// A list of attributes for data of type `D`: `()`, or a tuple of [`Attribute`]s.
///
/// # Safety
///
/// - `DEVICE` is null or a null-terminated array of groups of `struct device_attribute`. The
///   functions of these attributes require no more than that the device's driver data points to a
///   `D` that lives until the device is unregistered.
/// - The functions of the attributes in `KOBJECT` require no more than that each attribute is part
///   of an [`Entry`] whose `data` points to a `D` that lives until the attribute is removed.
/// - Everything that the constants point to has static lifetime.
pub(crate) unsafe trait Attributes<D> {
    #[doc(hidden)]
    const DEVICE: *const *const bindings::attribute_group;

    #[doc(hidden)]
    const KOBJECT: &'static [bindings::kobj_attribute];
}

/// An attribute of one kobject.
///
/// Each kobject has entries of its own, so that their functions can find the data without a kobject
/// type of our own: the release function of a type is called when the last reference is dropped,
/// which might be after the module's code is gone.
#[repr(C)]
pub(super) struct Entry {
    pub(super) attribute: bindings::kobj_attribute,
    pub(super) data: *const c_void,
}

/// The C structures of an attribute.
trait RawAttribute: Attribute {
    const COMMON: bindings::attribute = {
        let mut attribute: bindings::attribute = pin_init::zeroed();
        attribute.name = kernel::str::as_char_ptr_in_const_context(Self::NAME);
        attribute.mode = if Self::HAS_STORE { 0o644 } else { 0o444 };
        attribute
    };

    const DEVICE: bindings::device_attribute = {
        let mut attribute: bindings::device_attribute = pin_init::zeroed();
        attribute.attr = Self::COMMON;
        attribute.__bindgen_anon_1.show = Some(show_device::<Self>);
        if Self::HAS_STORE {
            attribute.__bindgen_anon_2.store = Some(store_device::<Self>);
        }
        attribute
    };

    const KOBJECT: bindings::kobj_attribute = {
        let mut attribute: bindings::kobj_attribute = pin_init::zeroed();
        attribute.attr = Self::COMMON;
        #[cfg(kobj_attribute_has_unions)]
        {
            attribute.__bindgen_anon_1.show = Some(show_kobject::<Self>);
            if Self::HAS_STORE {
                attribute.__bindgen_anon_2.store = Some(store_kobject::<Self>);
            }
        }
        #[cfg(not(kobj_attribute_has_unions))]
        {
            attribute.show = Some(show_kobject::<Self>);
            if Self::HAS_STORE {
                attribute.store = Some(store_kobject::<Self>);
            }
        }
        attribute
    };
}

impl<A: Attribute> RawAttribute for A {}

/// # Safety
///
/// `page` must be valid for reads and writes of `PAGE_SIZE` initialized bytes during this call,
/// and no other code may use it.
unsafe fn show<A: Attribute>(data: &A::Data, page: *mut c_char) -> isize {
    // SAFETY: By the safety requirements of this function.
    let page = unsafe { core::slice::from_raw_parts_mut(page.cast::<u8>(), PAGE_SIZE) };
    let mut out = Output { page, len: 0 };

    match A::show(data, &mut out) {
        // CAST: Less than a page.
        Ok(()) => out.len as isize,
        Err(error) => error.to_errno() as isize,
    }
}

/// # Safety
///
/// `text` must be a NUL-terminated string during this call.
unsafe fn store<A: Attribute>(data: &A::Data, text: *const c_char, count: usize) -> isize {
    // SAFETY: By the safety requirements of this function.
    let text = unsafe { CStr::from_char_ptr(text) };

    match A::store(data, text) {
        // CAST: Not more than a page.
        Ok(()) => count as isize,
        Err(error) => error.to_errno() as isize,
    }
}

/// # Safety
///
/// The call must be that of sysfs to the `show` function of a device attribute, with a zeroed page.
/// The driver data of `dev` must point to an `A::Data` that is valid during this call.
unsafe extern "C" fn show_device<A: Attribute>(
    dev: *mut bindings::device,
    _attribute: *mut bindings::device_attribute,
    page: *mut c_char,
) -> isize {
    // SAFETY: By the safety requirements of this function.
    let data = unsafe { &*bindings::dev_get_drvdata(dev).cast::<A::Data>() };
    // SAFETY: As above.
    unsafe { show::<A>(data, page) }
}

/// # Safety
///
/// The call must be that of sysfs to the `store` function of a device attribute, with a
/// NUL-terminated text. The driver data of `dev` must point to an `A::Data` that is valid during
/// this call.
unsafe extern "C" fn store_device<A: Attribute>(
    dev: *mut bindings::device,
    _attribute: *mut bindings::device_attribute,
    text: *const c_char,
    count: usize,
) -> isize {
    // SAFETY: By the safety requirements of this function.
    let data = unsafe { &*bindings::dev_get_drvdata(dev).cast::<A::Data>() };
    // SAFETY: As above.
    unsafe { store::<A>(data, text, count) }
}

/// # Safety
///
/// `attribute` must be part of an [`Entry`] with an `A::Data` that is valid during `'a`.
unsafe fn entry_data<'a, A: Attribute>(attribute: *mut bindings::kobj_attribute) -> &'a A::Data {
    // SAFETY: By the safety requirements of this function.
    let entry = unsafe { container_of!(attribute, Entry, attribute) };
    // SAFETY: As above.
    unsafe { &*(*entry).data.cast::<A::Data>() }
}

/// # Safety
///
/// The call must be that of sysfs to the `show` function of a kobject's attribute, with a zeroed
/// page. `attribute` must be part of an [`Entry`] with an `A::Data` that is valid during this call.
unsafe extern "C" fn show_kobject<A: Attribute>(
    _kobj: *mut bindings::kobject,
    attribute: *mut bindings::kobj_attribute,
    page: *mut c_char,
) -> isize {
    // SAFETY: By the safety requirements of this function.
    let data = unsafe { entry_data::<A>(attribute) };
    // SAFETY: As above.
    unsafe { show::<A>(data, page) }
}

/// # Safety
///
/// The call must be that of sysfs to the `store` function of a kobject's attribute, with a
/// NUL-terminated text. `attribute` must be part of an [`Entry`] with an `A::Data` that is valid
/// during this call.
unsafe extern "C" fn store_kobject<A: Attribute>(
    _kobj: *mut bindings::kobject,
    attribute: *mut bindings::kobj_attribute,
    text: *const c_char,
    count: usize,
) -> isize {
    // SAFETY: By the safety requirements of this function.
    let data = unsafe { entry_data::<A>(attribute) };
    // SAFETY: As above.
    unsafe { store::<A>(data, text, count) }
}

// SAFETY: There are no attributes.
unsafe impl<D> Attributes<D> for () {
    const DEVICE: *const *const bindings::attribute_group = ptr::null();
    const KOBJECT: &'static [bindings::kobj_attribute] = &[];
}

/// Returns the attribute group of a null-terminated array of attributes.
const fn group(attributes: &'static [*const bindings::attribute]) -> bindings::attribute_group {
    let mut group: bindings::attribute_group = pin_init::zeroed();
    group.__bindgen_anon_2.attrs_const = attributes.as_ptr();
    group
}

macro_rules! impl_attributes {
    ($($attribute:ident)*) => {
        // SAFETY: `RawAttribute` builds the attributes from constants, with functions that require
        // no more than the trait allows, for the attribute's `Data`, which is `D`.
        unsafe impl<D, $($attribute: Attribute<Data = D>),*> Attributes<D> for ($($attribute,)*) {
            const DEVICE: *const *const bindings::attribute_group = {
                struct List<T>(core::marker::PhantomData<T>);

                impl<$($attribute: Attribute),*> List<($($attribute,)*)> {
                    const ATTRIBUTES: &'static [*const bindings::attribute] = &[
                        $(&raw const (&<$attribute as RawAttribute>::DEVICE).attr,)*
                        ptr::null(),
                    ];
                    const GROUP: &'static bindings::attribute_group = &group(Self::ATTRIBUTES);
                    const GROUPS: &'static [*const bindings::attribute_group] =
                        &[ptr::from_ref(Self::GROUP), ptr::null()];
                }

                List::<($($attribute,)*)>::GROUPS.as_ptr()
            };

            const KOBJECT: &'static [bindings::kobj_attribute] =
                &[$(<$attribute as RawAttribute>::KOBJECT,)*];
        }
    };
}

impl_attributes!(A);
impl_attributes!(A B);
impl_attributes!(A B C);
impl_attributes!(A B C E);
