// SPDX-License-Identifier: GPL-2.0

//! Mappings of IOVA regions by a daemon.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use rustix::io::Errno;
use vduse::device::Region;
use vduse::Device;
use vduse_uapi::IotlbEntryV2;

use crate::fuzz::actor::Actor;
use crate::fuzz::daemon::arguments::{asid, range};
use crate::fuzz::daemon::errors::BROKEN;
use crate::fuzz::records::Wait;
use crate::lab::daemon::regions::find_raw;
use crate::lab::kernel::file_mapping::FileMapping;
use crate::lab::kernel::memory::PAGE;
use crate::lab::kernel::probe::Prober;

/// Finds a region, maps it, and accesses the mapping in random ways.
pub fn look(actor: &mut Actor, device: &Device) {
    let (start, last) = if actor.dice.one_in(2) {
        (actor.dice.pick(&[0, 64 << 20, 1 << 30]), u64::MAX)
    } else {
        range(actor)
    };
    let errors = &[BROKEN, Errno::INVAL, Errno::NOTTY];
    let region = if actor.dice.one_in(2) {
        actor.call("IOTLB_GET_FD", Wait::Short, errors, || {
            device.iotlb_fd(start, last)
        })
    } else {
        let entry = IotlbEntryV2 {
            start,
            last,
            asid: asid(actor),
            offset: actor.dice.next(),
            ..Default::default()
        };
        actor.call("IOTLB_GET_FD2", Wait::Short, errors, || {
            find_raw(device, &entry)
        })
    };
    if let Some(region) = region {
        // A region at IOVA 0 is the bounce area or memory of a vhost-vdpa client. The rings of
        // kernel drivers have higher IOVAs and must not be overwritten (see
        // `rings::corrupt_used_ring`).
        let may_scribble = region.first == 0;
        look_at(actor, &region, may_scribble);
    }
}

/// Errors of mapping a region: the file may not permit the access, or may be shorter than the
/// mapping.
const MMAP: &[Errno] = &[Errno::INVAL, Errno::ACCESS, Errno::NOMEM, Errno::OVERFLOW];

fn look_at(actor: &mut Actor, region: &Region, may_scribble: bool) {
    let whole = (region.last - region.first).saturating_add(1);
    let beyond = actor.dice.below(2) * actor.dice.below(16) * PAGE;
    let offset = region.offset / PAGE * PAGE + beyond;
    let len = match actor.dice.below(4) {
        0 => PAGE,
        1 => 16 * PAGE,
        2 => whole.min(1 << 32),
        _ => 1 << 31,
    };
    let writable = actor.dice.one_in(2);
    let map = || FileMapping::new(region.file.as_fd(), offset, len as usize, writable);
    let Some(mut mapping) = actor.call("mmap a region", Wait::Short, MMAP, map) else {
        return;
    };
    let prober = Prober::new();
    for _ in 0..1 + actor.dice.below(6) {
        let pages = mapping.len() as u64 / PAGE;
        let first = actor.dice.pick(&[4, 64, u64::MAX]);
        let page = actor.dice.below(pages.min(first));
        let at = (page * PAGE) as usize;
        // Only bytes inside the region are inspected. If the file belongs to a vhost-vdpa client,
        // the daemon can also see the rest of the file, which is allowed.
        let inside = offset + page * PAGE < region.offset.saturating_add(whole);
        match actor.dice.below(12) {
            0..=5 => {
                let address = mapping.address().wrapping_add(at);
                let read = || prober.read(address, PAGE as usize);
                let read = actor.call("look at a page", Wait::Daemon, &[Errno::FAULT], read);
                if let Some(bytes) = read.filter(|_| inside) {
                    actor.inspect(&bytes, "a region");
                }
            }
            6..=7 => {
                let byte = mapping
                    .address()
                    .wrapping_add(at + actor.dice.below(PAGE) as usize);
                if writable && may_scribble {
                    let value = actor.dice.next() as u8;
                    let write = || prober.write(byte, value);
                    actor.call("scribble", Wait::Daemon, &[Errno::FAULT], write);
                }
            }
            8 => {
                let len = (1 + actor.dice.below(64) * PAGE).next_multiple_of(PAGE) as usize;
                let errors = &[Errno::NOMEM, Errno::FAULT, Errno::INVAL];
                actor.call("mremap", Wait::Short, errors, || mapping.resize(len));
            }
            9 => {
                actor.call("madvise", Wait::Short, &[Errno::INVAL], || mapping.forget());
            }
            10 => {
                actor.call("look in a child", Wait::Daemon, &[], || {
                    mapping.touch_in_child(at)
                });
            }
            _ => actor.pause(20),
        }
    }
    // `read_at` can succeed on a file that belongs to a vhost-vdpa client. `read_at` always fails
    // on a file that the VDUSE driver has created.
    let file = File::from(match region.file.try_clone() {
        Ok(file) => file,
        Err(_) => return,
    });
    let mut bytes = [0; 16];
    actor.attempt("read a region's file", Wait::Short, || {
        file.read_at(&mut bytes, offset)
    });
}
