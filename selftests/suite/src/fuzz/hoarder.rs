// SPDX-License-Identifier: GPL-2.0

//! Takes memory, fills it with what no daemon is to see, and gives it back for others to get.

use std::path::Path;

use vduse::Mapping;
use vm_memory::Bytes;

use crate::fuzz::board::Wait;
use crate::fuzz::stage::Stage;
use crate::lab::kernel::memory::PAGE;
use crate::lab::kernel::sysfs;

/// The life of who takes memory.
pub fn live(stage: &mut Stage) {
    let pages = 64 + stage.dice.below(2048) as usize;
    let anonymous = || Mapping::anonymous(pages * PAGE as usize);
    let Some(memory) = stage.call("mmap", Wait::Short, &[], anonymous) else {
        return;
    };
    let page: Vec<u8> = stage.secret.to_ne_bytes().repeat(PAGE as usize / 8);
    for at in 0..pages {
        let _ = memory.bytes().write_slice(&page, at * PAGE as usize);
    }
    drop(memory);
    if stage.dice.one_in(8) {
        let path =
            Path::new("/proc/sys/vm").join(stage.dice.pick(&["drop_caches", "compact_memory"]));
        stage.attempt("press memory", Wait::Daemon, || sysfs::write(&path, "1"));
    }
    stage.pause(400);
}
