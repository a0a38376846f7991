// SPDX-License-Identifier: GPL-2.0

//! The rows: what each daemon is asked to do.

use vduse_selftests::lab::driver::block::Block;

use crate::aio::Direction;
use crate::daemons::contender::Media;
use crate::daemons::image::SIZE;
use crate::rows::disk::{per_second, random_in, sequential_in};
use crate::rows::parallel::at_once;

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

/// The order of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Random,
    Sequential,
}

/// A row of the table.
#[derive(Clone, Debug)]
pub struct Work {
    /// What is on the disk.
    pub media: Media,
    direction: Direction,
    order: Order,
    /// Length of a request in bytes.
    bytes: usize,
    /// Number of requests in flight.
    depth: usize,
    /// Number of requests of each thread.
    count: usize,
    /// Number of threads that send requests, each on a CPU and so on a virtqueue of its own.
    threads: usize,
    /// Target for the ratio of vduse-blk to qemu-storage-daemon on the in-tree driver.
    pub to_qsd: f64,
    /// Target for the ratio of vduse-blk to rublk.
    pub to_rublk: f64,
}

impl Work {
    /// Returns the row's name.
    pub fn name(&self) -> String {
        let media = match self.media {
            Media::File => "file",
            Media::Null => "null",
        };
        let order = match self.order {
            Order::Random => "random",
            Order::Sequential => "sequential",
        };
        let direction = match self.direction {
            Direction::Read => "read",
            Direction::Write => "write",
        };
        let (kib, depth) = (self.bytes / KIB, self.depth);
        let threads = match self.threads {
            1 => String::new(),
            threads => format!(" each of {threads} threads"),
        };
        format!("{media}: {kib} KiB {order} {direction}, depth {depth}{threads}")
    }

    /// Returns the unit of the figures.
    pub fn unit(&self) -> &'static str {
        if self.bytes < MIB {
            "IO/s"
        } else {
            "MB/s"
        }
    }

    /// Measures the row on a disk.
    #[track_caller]
    pub fn measure(&self, block: &Block) -> f64 {
        let (row, bytes) = (self.name(), self.bytes);
        let run = |what: &mut dyn FnMut() -> (Direction, u64, usize)| {
            per_second(&row, block, self.depth, bytes, self.count, what)
        };
        if self.threads > 1 {
            let what = || random_in(SIZE, self.direction, bytes);
            return at_once(&vec![block; self.threads], self.depth, self.count, what);
        }
        let per_second = match self.order {
            Order::Random => run(&mut random_in(SIZE, self.direction, bytes)),
            Order::Sequential => run(&mut sequential_in(SIZE, self.direction, bytes)),
        };
        if bytes < MIB {
            per_second
        } else {
            per_second * bytes as f64 / 1e6
        }
    }
}

/// Returns all rows that are useful on `cpus` CPUs.
pub fn all(cpus: usize) -> Vec<Work> {
    use Direction::{Read, Write};
    use Order::{Random, Sequential};
    let row = |media, direction, order, bytes, depth, to_qsd, to_rublk| Work {
        media,
        direction,
        order,
        bytes,
        depth,
        count: match (bytes, depth) {
            (MIB, _) => 100,
            (_, 1) => 2000,
            _ => 4000,
        },
        threads: 1,
        to_qsd,
        to_rublk,
    };
    let small = 4 * KIB;
    if cpus > 1 {
        let parallel = |direction, depth: usize| Work {
            count: 2000 * depth.min(4),
            threads: cpus,
            ..row(Media::File, direction, Random, small, depth, 1.0, 1.0)
        };
        return [(Read, 1), (Write, 1), (Read, 16), (Write, 16)]
            .map(|(direction, depth)| parallel(direction, depth))
            .to_vec();
    }
    vec![
        row(Media::File, Read, Random, small, 1, 2.0, 1.0),
        row(Media::File, Write, Random, small, 1, 2.0, 1.0),
        row(Media::File, Read, Random, small, 16, 2.0, 0.9),
        row(Media::File, Write, Random, small, 16, 2.0, 0.9),
        row(Media::File, Read, Sequential, small, 16, 2.0, 0.9),
        row(Media::File, Read, Random, small, 128, 2.0, 0.9),
        row(Media::File, Write, Random, small, 128, 2.0, 0.9),
        row(Media::File, Read, Random, MIB, 4, 1.3, 1.2),
        row(Media::File, Read, Sequential, MIB, 4, 1.3, 1.2),
        row(Media::File, Write, Sequential, MIB, 4, 1.3, 1.2),
        row(Media::Null, Read, Random, small, 1, 1.0, 0.9),
        row(Media::Null, Read, Random, small, 16, 1.0, 0.8),
        row(Media::Null, Read, Sequential, MIB, 4, 1.0, 1.0),
    ]
}
