// SPDX-License-Identifier: GPL-2.0

//! Measurements of how many instructions the driver's `map_page` and `unmap_page` take for the data
//! of a request. The data is physically contiguous. It is one segment if the driver allows so large
//! a segment; otherwise the number is for all of its segments. The number includes the copy to or
//! from the bounce pages. In a virtual machine that counts instructions (see `qemu-test/bench`),
//! copying 32 bytes takes 11 instructions, so the rows with 512 bytes say most about the driver
//! itself.
//!
//! There is no row for syncing mapped memory, because no driver in Linux 7.2 syncs the memory of a
//! device with map operations. virtio_net has a page pool that maps and syncs receive buffers, but
//! creates it only if `virtqueue_dma_dev` returns a device (`virtnet_create_page_pools`). For a
//! device with map operations, `virtqueue_dma_dev` returns none. Nothing calls
//! `virtqueue_map_sync_single_range_for_cpu` or `_for_device`.

use vduse_selftests::lab::kernel::huge_page::HugePage;

use crate::measurement::{Bench, Row};
use crate::null::{NullDisk, Shape};
use crate::probes::Probes;
use crate::profile;
use crate::rows::disk;

/// Number of requests of each kind that are timed, after `WARM_UP` untimed ones.
const REQUESTS: usize = 100;
const WARM_UP: usize = 20;

/// Measures how many instructions the map operations take for a buffer of `bytes` bytes, in a read
/// and in a write.
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
        // The profile covers whole requests. It is taken before the probes are added, so that it
        // does not count the instructions of the probes.
        profile::watch(&row.name, REQUESTS, || (0..REQUESTS).for_each(|_| once()));
        let probes = Probes::new();
        let watched = probes.watch(|| (0..REQUESTS).for_each(|_| once()));
        let segment = bytes.min(disk::largest_segment(&block));
        let segments = bytes / segment;
        let [map, unmap] = watched.map_and_unmap(segment, REQUESTS * segments);
        (map + unmap) * segments as f64
    };
    vec![each(&rows[0], false), each(&rows[1], true)]
}

/// Returns the measurements of the map operations.
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
