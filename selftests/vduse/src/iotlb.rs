// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The driver's memory, as a device accesses it: address spaces keyed by IOVA.
//!
//! An [`AddressSpace`] starts empty and maps each region on the first access to it. Regions stay
//! mapped. When the kernel reports that mappings have changed, the server replaces the address
//! space with a copy [`without`](AddressSpace::without) the affected regions. Requests in progress
//! keep the old address space alive.
//!
//! Regions come from a [`Source`], which is either a [`Device`] of version 0 with its only address
//! space, or one address space of a version 1 device ([`SpaceOf`]).

use std::io;
use std::iter::FusedIterator;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use vduse_uapi as uapi;
use vm_memory::guest_memory::GuestMemorySliceIterator;
use vm_memory::volatile_memory::VolatileSlice;
use vm_memory::{
    Address, GuestAddress, GuestMemory, GuestMemoryError, GuestMemoryMmap, Permissions,
};

use crate::device::{Device, Region};
use crate::memory;
use crate::Mapping;

/// The source of an address space's regions.
pub trait Source: Send + Sync + std::fmt::Debug {
    /// Finds the region that contains an IOVA.
    ///
    /// # Errors
    ///
    /// Fails when no region contains the IOVA.
    fn find(&self, iova: u64) -> io::Result<Region>;
}

/// The only address space of a version 0 device.
impl Source for Device {
    fn find(&self, iova: u64) -> io::Result<Region> {
        self.iotlb_fd(iova, iova)
    }
}

/// An address space of a version 1 device.
#[derive(Debug)]
pub struct SpaceOf {
    /// The device.
    pub device: Arc<Device>,
    /// The address space's number (ASID).
    pub asid: u32,
}

impl Source for SpaceOf {
    fn find(&self, iova: u64) -> io::Result<Region> {
        self.device.iotlb_fd2(self.asid, iova, iova)
    }
}

/// A mapped region.
#[derive(Debug)]
pub(crate) struct Mapped {
    first: u64,
    last: u64,
    access: u8,
    mapping: Arc<Mapping>,
}

impl Mapped {
    #[inline]
    pub(crate) fn contains(&self, iova: u64) -> bool {
        (self.first..=self.last).contains(&iova)
    }

    /// Returns the address of an IOVA that the region [contains](Self::contains), and the number of
    /// bytes from there to the end of the region.
    #[inline]
    pub(crate) fn from(&self, iova: u64) -> (*mut u8, usize) {
        // The whole region is mapped, so the offset is smaller than the mapping's length, which
        // fits `usize`.
        let offset = (iova - self.first) as usize;
        let address = self.mapping.address().wrapping_add(offset);
        (address, self.mapping.len() - offset)
    }

    /// Returns the first IOVA.
    pub(crate) fn first(&self) -> u64 {
        self.first
    }

    pub(crate) fn mapping(&self) -> &Arc<Mapping> {
        &self.mapping
    }

    #[inline]
    pub(crate) fn allows(&self, access: Permissions) -> bool {
        let has = match self.access {
            uapi::ACCESS_RO => Permissions::Read,
            uapi::ACCESS_WO => Permissions::Write,
            uapi::ACCESS_RW => Permissions::ReadWrite,
            _ => Permissions::No,
        };
        has.allow(access)
    }
}

/// A link in the append-only list of regions.
#[derive(Debug)]
struct Link {
    region: Arc<Mapped>,
    next: OnceLock<Box<Link>>,
}

/// An address space whose regions are mapped on first access.
///
/// Use an `AddressSpace` as vm-memory's [`GuestMemory`], with the IOVA as the guest address. An
/// access fails if no region contains the address, or if the region's permissions forbid it.
///
/// A region can be longer than the memory that backs it. An access to an address without memory
/// raises `SIGBUS`. A program that does not trust the addresses in the driver's rings must install
/// a handler for that signal.
#[derive(Debug)]
pub struct AddressSpace {
    source: Arc<dyn Source>,
    /// The list of regions. It is a linked list rather than a vector, so that references to regions
    /// stay valid while the list grows.
    head: OnceLock<Box<Link>>,
    /// Held while a region is appended to the list.
    growing: Mutex<()>,
}

impl AddressSpace {
    /// Creates an address space without regions.
    pub fn new(source: Arc<dyn Source>) -> Self {
        Self {
            source,
            head: OnceLock::new(),
            growing: Mutex::new(()),
        }
    }

    /// Returns an address space with the same source and the same regions, except those that
    /// overlap the IOVAs from `first` to `last`.
    pub fn without(&self, first: u64, last: u64) -> Self {
        let new = Self::new(self.source.clone());
        for region in self.regions() {
            if region.last < first || region.first > last {
                new.append(region.clone());
            }
        }
        new
    }

