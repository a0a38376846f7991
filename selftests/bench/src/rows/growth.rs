// SPDX-License-Identifier: GPL-2.0

//! Measurements of operations whose cost must not grow with the number of address spaces, groups,
//! virtqueues or regions.

use std::os::fd::AsFd;

use vduse::Mapping;
use vduse_selftests::lab::assert::random::Random;
use vduse_selftests::lab::daemon::answered::Answered;
use vduse_selftests::lab::driver::vhost::access;
use vduse_selftests::lab::kernel::memory::{self, PAGE};

use crate::aio::Direction;
use crate::measurement::{Bench, Row};
use crate::null::{NullDisk, Shape};
use crate::rows::disk;
use crate::{clock, profile};

const COUNTS: [u32; 4] = [1, 16, 256, 4096];

/// Measures reads of 4 KiB from a null disk with the properties in `shape`. The row's name says
/// that the disk has `count` objects of the kind `what`.
fn reads(what: &str, count: u32, shape: Shape) -> Bench {
    let name = format!("4 KiB read; {count} {what}");
    let row = Row::lower(&name, "ns", 0.77);
    // The bounce areas of all address spaces of a device share this size. It is enough even for
    // 4,096 address spaces.
    let shape = Shape {
        bounce: 1 << 30,
        ..shape
    };
    Bench::new(vec![row], move || {
        let disk = NullDisk::new(shape);
        let what = disk::random(Direction::Read, 4096);
        vec![1e9 / disk::per_second(&name, &disk::open(disk.name()), 1, 4096, 1000, what)]
    })
}

/// Measures `IOTLB_GET_FD`, and mapping and unmapping one more region, in an address space with
/// `count` regions.
fn regions(count: u32) -> Bench {
    const CALLS: u64 = 1000;
    const MAPS: u64 = 30;
    let get_fd = format!("IOTLB_GET_FD; {count} regions");
    let map = format!("vhost map and unmap; {count} regions");
    let rows = [&get_fd, &map]
        .map(|name| Row::lower(name, "ns", 1.0))
        .to_vec();
    Bench::new(rows, move || {
        let answered = Answered::version_0(1);
        let vhost = answered.vhost();
        let page = Mapping::of_file(memory::file(PAGE).as_fd(), 0, PAGE, access::RW)
            .expect("mapping a page");
        // Leave an unmapped page between two regions.
        let at = |region: u64| (region + 1) * 2 * PAGE;
        vhost.batch_begin(0).expect("beginning a batch");
        for region in 0..count.into() {
            vhost
                .map_in(0, at(region), &page, access::RW)
                .expect("mapping");
        }
        vhost.batch_end(0).expect("ending a batch");

        let mut random = Random::new(1);
        let mut look = || {
            let iova = at(random.below(count.into()));
            let region = answered.file.iotlb_fd(iova, iova).expect("a region");
            assert_eq!(region.first, iova);
        };
        (0..100).for_each(|_| look());
        let looking = clock::time(|| {
            profile::watch(&get_fd, CALLS as usize, || (0..CALLS).for_each(|_| look()));
        });

        let mut mapping = 0;
        for _ in 0..MAPS {
            profile::begin(&map);
            mapping += clock::time(|| {
                vhost
                    .map_in(0, at(count.into()), &page, access::RW)
                    .expect("mapping");
                vhost
                    .unmap_in(0, at(count.into()), PAGE)
                    .expect("unmapping");
            });
            profile::end(&map, 1);
            // Clear the responder's record of requests, so that it stays small. While vhost waits
            // for the responder, vhost holds the mmap lock of this process, which the responder
            // would need to allocate memory for a long record.
            answered.responder.take_kinds();
        }
        vec![looking as f64 / CALLS as f64, mapping as f64 / MAPS as f64]
    })
}

/// Returns the measurements of how costs grow with the number of objects.
pub fn benches() -> Vec<Bench> {
    let mut benches = Vec::new();
    for count in COUNTS {
        let shape = Shape {
            spaces: count,
            ..Shape::default()
        };
        benches.push(reads("address spaces", count, shape));
    }
    for count in COUNTS {
        let shape = Shape {
            groups: count,
            ..Shape::default()
        };
        benches.push(reads("groups", count, shape));
    }
    for count in COUNTS {
        let shape = Shape {
            queues: count as u16,
            ..Shape::default()
        };
        benches.push(reads("virtqueues", count, shape));
    }
    benches.extend(COUNTS.map(regions));
    benches
}
