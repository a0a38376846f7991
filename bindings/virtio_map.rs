// SPDX-License-Identifier: GPL-2.0

//! Mapping a virtio driver's memory into a device's address space, by means of the device's own.
//!
//! A virtio driver whose device has map operations hands its buffers and rings to those, with the
//! *token* that belongs to the virtqueue. Here, a token leads to a [`Space`]: buffers are mapped into
//! its [bounce area](bounce::Area), rings (coherent memory) are allocated here and given addresses by
//! the space's owner.
//!
//! C header: [`include/linux/virtio_config.h`](srctree/include/linux/virtio_config.h)

use super::{
    bounce::{
        Area,
        Buffer,
        Direction, //
    },
    page::{
        Pages,
        PAGE_SIZE, //
    },
    raw as bindings, //
};
use core::{
    marker::PhantomData,
    ptr::{
        self,
        NonNull, //
    },
};
use kernel::{
    prelude::*,
    sync::Arc, //
};

/// What the owner of a [`Space`] does.
///
/// The methods are called in any context that a virtio driver maps memory in, interrupt handlers
/// included: they must not sleep.
pub(crate) trait Owner: Send + Sync + 'static {
    /// A buffer is about to be mapped into the bounce area.
    fn before_map(&self) -> Result;

    /// Gives `size` bytes of coherent memory an I/O virtual address.
    ///
    /// The memory is the driver's until [`unmap_coherent`](Self::unmap_coherent) is called with the
    /// address; its pages outlive that as long as `pages` is kept.
    fn map_coherent(&self, pages: Pages, size: usize) -> Result<u64>;

    /// Takes the address away from coherent memory.
    fn unmap_coherent(&self, iova: u64, size: usize);
}

/// An address space that drivers' memory is mapped into.
#[pin_data]
pub(crate) struct Space<T: Owner> {
    #[pin]
    bounce: Area,
    #[pin]
    owner: T,
}

impl<T: Owner> Space<T> {
    /// Returns an initialiser for a space.
    pub(crate) fn new(
        bounce: impl PinInit<Area, Error>,
        owner: impl PinInit<T, Error>,
    ) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            bounce <- bounce,
            owner <- owner,
        })
    }

    /// Where buffers are mapped.
    pub(crate) fn bounce(&self) -> &Area {
        &self.bounce
    }

    /// The space's owner.
    pub(crate) fn owner(&self) -> &T {
        &self.owner
    }
}

/// What a virtqueue's memory is mapped by.
///
/// The space is the same as long as the token lives, so that what was mapped into a space is
/// unmapped from it.
pub(crate) struct Token<T: Owner> {
    space: Arc<Space<T>>,
}

impl<T: Owner> Token<T> {
    /// A token that leads to `space`.
    pub(crate) fn new(space: Arc<Space<T>>) -> Self {
        Self { space }
    }

    /// The form in which C passes it around.
    pub(super) fn as_raw(&self) -> bindings::virtio_map {
        bindings::virtio_map {
            group: ptr::from_ref(self).cast_mut().cast(),
        }
    }

    /// Reads what C passes around; it is null for a device whose queues are not set up yet.
    ///
    /// # Safety
    ///
    /// `map` must be null or come from [`as_raw`](Self::as_raw) of a token that lives for `'a`.
    unsafe fn space<'a>(map: bindings::virtio_map) -> Option<&'a Space<T>> {
        // SAFETY: By the safety requirements.
        let token = unsafe { map.group.cast::<Self>().as_ref() }?;

        Some(&token.space)
    }
}

/// The map operations of devices whose spaces belong to a `T`.
pub(super) struct VTable<T: Owner>(PhantomData<T>);

/// What virtio takes for a failed mapping, as `DMA_MAPPING_ERROR`.
const MAPPING_ERROR: bindings::dma_addr_t = bindings::dma_addr_t::MAX;

/// Whether contents are to be copied along with a mapping.
fn syncs(attrs: c_ulong) -> bool {
    attrs & bindings::DMA_ATTR_SKIP_CPU_SYNC as c_ulong == 0
}

// The virtio core calls these with the token that a device's `get_vq_map` returned. The device is
// alive as long as its virtqueues are, and the token as long as the device: see `vdpa::Device`.
impl<T: Owner> VTable<T> {
    /// # Safety
    ///
    /// `map` must be a live token, as described above.
    unsafe extern "C" fn map_page(
        map: bindings::virtio_map,
        page: *mut bindings::page,
        offset: usize,
        size: usize,
        dir: bindings::dma_data_direction,
        attrs: c_ulong,
    ) -> bindings::dma_addr_t {
        // SAFETY: The virtio core passes a device's token.
        let Some(space) = (unsafe { Token::<T>::space(map) }) else {
            return MAPPING_ERROR;
        };
        if space.owner.before_map().is_err() {
            return MAPPING_ERROR;
        }

        // SAFETY: The virtio core maps this memory for a driver, which must not free it before it
        // has unmapped it by the same token; that leads to the same space.
        let buffer = unsafe { Buffer::new(page, offset, size) };

        space
            .bounce
            .map(buffer, Direction::from_raw(dir), syncs(attrs))
            .unwrap_or(MAPPING_ERROR)
    }

