// SPDX-License-Identifier: GPL-2.0

//! The bounce pages of a disk, as its daemon sees them.

use std::os::fd::AsFd;

use vduse::Mapping;

use crate::lab::driver::virtio_disk::LiveDisk;
use crate::lab::kernel::memory::PAGE;
use crate::lab::kernel::probe::{self, Prober};

/// A mapping of a disk's whole bounce area.
#[derive(Debug)]
pub struct BouncePages {
    area: Mapping,
    prober: Prober,
}

impl BouncePages {
    /// Maps the bounce area of a disk that has done I/O.
    #[track_caller]
    pub fn of(disk: &LiveDisk) -> Self {
        let region = disk.vduse().iotlb_fd(0, 0).expect("the bounce area");
        let size = region.last - region.first + 1;
        let area = Mapping::of_file(region.file.as_fd(), 0, size, region.access);
        Self {
            area: area.expect("mapping the bounce area"),
            prober: Prober::new(),
        }
    }

    /// Returns the address of a page, by its number.
    pub fn address(&self, number: usize) -> *mut u8 {
        self.area.address().wrapping_add(number * PAGE as usize)
    }

    /// Returns the number of pages that the area has room for.
    pub fn room(&self) -> usize {
        self.area.len() / PAGE as usize
    }

    /// Returns a page's contents, or `None` if the kernel has no page there. Maps the page.
    pub fn contents(&self, number: usize) -> Option<Vec<u8>> {
        self.prober.read(self.address(number), PAGE as usize).ok()
    }

    /// Returns the numbers of the pages that the kernel has. Maps all of them.
    pub fn existing(&self) -> Vec<usize> {
        let exists = |&number: &usize| self.prober.read(self.address(number), 1).is_ok();
        (0..self.room()).filter(exists).collect()
    }

    /// Returns whether a page is mapped.
    #[track_caller]
    pub fn is_mapped(&self, number: usize) -> bool {
        probe::is_present(self.address(number))
    }
}
