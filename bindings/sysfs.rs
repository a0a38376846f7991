// SPDX-License-Identifier: GPL-2.0

//! Attributes: the files in a sysfs directory.
//!
//! An attribute is a type that implements [`Attribute`]. A tuple of such types, all for the same
//! type of data, is a list of [`Attributes`]. A device ([`super::chrdev::Node`]) and a directory
//! under a device ([`super::kobject::KObject`]) have such a list. A device can have binary files as
//! well: [`WithBinary`] adds [`BinaryAttribute`]s to the list.
//!
//! C header: [`include/linux/sysfs.h`](srctree/include/linux/sysfs.h)

use super::raw as bindings;
use core::{
    fmt,
    marker::PhantomData,
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

/// An attribute. All users can read the attribute. If the attribute has a [`store`](Self::store)
/// method, the owner of its file can write to it.
///
/// The methods must not drop the device or the directory that the attribute belongs to, because the
/// drop waits for the methods to return.
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

    /// Writes the value to `out` as text, by convention with a newline at the end.
    fn show(data: &Self::Data, out: &mut Output<'_>) -> Result;

    /// Sets a new value from `text`: the bytes of one write, up to the first NUL. The text is
    /// shorter than a page, and usually ends in a newline. If this method succeeds, the write
    /// returns its full length to userspace.
    fn store(_data: &Self::Data, _text: &CStr) -> Result {
        build_error!(VTABLE_DEFAULT_ERROR)
    }
}

/// A binary file, which can be read from any offset.
///
/// # Context
///
/// The methods run in process context and may sleep.
pub(crate) trait BinaryAttribute: Sized + 'static {
    /// The data that the attribute's methods work on.
    type Data: Send + Sync + 'static;

    /// The name of the attribute's file.
    const NAME: &'static CStr;

    /// The file's permissions, such as `0o400`.
    const MODE: u16;

    /// Returns the size of the file in bytes. The size must not change.
    fn size(data: &Self::Data) -> usize;

    /// Fills `buf` with the file's bytes from `offset` on. Returns the number of bytes read, or 0
    /// at the end of the file.
    fn read(data: &Self::Data, offset: usize, buf: &mut [u8]) -> Result<usize>;
}

/// The buffer to which [`Attribute::show`] writes: one page, of which the last byte is reserved for
/// a NUL. Text that does not fit is left out.
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
            // OVERFLOW: The sum is not more than the size of the page.
            self.len += count;
        }
        Ok(())
    }
}

/// Parses an unsigned decimal number, in the form that all integer attributes of the kernel accept:
/// with an optional `+` before the number and an optional newline after the number.
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
/// - `GROUP` is null or a group of `struct device_attribute`. The functions of these attributes
///   require only that the device's driver data points to a `D` that lives until the device is
///   unregistered.
/// - The functions of the attributes in `KOBJECT` require only that each attribute is part of an
///   [`Entry`] whose `data` points to a `D` that lives until the attribute is removed.
/// - Everything that the constants point to has static lifetime.
pub(crate) unsafe trait Attributes<D> {
    #[doc(hidden)]
    const GROUP: *const bindings::attribute_group;

    #[doc(hidden)]
    const KOBJECT: &'static [bindings::kobj_attribute];
}

/// The files of a device with data of type `D`: [`Attributes`], or [`WithBinary`].
///
/// # Safety
///
/// `GROUPS` is a null-terminated array of groups, of static lifetime. The functions of these
/// groups' attributes require only that the device's driver data points to a `D` that lives until
/// the device is unregistered.
pub(crate) unsafe trait DeviceAttributes<D> {
    #[doc(hidden)]
    const GROUPS: &'static [*const bindings::attribute_group];
}

/// An attribute of one kobject, with a pointer to the attribute's data.
///
/// Each kobject has its own entries, so that the functions of an attribute find the data through
/// the entry. With a kobject type of our own, the functions could find the data without entries.
/// But the kernel would call the release function of that type when the last reference to the
/// kobject is dropped, possibly after the module's code is gone.
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