    /// Maps memory at the IOVAs from `first` to `last` without a lookup in the source. The range
    /// must not overlap a region that is mapped already.
    ///
    /// # Panics
    ///
    /// Panics if the memory is not as long as the range.
    pub fn map(&mut self, first: u64, last: u64, mapping: Arc<Mapping>) {
        assert_eq!(last - first, mapping.len() as u64 - 1);
        self.append(Arc::new(Mapped {
            first,
            last,
            access: uapi::ACCESS_RW,
            mapping,
        }));
    }

    fn regions(&self) -> impl Iterator<Item = &Arc<Mapped>> {
        std::iter::successors(self.head.get(), |link| link.next.get()).map(|link| &link.region)
    }

    /// Appends a region. No other thread may append at the same time: the caller must hold
    /// `growing`, or be the only user of `self`.
    fn append(&self, region: Arc<Mapped>) -> &Arc<Mapped> {
        let mut slot = &self.head;
        while let Some(link) = slot.get() {
            slot = &link.next;
        }
        &slot
            .get_or_init(|| {
                Box::new(Link {
                    region,
                    next: OnceLock::new(),
                })
            })
            .region
    }

    fn mapped(&self, iova: u64) -> Option<&Arc<Mapped>> {
        self.regions().find(|region| region.contains(iova))
    }

    /// Finds the region that contains an IOVA. Maps the region if it is not mapped yet.
    fn region(&self, iova: u64) -> io::Result<&Arc<Mapped>> {
        if let Some(region) = self.mapped(iova) {
            return Ok(region);
        }
        let _growing = self.growing.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(region) = self.mapped(iova) {
            return Ok(region);
        }
        let found = self.source.find(iova)?;
        let size = found
            .last
            .checked_sub(found.first)
            .and_then(|size| size.checked_add(1))
            .ok_or(io::ErrorKind::InvalidData)?;

        let mapping = Mapping::of_file(found.file.as_fd(), found.offset, size, found.access)?;
        if memory::is_locked() {
            // A virtual machine's memory is not this program's to lock. The bounce area is memory of
            // the kernel, which never swaps it out.
            mapping.unlock();
        }
        let region = self.append(Arc::new(Mapped {
            first: found.first,
            last: found.last,
            access: found.access,
            mapping: Arc::new(mapping),
        }));
        if region.contains(iova) {
            Ok(region)
        } else {
            Err(io::ErrorKind::InvalidData.into())
        }
    }

    /// Finds the region that contains an IOVA, and checks that its permissions allow `access`.
    pub(crate) fn find(&self, iova: u64, access: Permissions) -> io::Result<&Arc<Mapped>> {
        let region = self.region(iova)?;
        if region.allows(access) {
            Ok(region)
        } else {
            Err(io::ErrorKind::PermissionDenied.into())
        }
    }

    /// Returns the bytes from `iova` to the end of the region, but at most `len` bytes.
    fn chunk(
        &self,
        iova: u64,
        len: usize,
        access: Permissions,
    ) -> Result<VolatileSlice<'_>, GuestMemoryError> {
        let region = self.find(iova, access).map_err(GuestMemoryError::IOError)?;
        // As in `Mapped::from`.
        let offset = (iova - region.first) as usize;
        let len = len.min(region.mapping.len() - offset);
        Ok(region.mapping.slice(offset, len)?)
    }
}

impl GuestMemory for AddressSpace {
    // An address space has no physical memory, but the trait requires a type.
    type PhysicalMemory = GuestMemoryMmap;
    type Bitmap = ();

    fn check_range(&self, addr: GuestAddress, count: usize, access: Permissions) -> bool {
        Slices::new(self, addr, count, access).all(|slice| slice.is_ok())
    }

    fn get_slices(
        &self,
        addr: GuestAddress,
        count: usize,
        access: Permissions,
    ) -> Result<impl GuestMemorySliceIterator<'_, ()>, GuestMemoryError> {
        Ok(Slices::new(self, addr, count, access))
    }
}

struct Slices<'a> {
    space: &'a AddressSpace,
    next: GuestAddress,
    left: usize,
    access: Permissions,
}

impl<'a> Slices<'a> {
    fn new(space: &'a AddressSpace, next: GuestAddress, left: usize, access: Permissions) -> Self {
        Self {
            space,
            next,
            left,
            access,
        }
    }
}

