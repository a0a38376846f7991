// SPDX-License-Identifier: GPL-2.0

//! Domains: the memory that is mapped into one address space, as the daemon accesses it.
//!
//! At any time, the mappings of a domain belong to one of two kinds of owner:
//!
//! - a virtio driver of this kernel. Its buffers are copied through the bounce area, which is at
//!   the beginning of the address space. Its rings are mapped directly, above the bounce area.
//! - a process that uses the device through vhost. Its mappings are parts of files.
//!
//! The daemon accesses mapped memory through file descriptors: for the memory of a virtio driver, a
//! descriptor of the domain's own file; for the memory of a process, descriptors of the process's
//! files.
//!
//! # Lock order
//!
//! The lock of the mappings may be taken in any context. No other lock is taken while it is held.

use super::mapping::{
    Backing,
    Mapping, //
    MappingTree,
};
use crate::{
    bindings::{
        address_space::AddressSpace,
        anon_inode,
        bounce::{
            self,
            give_back::{
                self,
                Mapped, //
            }, //
        },
        fast::Inlined,
        file_ops::FileOperations,
        iova,
        lock::{
            new_spinlock_irqsave,
            SpinLockIrqSave, //
        },
        page::{
            Page,
            Pages,
            PAGE_SHIFT, //
        },
        vhost_iotlb,
        virtio_map::{
            Owner,
            Space, //
        },
    },
    uapi::{
        ACCESS_RO,
        ACCESS_RW,
        IOVA_CAP_UMEM, //
    },
};
use kernel::{
    alloc::flags::{
        GFP_ATOMIC,
        GFP_KERNEL_ACCOUNT, //
    },
    fs::{
        file::flags::O_RDWR,
        File, //
    },
    prelude::*,
    rbtree::RBTreeNodeReservation,
    sync::{
        aref::ARef,
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc,
        ArcBorrow, //
    },
};

const MIB: u32 = 1024 * 1024;

/// Maximum size of a bounce area, in bytes.
pub(super) const MAX_BOUNCE_SIZE: u32 = 1024 * MIB;

/// Last IOVA that is used for a virtio driver of this kernel. The 128 MiB above the largest
/// possible bounce area are for rings.
const LAST_IOVA: usize = (MAX_BOUNCE_SIZE + 128 * MIB - 1) as usize;

/// The mappings of an address space.
#[pin_data]
pub(crate) struct Mappings {
    #[pin]
    tree: SpinLockIrqSave<MappingTree>,
    /// Whether the bounce area is mapped. Changes only under the lock of `tree`.
    bounce_mapped: Atomic<bool>,
    bounce_size: usize,
    /// The allocator of IOVAs above the bounce area, for rings.
    #[pin]
    coherent: iova::Domain,
    max_entries: usize,
    /// The processes' mappings of the domain's own file.
    #[pin]
    file_mappings: AddressSpace,
}

/// An address space: its mappings and its bounce area.
pub(super) type Domain = Space<Mappings>;

/// A mapped region of an address space.
pub(super) struct Region {
    /// The first IOVA.
    pub(super) start: u64,
    /// The last IOVA.
    pub(super) last: u64,
    /// The access permission: `ACCESS_RO`, `ACCESS_WO` or `ACCESS_RW`.
    pub(super) perm: u8,
    /// The capabilities: [`IOVA_CAP_UMEM`] or 0.
    pub(super) capability: u64,
    /// The file that holds the memory; [`None`] means the domain's own file.
    pub(super) file: Option<ARef<File>>,
    /// The offset in the file at which the region begins, in bytes.
    pub(super) offset: u64,
}

