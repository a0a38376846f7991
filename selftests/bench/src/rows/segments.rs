// SPDX-License-Identifier: GPL-2.0

//! The cost of mapping and unmapping a buffer: how many instructions the driver's two functions
//! take for the data of a request, which is one piece. This includes the copy to or from the bounce
//! pages: 11 instructions for 32 bytes where instructions are counted (see `qemu-test/bench`), so
//! that 512 bytes say most about the driver itself.
//!
//! There is no row for syncing mapped memory: no driver of Linux 7.2 syncs memory with a device
//! that has map operations. virtio_net could: its page pool maps and syncs receive buffers, but
//! only if `virtqueue_dma_dev` finds a device for that, which fails where there are map operations
//! (`virtnet_create_page_pools`). Nothing calls `virtqueue_map_sync_single_range_for_cpu` or
//! `_for_device`.

use vduse_selftests::lab::kernel::huge_page::HugePage;

use crate::measurement::{Bench, Row};
use crate::null::{NullDisk, Shape};
use crate::probes::Probes;
use crate::profile;
use crate::rows::disk;

/// The number of requests of each kind that are timed, after `WARM_UP` others that are not.
const REQUESTS: usize = 100;
const WARM_UP: usize = 20;

/// Measures what the map operations take for buffers of `bytes` bytes, for reads and for writes.
fn map_and_unmap(rows: &[Row], bytes: usize) -> Vec<f64> {
    let disk = NullDisk::new(Shape::default());
    let block = disk::open(disk.name());
    // The buffer is physically contiguous.
    let mut memory = HugePage::new();
    let buffer = &mut memory.bytes()[..bytes];
    let mut each = |row: &Row, write: bool| {
        let mut once = || {
            let done = if write {
                rustix::io::pwrite(&block, buffer, 0)
            } else {
                rustix::io::pread(&block, &mut *buffer, 0)
            };
            assert_eq!(done, Ok(bytes), "a request");
        };
        (0..WARM_UP).for_each(|_| once());
        // Profile whole requests, without the probes.
        profile::watch(&row.name, REQUESTS, || (0..REQUESTS).for_each(|_| once()));
        let probes = Probes::new();
        let watched = probes.watch(|| (0..REQUESTS).for_each(|_| once()));
        let [map, unmap] = watched.map_and_unmap(bytes, REQUESTS);
        map + unmap
    };
    vec![each(&rows[0], false), each(&rows[1], true)]
}

/// Returns the measurements.
pub fn benches() -> Vec<Bench> {
    let bench = |bytes: usize| {
        let row = |what| {
            let name = format!("map and unmap {bytes} B, {what}");
            Row::lower(name, "instr.", 0.7)
        };
        let rows = vec![row("device writes"), row("device reads")];
        Bench::new(rows.clone(), move || map_and_unmap(&rows, bytes))
    };
    [512, 4 << 10, 64 << 10].map(bench).into()
}