impl<'a> Iterator for Slices<'a> {
    type Item = Result<VolatileSlice<'a>, GuestMemoryError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            return None;
        }
        let chunk = self.space.chunk(self.next.0, self.left, self.access);
        match &chunk {
            Ok(slice) => {
                self.left -= slice.len();
                match self.next.checked_add(slice.len() as u64) {
                    Some(next) => self.next = next,
                    // This slice ends at the highest IOVA. An access fails if it continues beyond
                    // that IOVA.
                    None if self.left == 0 => {}
                    None => {
                        self.left = 0;
                        return Some(Err(GuestMemoryError::GuestAddressOverflow));
                    }
                }
            }
            Err(_) => self.left = 0,
        }
        Some(chunk)
    }
}

impl FusedIterator for Slices<'_> {}

impl<'a> GuestMemorySliceIterator<'a, ()> for Slices<'a> {}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{ftruncate, memfd_create, MemfdFlags};
    use std::sync::atomic::{AtomicUsize, Ordering};
    use vm_memory::Bytes;

    /// A source with one-page regions at the page numbers 0, 1, 4, 5, 8 and 9. Page 5 is read-only.
    #[derive(Debug)]
    struct Pages {
        file: std::os::fd::OwnedFd,
        lookups: AtomicUsize,
    }

    const PAGE: u64 = 4096;

    impl Source for Pages {
        fn find(&self, iova: u64) -> io::Result<Region> {
            self.lookups.fetch_add(1, Ordering::Relaxed);
            let page = iova / PAGE;
            if page % 4 >= 2 || page > 9 {
                return Err(io::ErrorKind::NotFound.into());
            }
            Ok(Region {
                file: self.file.try_clone()?,
                offset: page * PAGE,
                first: page * PAGE,
                last: page * PAGE + PAGE - 1,
                access: if page == 5 {
                    uapi::ACCESS_RO
                } else {
                    uapi::ACCESS_RW
                },
            })
        }
    }

    fn pages() -> (Arc<Pages>, AddressSpace) {
        let file = memfd_create("test", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, 10 * PAGE).unwrap();
        let pages = Arc::new(Pages {
            file,
            lookups: AtomicUsize::new(0),
        });
        (pages.clone(), AddressSpace::new(pages))
    }

    #[test]
    fn a_region_is_looked_up_once() {
        let (pages, space) = pages();
        space.write_obj(0x1234_5678u32, GuestAddress(16)).unwrap();
        assert_eq!(
            space.read_obj::<u32>(GuestAddress(16)).unwrap(),
            0x1234_5678
        );
        assert_eq!(pages.lookups.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn data_across_regions_is_put_together() {
        let (pages, space) = pages();
        let data: Vec<u8> = (0..200).collect();
        space.write_slice(&data, GuestAddress(PAGE - 100)).unwrap();
        let mut file = vec![0; 200];
        rustix::io::pread(&pages.file, &mut file, PAGE - 100).unwrap();
        assert_eq!(data, file);
        assert_eq!(pages.lookups.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn what_is_not_mapped_is_an_error() {
        let (_, space) = pages();
        assert!(space.read_obj::<u8>(GuestAddress(2 * PAGE)).is_err());
        // Page 1 exists, but page 2 does not.
        assert!(!space.check_range(GuestAddress(PAGE), PAGE as usize + 1, Permissions::Read));
        assert!(space.check_range(GuestAddress(PAGE), PAGE as usize, Permissions::Read));
    }

    #[test]
    fn an_access_that_is_not_allowed_is_an_error_rather_than_a_fault() {
        let (_, space) = pages();
        assert_eq!(space.read_obj::<u8>(GuestAddress(5 * PAGE)).unwrap(), 0);
        assert!(space.write_obj(1u8, GuestAddress(5 * PAGE)).is_err());
        assert!(!space.check_range(GuestAddress(5 * PAGE), 1, Permissions::Write));
    }

    #[test]
    fn only_what_was_invalidated_is_looked_up_again() {
        let (pages, space) = pages();
        for page in [0, 1, 4] {
            space.read_obj::<u8>(GuestAddress(page * PAGE)).unwrap();
        }
        let space = space.without(PAGE, PAGE);
        for page in [0, 1, 4] {
            space.read_obj::<u8>(GuestAddress(page * PAGE)).unwrap();
        }
        assert_eq!(pages.lookups.load(Ordering::Relaxed), 4);
        assert_eq!(space.without(0, u64::MAX).regions().count(), 0);
    }

    #[test]
    fn threads_that_look_at_once_map_once() {
        let (pages, space) = pages();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| space.read_obj::<u8>(GuestAddress(8 * PAGE)).unwrap());
            }
        });
        assert_eq!(pages.lookups.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn the_end_of_the_address_space_does_not_overflow() {
        let (_, space) = pages();
        assert!(space.read_obj::<u64>(GuestAddress(u64::MAX - 3)).is_err());
    }
}