impl Mappings {
    fn new(
        cache: Option<&Arc<iova::Cache>>,
        bounce_size: usize,
        max_entries: usize,
    ) -> impl PinInit<Self, Error> + use<'_> {
        try_pin_init!(Self {
            tree <- new_spinlock_irqsave!(MappingTree::new()),
            bounce_mapped: Atomic::new(false),
            bounce_size: bounce_size,
            coherent <- iova::Domain::new(cache, *bounce_size, LAST_IOVA),
            max_entries: max_entries,
            file_mappings <- AddressSpace::new(),
        })
    }

    /// Removes and returns all mappings if they belong to a process. After that, a virtio driver of
    /// this kernel can own the address space.
    ///
    /// The caller must release the lock of `tree` before it drops the returned mappings.
    fn evict_files(tree: &mut MappingTree) -> Option<MappingTree> {
        // All mappings belong to the same kind of owner, so the first mapping tells which kind it
        // is.
        let is_coherent = tree.find(0, u64::MAX, Mapping::is_coherent)?;

        (!is_coherent).then(|| core::mem::replace(tree, MappingTree::new()))
    }

    /// Unmaps the bounce area. The area is mapped again when the next buffer is mapped.
    ///
    /// Called when the device is reset. Buffers and rings stay mapped: the kernel driver that has
    /// mapped them unmaps them itself.
    pub(super) fn reset(&self) {
        let _tree = self.tree.lock();

        self.bounce_mapped.store(false, Relaxed);
    }

    /// Maps the bounce area, for a virtio driver of this kernel. The bounce area counts as one
    /// mapping. The limit on the number of mappings is not exceeded, because the rings leave one
    /// entry free for the bounce area.
    fn map_bounce(&self) {
        let mut tree = self.tree.lock();
        let evicted = Self::evict_files(&mut tree);
        self.bounce_mapped.store(true, Relaxed);
        drop(tree);
        drop(evicted);
    }

    /// Returns whether the bounce area is mapped. Mapping a buffer maps the area. A reset, or a
    /// process that sets its mappings, unmaps the area.
    #[inline]
    pub(super) fn is_bounce_mapped(&self) -> bool {
        self.bounce_mapped.read()
    }

    /// Returns the first mapped region that contains an IOVA from `start` to `last`, or [`None`] if
    /// there is no such region.
    pub(super) fn find(&self, start: u64, last: u64) -> Option<Region> {
        let tree = self.tree.lock();

        if self.is_bounce_mapped() && start < self.bounce_size as u64 {
            return Some(Region {
                start: 0,
                last: self.bounce_size as u64 - 1,
                perm: ACCESS_RW,
                capability: IOVA_CAP_UMEM,
                file: None,
                offset: 0,
            });
        }

        tree.find(start, last, |mapping| {
            let (file, offset) = match &mapping.backing {
                Backing::Coherent(_) => (None, mapping.start),
                Backing::File { file, offset } => (Some(file.clone()), *offset),
            };

            Region {
                start: mapping.start,
                last: mapping.last,
                perm: mapping.perm,
                capability: 0,
                file,
                offset,
            }
        })
    }

    /// Creates mappings from `theirs`, the vhost IOTLB of a process. May sleep.
    ///
    /// # Errors
    ///
    /// - [`ENOMEM`] if `theirs` has more mappings than the limit, or if memory is short.
    /// - [`EINVAL`] if a mapping has an invalid permission, has no file, or overlaps another.
    fn import(&self, theirs: &vhost_iotlb::Iotlb) -> Result<MappingTree> {
        let mut new = MappingTree::new();

        for map in theirs.iter() {
            let map = map?;
            if new.len() >= self.max_entries {
                return Err(ENOMEM);
            }

            let mapping = Mapping {
                start: map.start,
                last: map.last,
                perm: u8::try_from(map.perm)
                    .ok()
                    .filter(|perm| (ACCESS_RO..=ACCESS_RW).contains(perm))
                    .ok_or(EINVAL)?,
                backing: Backing::File {
                    file: map.file,
                    offset: map.offset,
                },
            };
            new.insert(mapping, RBTreeNodeReservation::new(GFP_KERNEL_ACCOUNT)?)
                .map_err(|_| EINVAL)?;
        }

        Ok(new)
    }

    /// Replaces all mappings by `new`, the mappings of a process. Returns the previous mappings.
    fn replace(&self, new: MappingTree) -> MappingTree {
        let mut tree = self.tree.lock();

        self.bounce_mapped.store(false, Relaxed);
        core::mem::replace(&mut *tree, new)
    }

    /// Replaces all mappings by those of `theirs`, the vhost IOTLB of a process. `announce` tells
    /// the daemon that the mappings have changed.
    ///
    /// On failure, a previous mapping stays in place if `theirs` still has it. A previous mapping
    /// that `theirs` does not have is dropped even on failure, whatever the daemon answers. If the
    /// new mappings cannot be created, `announce` is called only if a previous mapping was dropped.
    ///
    /// # Context
    ///
    /// May sleep.
    ///
    /// # Errors
    ///
    /// - [`ENOMEM`] if `theirs` has more mappings than the limit, or if memory is short.
    /// - [`EINVAL`] if a mapping has an invalid permission, has no file, or overlaps another.
    /// - Those of `announce`.
    pub(super) fn set(
        &self,
        theirs: &vhost_iotlb::Iotlb,
        announce: impl FnOnce() -> Result,
    ) -> Result {
        match self.import(theirs) {
            Ok(new) => {
                let mut old = self.replace(new);

                announce().inspect_err(|_| {
                    let gone = Self::take_gone(&mut old, theirs);

                    drop(self.replace(old));
                    drop(gone);
                })
            }
            Err(error) => {
                // Concurrent lookups keep finding the mappings that stay in place.
                let gone = {
                    let mut now = self.tree.lock();

                    self.bounce_mapped.store(false, Relaxed);
                    Self::take_gone(&mut now, theirs)
                };
                let has_less = gone.len() > 0;

                drop(gone);
                if has_less {
                    // The result of `announce` does not matter: the caller gets an error in any
                    // case.
                    let _ = announce();
                }

                Err(error)
            }
        }
    }

    /// Removes from `ours` all mappings that are gone from `theirs`, the vhost IOTLB of a process.
    /// A mapping is gone unless `theirs` has a mapping with the same range, permission, file and
    /// offset. Returns the removed mappings. May be called in any context.
    ///
    /// Iterates over `ours`, because the number of mappings in `ours` is limited. A process can
    /// have any number of mappings in `theirs`.
    fn take_gone(ours: &mut MappingTree, theirs: &vhost_iotlb::Iotlb) -> MappingTree {
        ours.take_unless(|mapping| match &mapping.backing {
            Backing::File { file, offset } => theirs.has(
                mapping.start,
                mapping.last,
                mapping.perm.into(),
                file,
                *offset,
            ),
            Backing::Coherent(_) => false,
        })
    }

    /// Drops all mappings if they belong to a process.
    pub(super) fn drop_files(&self) {
        let evicted = Self::evict_files(&mut self.tree.lock());

        drop(evicted);
    }

    /// Returns the page of a ring at an IOVA, or [`None`] if no ring is mapped there. Never returns
    /// a page of a process: the daemon accesses that memory through the process's files, and not
    /// through the domain's own file.
    fn coherent_page(&self, iova: u64) -> Option<ARef<Page>> {
        let tree = self.tree.lock();

        tree.find(iova, iova, |mapping| match &mapping.backing {
            Backing::Coherent(pages) => {
                pages.page(usize::try_from(iova - mapping.start).ok()? >> PAGE_SHIFT)
            }
            Backing::File { .. } => None,
        })?
    }
}