/// Calls [`Attribute::show`]. Returns the length of the text, or a negative error number.
///
/// # Safety
///
/// `page` must be valid for reads and writes of `PAGE_SIZE` initialized bytes during this call, and
/// no other code may use the page.
unsafe fn show<A: Attribute>(data: &A::Data, page: *mut c_char) -> isize {
    // SAFETY: By the safety requirements, the page is valid, and no other code uses it.
    let page = unsafe { core::slice::from_raw_parts_mut(page.cast::<u8>(), PAGE_SIZE) };
    let mut out = Output { page, len: 0 };

    match A::show(data, &mut out) {
        // CAST: The length is less than a page.
        Ok(()) => out.len as isize,
        Err(error) => error.to_errno() as isize,
    }
}

/// Calls [`Attribute::store`]. Returns `count`, or a negative error number.
///
/// # Safety
///
/// `text` must be a NUL-terminated string during this call.
unsafe fn store<A: Attribute>(data: &A::Data, text: *const c_char, count: usize) -> isize {
    // SAFETY: By the safety requirements, `text` is a NUL-terminated string.
    let text = unsafe { CStr::from_char_ptr(text) };

    match A::store(data, text) {
        // CAST: `count` is not more than a page.
        Ok(()) => count as isize,
        Err(error) => error.to_errno() as isize,
    }
}

/// The `show` function of a device attribute.
///
/// # Safety
///
/// Must be called by sysfs, as the `show` function of a device attribute, with a zeroed page. The
/// driver data of `dev` must point to an `A::Data` that is valid during this call.
unsafe extern "C" fn show_device<A: Attribute>(
    dev: *mut bindings::device,
    _attribute: *mut bindings::device_attribute,
    page: *mut c_char,
) -> isize {
    // SAFETY: By the safety requirements, the driver data points to a valid `A::Data`.
    let data = unsafe { &*bindings::dev_get_drvdata(dev).cast::<A::Data>() };
    // SAFETY: By the safety requirements, sysfs passes a zeroed page.
    unsafe { show::<A>(data, page) }
}

/// The `store` function of a device attribute.
///
/// # Safety
///
/// Must be called by sysfs, as the `store` function of a device attribute, with a NUL-terminated
/// text. The driver data of `dev` must point to an `A::Data` that is valid during this call.
unsafe extern "C" fn store_device<A: Attribute>(
    dev: *mut bindings::device,
    _attribute: *mut bindings::device_attribute,
    text: *const c_char,
    count: usize,
) -> isize {
    // SAFETY: By the safety requirements, the driver data points to a valid `A::Data`.
    let data = unsafe { &*bindings::dev_get_drvdata(dev).cast::<A::Data>() };
    // SAFETY: By the safety requirements, sysfs passes a NUL-terminated text.
    unsafe { store::<A>(data, text, count) }
}

/// Returns the data of a kobject's attribute.
///
/// # Safety
///
/// `attribute` must be part of an [`Entry`] with an `A::Data` that is valid during `'a`.
unsafe fn entry_data<'a, A: Attribute>(attribute: *mut bindings::kobj_attribute) -> &'a A::Data {
    // SAFETY: By the safety requirements, `attribute` is part of an `Entry`.
    let entry = unsafe { container_of!(attribute, Entry, attribute) };
    // SAFETY: By the safety requirements, the entry's `data` points to an `A::Data` that is valid
    // for `'a`.
    unsafe { &*(*entry).data.cast::<A::Data>() }
}

/// The `show` function of a kobject's attribute.
///
/// # Safety
///
/// Must be called by sysfs, as the `show` function of a kobject's attribute, with a zeroed page.
/// `attribute` must be part of an [`Entry`] with an `A::Data` that is valid during this call.
unsafe extern "C" fn show_kobject<A: Attribute>(
    _kobj: *mut bindings::kobject,
    attribute: *mut bindings::kobj_attribute,
    page: *mut c_char,
) -> isize {
    // SAFETY: By the safety requirements, `attribute` is part of an `Entry` with a valid `A::Data`.
    let data = unsafe { entry_data::<A>(attribute) };
    // SAFETY: By the safety requirements, sysfs passes a zeroed page.
    unsafe { show::<A>(data, page) }
}

