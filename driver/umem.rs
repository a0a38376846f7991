// SPDX-License-Identifier: GPL-2.0

//! User memory (umem): memory that a daemon registers as the bounce pages of an address space.

use super::spaces::Spaces;
use crate::bindings::{
    page::{
        PAGE_SHIFT,
        PAGE_SIZE, //
    },
    pin::PinnedPages, //
};
use kernel::prelude::*;

/// Registers memory of the current process as the bounce pages of an address space. `iova` and
/// `size` must be those of the whole bounce area. `uaddr` is the address of the memory.
///
/// # Context
///
/// May sleep.
///
/// # Errors
///
/// - [`EINVAL`] if there is no such address space, if its bounce area is not mapped, if the range
///   is not exactly that area, or if the memory is not aligned to pages.
/// - [`EEXIST`] if memory is registered already.
/// - Those of [`PinnedPages::pin_current`].
pub(super) fn register(spaces: &Spaces, asid: u32, iova: u64, uaddr: u64, size: u64) -> Result {
    let domain = &spaces.get(asid)?.domain;
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

/// Deregisters the memory of a process from an address space's bounce area. `iova` and `size` must
/// be those of the whole bounce area.
///
/// # Context
///
/// May sleep.
///
/// # Errors
///
/// - [`ENOENT`] if no memory is registered.
/// - [`EINVAL`] if there is no such address space, or if the range is not exactly its bounce area.
pub(super) fn deregister(spaces: &Spaces, asid: u32, iova: u64, size: u64) -> Result {
    if asid as usize >= spaces.len() {
        return Err(EINVAL);
    }
    let area = spaces.get(asid).map_err(|_| ENOENT)?.domain.bounce();

    if !area.has_umem() {
        return Err(ENOENT);
    }
    if iova != 0 || size != area.size() as u64 {
        return Err(EINVAL);
    }

    area.deregister_umem().map(drop)
}

/// Deregisters the memory of processes from all bounce areas, after the daemon is gone. May sleep.
pub(super) fn deregister_all(spaces: &Spaces) {
    for handle in spaces.allocated() {
        // If an area has no registered memory, the call fails, which does not matter.
        let _ = handle.domain.bounce().deregister_umem();
    }
}
