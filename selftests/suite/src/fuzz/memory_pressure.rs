// SPDX-License-Identifier: GPL-2.0

//! An actor that puts the kernel under memory pressure.
//!
//! The actor fills its memory with the secret word, which no daemon may see, and frees the memory.
//! The kernel then gives the memory to other users.

use std::path::Path;

use vduse::Mapping;
use vm_memory::Bytes;

use crate::fuzz::actor::Actor;
use crate::fuzz::records::Wait;
use crate::lab::kernel::memory::PAGE;
use crate::lab::kernel::sysfs;

/// Plays one life: allocates memory, fills it, and frees it.
pub fn live(actor: &mut Actor) {
    let pages = 64 + actor.dice.below(2048) as usize;
    let anonymous = || Mapping::anonymous(pages * PAGE as usize);
    let Some(memory) = actor.call("mmap", Wait::Short, &[], anonymous) else {
        return;
    };
    let page: Vec<u8> = actor.secret.to_ne_bytes().repeat(PAGE as usize / 8);
    for at in 0..pages {
        let _ = memory.bytes().write_slice(&page, at * PAGE as usize);
    }
    drop(memory);
    if actor.dice.one_in(8) {
        let path =
            Path::new("/proc/sys/vm").join(actor.dice.pick(&["drop_caches", "compact_memory"]));
        actor.attempt("press memory", Wait::Daemon, || sysfs::write(&path, "1"));
    }
    actor.pause(400);
}
