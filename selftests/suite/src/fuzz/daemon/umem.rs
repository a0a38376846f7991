// SPDX-License-Identifier: GPL-2.0

//! Registration of user pages for the bounce area (umem).

use rustix::io::Errno;
use vduse::{Device, Mapping};
use vduse_uapi::{IovaInfo, IovaUmem};

use crate::fuzz::actor::Actor;
use crate::fuzz::daemon::arguments::asid;
use crate::fuzz::daemon::errors::{BROKEN, INVALID};
use crate::fuzz::records::Wait;
use crate::lab::kernel::memory::PAGE;
use crate::lab::kernel::probe::Prober;

/// Registers memory for the bounce area with arguments that may be invalid, then tries to
/// deregister the memory.
pub fn umem(actor: &mut Actor, device: &Device) {
    let asid = if actor.dice.one_in(3) { asid(actor) } else { 0 };
    let mut umem = IovaUmem {
        asid,
        ..Default::default()
    };
    let info = actor.call("IOTLB_GET_INFO", Wait::Short, INVALID, || {
        device.iotlb_info(IovaInfo {
            asid,
            ..Default::default()
        })
    });
    umem.size = match (info, actor.dice.below(8)) {
        (_, 0) => actor.dice.next(),
        (_, 1) => PAGE,
        (Some(info), _) if info.capability != 0 => info.last - info.start + 1,
        _ => 1 << 20,
    };
    umem.iova = if actor.dice.one_in(12) { PAGE } else { 0 };
    // The mapping is twice as long as the registered range, so that a valid range is inside the
    // mapping even if it does not begin at the mapping's start.
    let len = umem.size.clamp(PAGE, 64 << 20) as usize;
    let anonymous = || Mapping::anonymous(2 * len);
    let Some(memory) = actor.call("mmap umem", Wait::Short, &[Errno::NOMEM], anonymous) else {
        return;
    };
    umem.uaddr = match actor.dice.below(12) {
        0 => 0,
        1 => memory.address() as u64 + 8,
        2 => u64::MAX - PAGE + 1,
        3..=4 => memory.address() as u64 + len as u64 / 2 / PAGE * PAGE,
        _ => memory.address() as u64,
    };
    let errors = &[
        BROKEN,
        Errno::INVAL,
        Errno::EXIST,
        Errno::NOMEM,
        Errno::FAULT,
    ];
    // SAFETY: A registered range is either unmapped or inside this function's own mapping, to which
    // the program makes only volatile accesses.
    let register = || unsafe { device.register_umem(&umem) };
    let registered = actor.call("IOTLB_REG_UMEM", Wait::Short, errors, register);
    if registered.is_some() {
        let pages = len as u64 / PAGE;
        let prober = Prober::new();
        for _ in 0..actor.dice.below(8) {
            let at = actor.dice.below(pages) * PAGE;
            let page = prober.read(memory.address().wrapping_add(at as usize), PAGE as usize);
            actor.inspect(&page.unwrap_or_default(), "registered memory");
        }
        actor.pause(10);
    }
    if actor.dice.one_in(4) {
        umem.size = actor.dice.next();
    }
    let errors = &[BROKEN, Errno::INVAL, Errno::NOENT];
    actor.call("IOTLB_DEREG_UMEM", Wait::Short, errors, || {
        device.deregister_umem(&umem)
    });
}