impl Owner for Mappings {
    #[inline]
    fn is_prepared(&self) -> bool {
        self.is_bounce_mapped()
    }

    fn prepare(&self) {
        self.map_bounce();
    }

    fn map_coherent(&self, pages: Pages, size: usize) -> Result<u64> {
        let node = RBTreeNodeReservation::new(GFP_ATOMIC)?;
        let start = self.coherent.alloc(size, iova::Flush::Yes).ok_or(ENOMEM)?;
        let mapping = Mapping {
            start,
            last: start + (size - 1) as u64,
            perm: ACCESS_RW,
            backing: Backing::Coherent(pages),
        };

        let mut tree = self.tree.lock();
        let evicted = Self::evict_files(&mut tree);
        // The bounce area counts as one mapping, so the rings leave one entry for it.
        let inserted = if tree.len() + 1 < self.max_entries {
            tree.insert(mapping, node)
        } else {
            Err(ENOMEM)
        };
        drop(tree);
        drop(evicted);

        inserted
            .map(|()| start)
            .inspect_err(|_| self.coherent.free(start, size))
    }

    fn has_coherent(&self) -> bool {
        let tree = self.tree.lock();

        // All mappings belong to the same kind of owner, so the first mapping tells which kind it
        // is.
        tree.find(0, u64::MAX, Mapping::is_coherent) == Some(true)
    }

    fn unmap_coherent(&self, iova: u64, size: usize) {
        let removed = self.tree.lock().remove_if(iova, Mapping::is_coherent);

        drop(removed);
        self.coherent.free(iova, size);
    }
}