/// The `store` function of a kobject's attribute.
///
/// # Safety
///
/// Must be called by sysfs, as the `store` function of a kobject's attribute, with a NUL-terminated
/// text. `attribute` must be part of an [`Entry`] with an `A::Data` that is valid during this call.
unsafe extern "C" fn store_kobject<A: Attribute>(
    _kobj: *mut bindings::kobject,
    attribute: *mut bindings::kobj_attribute,
    text: *const c_char,
    count: usize,
) -> isize {
    // SAFETY: By the safety requirements, `attribute` is part of an `Entry` with a valid `A::Data`.
    let data = unsafe { entry_data::<A>(attribute) };
    // SAFETY: By the safety requirements, sysfs passes a NUL-terminated text.
    unsafe { store::<A>(data, text, count) }
}

// SAFETY: There are no attributes.
unsafe impl<D> Attributes<D> for () {
    const GROUP: *const bindings::attribute_group = ptr::null();
    const KOBJECT: &'static [bindings::kobj_attribute] = &[];
}

// SAFETY: There are no groups.
unsafe impl<D> DeviceAttributes<D> for () {
    const GROUPS: &'static [*const bindings::attribute_group] = &[ptr::null()];
}

/// Returns the attribute group of a null-terminated array of attributes.
const fn group(attributes: &'static [*const bindings::attribute]) -> bindings::attribute_group {
    let mut group: bindings::attribute_group = pin_init::zeroed();
    group.__bindgen_anon_2.attrs_const = attributes.as_ptr();
    group
}

macro_rules! impl_attributes {
    ($($attribute:ident)*) => {
        // SAFETY: `RawAttribute` builds the attributes from constants. The attributes' functions
        // have only those requirements that `Attributes` permits, because the `Data` of each
        // attribute is `D`.
        unsafe impl<D, $($attribute: Attribute<Data = D>),*> Attributes<D> for ($($attribute,)*) {
            const GROUP: *const bindings::attribute_group = {
                struct List<T>(PhantomData<T>);

                impl<$($attribute: Attribute),*> List<($($attribute,)*)> {
                    const ATTRIBUTES: &'static [*const bindings::attribute] = &[
                        $(&raw const (&<$attribute as RawAttribute>::DEVICE).attr,)*
                        ptr::null(),
                    ];
                    const GROUP: &'static bindings::attribute_group = &group(Self::ATTRIBUTES);
                }

                ptr::from_ref(List::<($($attribute,)*)>::GROUP)
            };

            const KOBJECT: &'static [bindings::kobj_attribute] =
                &[$(<$attribute as RawAttribute>::KOBJECT,)*];
        }

        // SAFETY: The only group is `GROUP` of `Attributes`.
        unsafe impl<D, $($attribute: Attribute<Data = D>),*> DeviceAttributes<D>
            for ($($attribute,)*)
        {
            const GROUPS: &'static [*const bindings::attribute_group] =
                &[<Self as Attributes<D>>::GROUP, ptr::null()];
        }
    };
}

impl_attributes!(A);
impl_attributes!(A B);
impl_attributes!(A B C);
impl_attributes!(A B C E);
impl_attributes!(A B C E F G H I J K L M N O);

/// The attributes `T` and the binary files `A`, `B` and `C` of a device.
pub(crate) struct WithBinary<T, A, B, C>(PhantomData<(T, A, B, C)>);

