// SPDX-License-Identifier: GPL-2.0

//! The address spaces of a device.
//!
//! Each address space has a [domain](super::domain) with a part of the device's bounce area. The
//! domain is created when it is first needed, and exists as long as the device. The size of the
//! bounce area can change until then.
//!
//! # Lock order
//!
//! `mmap_lock` of a vhost client, then [`Spaces::bounce_config`]. So code that holds
//! `bounce_config` must not access userspace memory. Such code must not take the CPU hotplug lock
//! either: a task that holds the hotplug lock waits for readers of sysfs, and readers of sysfs wait
//! for `mmap_lock`.

use super::domain::{
    DomainHandle,
    MAX_BOUNCE_SIZE, //
};
use crate::bindings::{
    iova,
    nospec::get_nospec,
    page::PAGE_SIZE,
    vhost_iotlb, //
};
use kernel::{
    alloc::flags::GFP_KERNEL_ACCOUNT,
    new_mutex,
    prelude::*,
    sync::{
        Arc,
        Mutex,
        SetOnce, //
    },
};

const MIB: u32 = 1024 * 1024;

/// Minimum total size of all bounce areas of a device, in bytes.
const MIN_BOUNCE_SIZE: u32 = MIB;
const DEFAULT_BOUNCE_SIZE: u32 = 64 * MIB;

/// An address space, which is empty until its domain is created.
struct AddressSpace(SetOnce<DomainHandle>);

/// The configuration of the bounce areas. Its mutex is also held when a new domain is stored in an
/// address space.
struct BounceConfig {
    /// The total size of all bounce areas, in bytes.
    bounce_size: u32,
    /// Whether the size is fixed, because a domain has been created or is being created.
    frozen: bool,
}

/// The address spaces of a device, by their ids.
#[pin_data]
pub(super) struct Spaces {
    all: KVVec<AddressSpace>,
    #[pin]
    bounce_config: Mutex<BounceConfig>,
    cache: Arc<iova::Cache>,
    /// The size of the reserve of address space 0, in pages.
    reserve: usize,
    max_entries: usize,
}

