// SPDX-License-Identifier: GPL-2.0

//! The address spaces of a device.
//!
//! Each has a [domain](super::domain), made when it is first needed and kept as long as the device.
//!
//! # Lock order
//!
//! `mmap_lock` of a client of vhost, [`Spaces::bounce_config`]: so userspace memory is not touched under
//! the latter, nor the lock of CPU hotplug taken, whose owner waits for readers of sysfs, and those
//! for `mmap_lock`.

use super::domain::{
    DomainHandle,
    MAX_BOUNCE_SIZE, //
};
use crate::bindings::{
    iova,
    nospec::get_nospec,
    page::{
        PAGE_SHIFT,
        PAGE_SIZE, //
    },
    pin::PinnedPages,
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

/// The least size of a device's bounce areas together, in bytes.
const MIN_BOUNCE_SIZE: u32 = MIB;
const DEFAULT_BOUNCE_SIZE: u32 = 64 * MIB;

/// An address space.
struct AddressSpace(SetOnce<DomainHandle>);

/// How the address spaces are made.
struct BounceConfig {
    /// The size in bytes of all bounce areas together.
    bounce_size: u32,
    /// Whether the device has been on the bus, so that the size is in use.
    frozen: bool,
}

/// The address spaces of a device, by their ids.
#[pin_data]
pub(super) struct Spaces {
    all: KVVec<AddressSpace>,
    #[pin]
    bounce_config: Mutex<BounceConfig>,
    cache: Arc<iova::Cache>,
    max_entries: usize,
}

impl Spaces {
    /// Returns an initialiser for `count` address spaces, of at most `max_entries` mappings each.
    pub(super) fn new(
        count: usize,
        cache: Arc<iova::Cache>,
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
            max_entries: max_entries,
        })
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    /// The size of all bounce areas together, in bytes.
    pub(super) fn bounce_size(&self) -> u32 {
        self.bounce_config.lock().bounce_size
    }

    /// Sets the size of all bounce areas together, in bytes; what is more than whole pages is
    /// dropped.
    ///
    /// Errors: [`EPERM`] if the device has been on the bus, [`EINVAL`] if the size is below 1 MiB
    /// or above 1 GiB, and those of `parse`, which gets at the number.
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

    /// Returns an address space's domain, if it has been made.
    ///
    /// Errors: [`EINVAL`] if there is no such address space, or no domain.
    pub(super) fn get(&self, asid: u32) -> Result<&DomainHandle> {
        get_nospec(&self.all, asid as usize)
            .and_then(|space| space.0.as_ref())
            .ok_or(EINVAL)
    }

    /// Returns an address space's domain, after bounce_config it if need be. May sleep.
    ///
    /// Errors: [`EINVAL`] if there is no such address space, or if so many share the bounce area
    /// that nothing could be mapped; [`ENOMEM`] if there is no memory.
    pub(super) fn get_or_alloc(&self, asid: u32) -> Result<&DomainHandle> {
        let space = get_nospec(&self.all, asid as usize).ok_or(EINVAL)?;
        if let Some(open) = space.0.as_ref() {
            return Ok(open);
        }

        // Its allocator of addresses takes the lock of CPU hotplug: so it is made without ours.
        let allocated = self.alloc(asid, self.freeze() as usize / self.all.len());
        let mut bounce_config = self.bounce_config.lock();
        match allocated {
            // Somebody else may have been faster: then ours is dropped, without the lock.
            Ok(open) if space.0.as_ref().is_none() => {
                bounce_config.frozen = true;
                space.0.populate(open);
            }
            Ok(open) => {
                drop(bounce_config);
                drop(open);
            }
            Err(error) => {
                bounce_config.frozen = self.allocated().next().is_some();
                return Err(error);
            }
        }

        space.0.as_ref().ok_or(ENOMEM)
    }

    /// Keeps the size of all bounce areas together as it is. Returns it, in bytes.
    fn freeze(&self) -> u32 {
        let mut bounce_config = self.bounce_config.lock();

        bounce_config.frozen = true;
        bounce_config.bounce_size
    }

    /// Makes an address space's domain, whose bounce area is to have `size` bytes or up to a page
    /// more.
    fn alloc(&self, asid: u32, size: usize) -> Result<DomainHandle> {
        // Only processes choose another one: a virtio driver of this kernel finds all groups in
        // address space 0, and maps its buffers there.
        let cache = (asid == 0).then_some(&self.cache);

        DomainHandle::new(cache, size.next_multiple_of(PAGE_SIZE), self.max_entries)
    }

    /// Those that have been made.
    fn allocated(&self) -> impl Iterator<Item = &DomainHandle> {
        self.all.iter().filter_map(|space| space.0.as_ref())
    }

    /// Unmaps the bounce areas: the driver was reset.
    pub(super) fn reset(&self) {
        for open in self.allocated() {
            open.domain.owner().reset();
        }
    }

    /// Replaces all mappings of an address space by those of a process; `announce` tells the daemon.
    ///
    /// If the daemon does not agree, or if the mappings cannot be made, those stay that were there
    /// before and are still wanted. May sleep. Errors: those of bounce_config the address space, [`ENOMEM`]
    /// if there are more mappings than the limit, [`EINVAL`] if one cannot be, and those of
    /// `announce`.
    pub(super) fn set_map(
        &self,
        asid: u32,
        iotlb: &vhost_iotlb::Iotlb,
        announce: impl FnOnce() -> Result,
    ) -> Result {
        self.get_or_alloc(asid)?.domain.owner().set(iotlb, announce)
    }

    /// Drops all mappings of a process from an address space.
    pub(super) fn reset_map(&self, asid: u32) {
        if let Ok(open) = self.get(asid) {
            open.domain.owner().drop_files();
        }
    }

    /// Puts memory of the current process in place of an address space's bounce pages.
    ///
    /// May sleep. Errors: [`EINVAL`] if the bounce area is not mapped, if it is not just that area,
    /// or if the memory is not aligned to pages; [`EEXIST`] if there is memory in place already;
    /// those of pinning it.
    pub(super) fn reg_umem(&self, asid: u32, iova: u64, uaddr: u64, size: u64) -> Result {
        let domain = &self.get(asid)?.domain;
        let area = domain.bounce();

        if !domain.owner().is_bounce_mapped() || iova != 0 || size != area.size() as u64 {
            return Err(EINVAL);
        }
        let uaddr = usize::try_from(uaddr)?;
        if uaddr % PAGE_SIZE != 0 {
            return Err(EINVAL);
        }
        if area.has_umem() {
            return Err(EEXIST);
        }

        area.register_umem(PinnedPages::pin_current(uaddr, area.size() >> PAGE_SHIFT)?)
    }

    /// Takes the memory of a process away from an address space's bounce area.
    ///
    /// May sleep. Errors: [`ENOENT`] if there is none, [`EINVAL`] if the area is another one.
    pub(super) fn dereg_umem(&self, asid: u32, iova: u64, size: u64) -> Result {
        if asid as usize >= self.all.len() {
            return Err(EINVAL);
        }
        let area = self.get(asid).map_err(|_| ENOENT)?.domain.bounce();

        if !area.has_umem() {
            return Err(ENOENT);
        }
        if iova != 0 || size != area.size() as u64 {
            return Err(EINVAL);
        }

        area.deregister_umem().map(drop)
    }

    /// Takes away all memory of processes: the daemon is gone. May sleep.
    pub(super) fn dereg_all_umem(&self) {
        for open in self.allocated() {
            // Most have none, which is fine.
            let _ = open.domain.bounce().deregister_umem();
        }
    }
}