/// The C structures of a binary file.
trait RawBinaryAttribute: BinaryAttribute {
    const RAW: bindings::bin_attribute = {
        let mut attribute: bindings::bin_attribute = pin_init::zeroed();
        attribute.attr.name = kernel::str::as_char_ptr_in_const_context(Self::NAME);
        // sysfs allows only read permissions for a file without a `write` function.
        assert!(Self::MODE & !0o444 == 0);
        attribute.attr.mode = Self::MODE;
        attribute.read = Some(read_binary::<Self>);
        attribute
    };
    const LIST: &'static [*const bindings::bin_attribute] =
        &[ptr::from_ref(&Self::RAW), ptr::null()];
    /// A group of this attribute alone, because a group has only one function that returns the
    /// sizes of its files.
    const GROUP: &'static bindings::attribute_group = &{
        let mut group: bindings::attribute_group = pin_init::zeroed();
        group.bin_attrs = Self::LIST.as_ptr();
        group.bin_size = Some(binary_size::<Self>);
        group
    };
}

impl<A: BinaryAttribute> RawBinaryAttribute for A {}

/// Returns the data of a device.
///
/// # Safety
///
/// `kobj` must be that of a device whose driver data points to an `A::Data` that is valid during
/// `'a`.
unsafe fn device_data<'a, A: BinaryAttribute>(kobj: *mut bindings::kobject) -> &'a A::Data {
    // SAFETY: By the safety requirements, `kobj` is that of a device, whose driver data points to
    // an `A::Data`.
    unsafe {
        let dev = container_of!(kobj, bindings::device, kobj);
        &*bindings::dev_get_drvdata(dev).cast::<A::Data>()
    }
}

/// The `bin_size` function of a group of one binary file.
///
/// # Safety
///
/// Must be called by sysfs, as the `bin_size` function of a device's attribute group. The device's
/// driver data must point to an `A::Data` that is valid during this call.
unsafe extern "C" fn binary_size<A: BinaryAttribute>(
    kobj: *mut bindings::kobject,
    _attribute: *const bindings::bin_attribute,
    _index: c_int,
) -> usize {
    // SAFETY: By the safety requirements, the device's driver data points to a valid `A::Data`.
    A::size(unsafe { device_data::<A>(kobj) })
}

/// The `read` function of a binary file.
///
/// # Safety
///
/// Must be called by sysfs, as the `read` function of a device's binary attribute, with a buffer of
/// `count` bytes. The device's driver data must point to an `A::Data` that is valid during this
/// call.
unsafe extern "C" fn read_binary<A: BinaryAttribute>(
    _file: *mut bindings::file,
    kobj: *mut bindings::kobject,
    _attribute: *const bindings::bin_attribute,
    buf: *mut c_char,
    offset: bindings::loff_t,
    count: usize,
) -> isize {
    let Ok(offset) = usize::try_from(offset) else {
        return EINVAL.to_errno() as isize;
    };
    // SAFETY: By the safety requirements, the buffer has `count` bytes, and the device's driver
    // data points to a valid `A::Data`. The buffer may be uninitialised, so this code zeroes it
    // first.
    let (data, buf) = unsafe {
        ptr::write_bytes(buf.cast::<u8>(), 0, count);
        (
            device_data::<A>(kobj),
            core::slice::from_raw_parts_mut(buf.cast::<u8>(), count),
        )
    };

    match A::read(data, offset, buf) {
        // CAST: A buffer is no larger than `isize::MAX`.
        Ok(read) => read.min(count) as isize,
        Err(error) => error.to_errno() as isize,
    }
}

// SAFETY: `RawBinaryAttribute` builds the binary attributes from constants. The functions of the
// binary attributes have only those requirements that `DeviceAttributes` permits, because the
// `Data` of each binary attribute is `D`. The first group is `T::GROUP`, for which
// `T: Attributes<D>` gives the same guarantees.
unsafe impl<D, T, A, B, C> DeviceAttributes<D> for WithBinary<T, A, B, C>
where
    T: Attributes<D>,
    A: BinaryAttribute<Data = D>,
    B: BinaryAttribute<Data = D>,
    C: BinaryAttribute<Data = D>,
{
    const GROUPS: &'static [*const bindings::attribute_group] = {
        // A null pointer would end the array.
        assert!(!T::GROUP.is_null());
        &[
            T::GROUP,
            ptr::from_ref(A::GROUP),
            ptr::from_ref(B::GROUP),
            ptr::from_ref(C::GROUP),
            ptr::null(),
        ]
    };
}