    /// # Safety
    ///
    /// `map` must be a live token, as described above.
    unsafe extern "C" fn unmap_page(
        map: bindings::virtio_map,
        iova: bindings::dma_addr_t,
        size: usize,
        dir: bindings::dma_data_direction,
        attrs: c_ulong,
    ) {
        // SAFETY: The virtio core passes a device's token.
        if let Some(space) = unsafe { Token::<T>::space(map) } {
            // SAFETY: The virtio core ends a mapping that `map_page` made by the same token.
            unsafe {
                space
                    .bounce
                    .unmap(iova, size, Direction::from_raw(dir), syncs(attrs))
            }
        }
    }

    /// # Safety
    ///
    /// `map` must be a live token, as described above.
    unsafe extern "C" fn sync_single_for_cpu(
        map: bindings::virtio_map,
        iova: bindings::dma_addr_t,
        size: usize,
        dir: bindings::dma_data_direction,
    ) {
        // SAFETY: The virtio core passes a device's token.
        if let Some(space) = unsafe { Token::<T>::space(map) } {
            // SAFETY: The virtio core syncs within a mapping that `map_page` made by this token.
            unsafe {
                space
                    .bounce
                    .sync_for_cpu(iova, size, Direction::from_raw(dir))
            }
        }
    }

    /// # Safety
    ///
    /// `map` must be a live token, as described above.
    unsafe extern "C" fn sync_single_for_device(
        map: bindings::virtio_map,
        iova: bindings::dma_addr_t,
        size: usize,
        dir: bindings::dma_data_direction,
    ) {
        // SAFETY: The virtio core passes a device's token.
        if let Some(space) = unsafe { Token::<T>::space(map) } {
            // SAFETY: The virtio core syncs within a mapping that `map_page` made by this token.
            unsafe {
                space
                    .bounce
                    .sync_for_device(iova, size, Direction::from_raw(dir))
            }
        }
    }

    /// # Safety
    ///
    /// `map` must be a live token, as described above.
    unsafe extern "C" fn alloc(
        map: bindings::virtio_map,
        size: usize,
        iova: *mut bindings::dma_addr_t,
        gfp: bindings::gfp_t,
    ) -> *mut c_void {
        // SAFETY: The virtio core passes a place for the address.
        unsafe { iova.write(MAPPING_ERROR) };
        // SAFETY: The virtio core passes a device's token.
        let Some(space) = (unsafe { Token::<T>::space(map) }) else {
            return ptr::null_mut();
        };

        // SAFETY: Any size may be asked for.
        let memory =
            unsafe { bindings::alloc_pages_exact_noprof(size, gfp | bindings::__GFP_ZERO) };
        if memory.is_null() {
            return ptr::null_mut();
        }

        // SAFETY: It is the start of allocated pages.
        let first = unsafe { bindings::phys_to_page(bindings::virt_to_phys(memory)) };
        let mapped = NonNull::new(first).ok_or(ENOMEM).and_then(|first| {
            // SAFETY: `alloc_pages_exact` gives contiguous pages, each with a count of its own.
            let pages = unsafe { Pages::get(first, size.div_ceil(PAGE_SIZE)) };
            space.owner.map_coherent(pages, size)
        });

        match mapped {
            Ok(address) => {
                // SAFETY: As above.
                unsafe { iova.write(address) };
                memory
            }
            Err(_) => {
                // SAFETY: It was allocated above, with this size, and nobody knows it.
                unsafe { bindings::free_pages_exact(memory, size) };
                ptr::null_mut()
            }
        }
    }

    /// # Safety
    ///
    /// `map` must be a live token, as described above.
    unsafe extern "C" fn free(
        map: bindings::virtio_map,
        size: usize,
        memory: *mut c_void,
        iova: bindings::dma_addr_t,
        _attrs: c_ulong,
    ) {
        // SAFETY: The virtio core passes a device's token.
        if let Some(space) = unsafe { Token::<T>::space(map) } {
            space.owner.unmap_coherent(iova, size);
            // SAFETY: The virtio core gives back what `alloc` returned for the same size.
            unsafe { bindings::free_pages_exact(memory, size) }
        }
    }

    /// # Safety
    ///
    /// `map` must be a live token, as described above.
    unsafe extern "C" fn need_sync(map: bindings::virtio_map, iova: bindings::dma_addr_t) -> bool {
        // SAFETY: The virtio core passes a device's token.
        unsafe { Token::<T>::space(map) }.is_some_and(|space| space.bounce.contains(iova))
    }

    /// # Safety
    ///
    /// `map` must be a live token, as described above.
    unsafe extern "C" fn mapping_error(
        _map: bindings::virtio_map,
        iova: bindings::dma_addr_t,
    ) -> c_int {
        if iova == MAPPING_ERROR {
            ENOMEM.to_errno()
        } else {
            0
        }
    }

    /// # Safety
    ///
    /// `map` must be a live token, as described above.
    unsafe extern "C" fn max_mapping_size(map: bindings::virtio_map) -> usize {
        // SAFETY: The virtio core passes a device's token.
        unsafe { Token::<T>::space(map) }.map_or(0, |space| space.bounce.max_mapping())
    }

    /// The operations, as C wants them.
    pub(super) const VTABLE: bindings::virtio_map_ops = bindings::virtio_map_ops {
        map_page: Some(Self::map_page),
        unmap_page: Some(Self::unmap_page),
        sync_single_for_cpu: Some(Self::sync_single_for_cpu),
        sync_single_for_device: Some(Self::sync_single_for_device),
        alloc: Some(Self::alloc),
        free: Some(Self::free),
        need_sync: Some(Self::need_sync),
        mapping_error: Some(Self::mapping_error),
        max_mapping_size: Some(Self::max_mapping_size),
    };
}