/// The file operations of a domain's own file. An offset in the file is an IOVA: the bounce area
/// begins at offset 0, and the rings are above it.
struct DomainFile;

#[vtable]
impl FileOperations for DomainFile {
    type Data = Arc<Domain>;

    /// Returns the page at an offset in the file, which is an IOVA. Returns [`None`] if there is no
    /// page at that IOVA. In that case, the process that accesses the page gets a `SIGBUS`.
    fn fault(domain: ArcBorrow<'_, Domain>, offset: u64) -> Option<ARef<Page>> {
        if domain.bounce().contains(offset) {
            domain.bounce().page(offset)
        } else {
            domain.owner().coherent_page(offset)
        }
    }

    fn address_space<'a>(domain: &'a ArcBorrow<'_, Domain>) -> &'a AddressSpace {
        &domain.owner().file_mappings
    }

    /// Returns whether a page fault in a mapping of the file, which begins at `offset` in the file,
    /// may also map the pages that follow the faulting page (fault-around). Returns true only if
    /// `offset` is in the bounce area. Offsets above it can be reused: a ring that is allocated
    /// later may have other pages there.
    fn maps_around(domain: ArcBorrow<'_, Domain>, offset: u64) -> bool {
        domain.bounce().contains(offset)
    }

    /// Returns the number of bytes up to the end of the bounce area, if the area has a reserve. The
    /// reserve is there for times when memory is short. At such a time, a daemon that needed a page
    /// table for a page of the area would wait for memory that only the daemon itself can free.
    fn prepared_len(domain: ArcBorrow<'_, Domain>, offset: u64) -> u64 {
        let bounce = domain.bounce();

        if bounce.has_reserve() {
            (bounce.size() as u64).saturating_sub(offset)
        } else {
            0
        }
    }

    /// Returns the bounce page at an offset, so that a fault shortly before that offset maps this
    /// page, too. Mapping the page early is safe, because a bounce page is unmapped before it is
    /// given back. It also saves faults, because drivers use bounce pages one after the other.
    ///
    /// Returns [`None`] while user pages are registered (umem). A process may have mapped bounce
    /// pages before the registration. If the process still accesses these bounce pages, it does so
    /// at its own risk.
    fn fault_around(domain: ArcBorrow<'_, Domain>, offset: u64) -> Option<ARef<Page>> {
        let bounce = domain.bounce();

        bounce.contains(offset).then(|| bounce.page(offset))?
    }
}

/// Gives back the bounce pages of domains that nothing has used since the previous call, and the
/// reserves that no kernel driver needs.
///
/// # Context
///
/// May sleep.
pub(super) fn give_back<'a>(domains: impl Iterator<Item = &'a Arc<Domain>>) {
    give_back::give_back(domains.map(|domain| Mapped {
        area: domain.bounce(),
        mappings: &domain.owner().file_mappings,
    }));
}

/// A domain and its file. The file also owns a reference to the domain, and exists as long as a
/// process has the file open or mapped.
pub(super) struct DomainHandle {
    pub(super) domain: Arc<Domain>,
    pub(super) file: ARef<File>,
}

impl DomainHandle {
    /// Creates a domain with a bounce area of `bounce_size` bytes, a multiple of the page size, and
    /// at most `max_entries` mappings. Without `cache`, a virtio driver of this kernel can map
    /// neither buffers nor rings. `reserve` is the size of the area's reserve, in pages.
    ///
    /// # Context
    ///
    /// May sleep.
    ///
    /// # Errors
    ///
    /// - [`EINVAL`] if the bounce area is too small to map anything.
    /// - [`ENOMEM`] if memory is short.
    pub(super) fn new(
        cache: Option<&Arc<iova::Cache>>,
        bounce_size: usize,
        reserve: usize,
        max_entries: usize,
    ) -> Result<Self> {
        let domain = Arc::pin_init(
            Domain::new(
                bounce::Area::new(cache, bounce_size, reserve),
                Mappings::new(cache, bounce_size, max_entries),
            ),
            GFP_KERNEL_ACCOUNT,
        )?;
        let file = anon_inode::open::<DomainFile>(c"[vduse-domain]", domain.clone(), O_RDWR)?;

        Ok(Self { domain, file })
    }
}