impl Spaces {
    /// Returns an initialiser for `count` address spaces of at most `max_entries` mappings each.
    /// `reserve` is the size of the reserve of address space 0, in pages.
    pub(super) fn new(
        count: usize,
        cache: Arc<iova::Cache>,
        reserve: usize,
        max_entries: usize,
    ) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            all: {
                let mut all = KVVec::with_capacity(count, GFP_KERNEL_ACCOUNT)?;
                for _ in 0..count {
                    all.push_within_capacity(AddressSpace(SetOnce::new())).map_err(|_| ENOMEM)?;
                }
                all
            },
            bounce_config <- new_mutex!(BounceConfig {
                bounce_size: DEFAULT_BOUNCE_SIZE,
                frozen: false,
            }),
            cache: cache,
            reserve: reserve,
            max_entries: max_entries,
        })
    }

    /// Returns the number of address spaces.
    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    /// Returns the total size of all bounce areas, in bytes.
    pub(super) fn bounce_size(&self) -> u32 {
        self.bounce_config.lock().bounce_size
    }

    /// Sets the total size of all bounce areas to the number of bytes that `parse` returns, rounded
    /// down to whole pages.
    ///
    /// # Errors
    ///
    /// - [`EPERM`] if the device has been put on the vDPA bus, which fixes the size.
    /// - [`EINVAL`] if the size is below 1 MiB or above 1 GiB.
    /// - Those of `parse`.
    pub(super) fn set_bounce_size(&self, parse: impl FnOnce() -> Result<u32>) -> Result {
        let mut bounce_config = self.bounce_config.lock();
        if bounce_config.frozen {
            return Err(EPERM);
        }

        let size = parse()?;
        if !(MIN_BOUNCE_SIZE..=MAX_BOUNCE_SIZE).contains(&size) {
            return Err(EINVAL);
        }

        bounce_config.bounce_size = size - size % PAGE_SIZE as u32;

        Ok(())
    }

    /// Returns an address space's domain.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if there is no such address space, or if its domain has not been created.
    pub(super) fn get(&self, asid: u32) -> Result<&DomainHandle> {
        get_nospec(&self.all, asid as usize)
            .and_then(|space| space.0.as_ref())
            .ok_or(EINVAL)
    }

    /// Returns an address space's domain, after creating the domain if necessary.
    ///
    /// # Context
    ///
    /// May sleep.
    ///
    /// # Errors
    ///
    /// - [`EINVAL`] if there is no such address space, or if there are so many address spaces that
    ///   the bounce area of each would be too small to map anything.
    /// - [`ENOMEM`] if memory is short.
    pub(super) fn get_or_alloc(&self, asid: u32) -> Result<&DomainHandle> {
        let space = get_nospec(&self.all, asid as usize).ok_or(EINVAL)?;
        if let Some(handle) = space.0.as_ref() {
            return Ok(handle);
        }

        // The domain's IOVA allocator takes the CPU hotplug lock, so the domain is created without
        // `bounce_config` held.
        let allocated = self.alloc(asid, self.freeze() as usize / self.all.len());
        let mut bounce_config = self.bounce_config.lock();
        match allocated {
            // If another caller has created the domain meanwhile, the domain that this call created
            // is dropped, without the lock held.
            Ok(handle) if space.0.as_ref().is_none() => {
                bounce_config.frozen = true;
                space.0.populate(handle);
            }
            Ok(handle) => {
                drop(bounce_config);
                drop(handle);
            }
            Err(error) => {
                bounce_config.frozen = self.allocated().next().is_some();
                return Err(error);
            }
        }

        space.0.as_ref().ok_or(ENOMEM)
    }

    /// Fixes the total size of all bounce areas. Returns that size, in bytes.
    fn freeze(&self) -> u32 {
        let mut bounce_config = self.bounce_config.lock();

        bounce_config.frozen = true;
        bounce_config.bounce_size
    }

    /// Creates an address space's domain, with a bounce area of `size` bytes, rounded up to whole
    /// pages.
    fn alloc(&self, asid: u32, size: usize) -> Result<DomainHandle> {
        // Only address space 0 needs the IOVA caches and a reserve. A virtio driver of this kernel
        // finds all virtqueue groups in address space 0, and maps its buffers there. Only a process
        // can move a group to another address space.
        let (cache, reserve) = match asid {
            0 => (Some(&self.cache), self.reserve),
            _ => (None, 0),
        };
        let size = size.next_multiple_of(PAGE_SIZE);

        DomainHandle::new(cache, size, reserve, self.max_entries)
    }

    /// Returns the domains that have been created.
    pub(super) fn allocated(&self) -> impl Iterator<Item = &DomainHandle> {
        self.all.iter().filter_map(|space| space.0.as_ref())
    }

    /// Unmaps all bounce areas, in a reset of the device. The reserve may be given back, unless a
    /// kernel driver comes again.
    pub(super) fn reset(&self) {
        for handle in self.allocated() {
            handle.domain.owner().reset();
            handle.domain.bounce().let_reserve_go();
        }
    }

    /// Replaces all mappings of an address space by those of `iotlb`, the vhost IOTLB of a process.
    /// `announce` tells the daemon that the mappings have changed.
    ///
    /// If the daemon does not agree, or if the mappings cannot be created, a previous mapping stays
    /// in place if `iotlb` still has it.
    ///
    /// # Context
    ///
    /// May sleep.
    ///
    /// # Errors
    ///
    /// - Those of [`get_or_alloc`](Self::get_or_alloc).
    /// - [`ENOMEM`] if `iotlb` has more mappings than the limit, or if memory is short.
    /// - [`EINVAL`] if a mapping is invalid.
    /// - Those of `announce`.
    pub(super) fn set_map(
        &self,
        asid: u32,
        iotlb: &vhost_iotlb::Iotlb,
        announce: impl FnOnce() -> Result,
    ) -> Result {
        self.get_or_alloc(asid)?.domain.owner().set(iotlb, announce)
    }

    /// Drops all mappings of an address space if they belong to a process.
    pub(super) fn reset_map(&self, asid: u32) {
        if let Ok(handle) = self.get(asid) {
            handle.domain.owner().drop_files();
        }
    }
}
