// SPDX-License-Identifier: GPL-2.0

//! Injected faults on the code paths of a disk that virtio_blk drives.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{mpsc, Arc, Mutex};
use std::time::Duration;

use rustix::io::Errno;

use crate::lab::assert::fault_paths::{several, FEW, NEVER, NO_MEMORY, TIMES, UNTOLD};
use crate::lab::daemon::disk::{memory_file, Served};
use crate::lab::device::bus::{self, Driver, OnBus};
use crate::lab::device::test_device::TestDevice;
use crate::lab::driver::virtio_disk::{LiveDisk, Shape};
use crate::lab::kernel::fault_injection::{Below, Injection};
use crate::lab::kernel::file_mapping::FileMapping;
use crate::lab::kernel::memory::PAGE;
use crate::lab::kernel::probe::Prober;
use crate::lab::kernel::sysfs;

tests![
    binding_to_virtio_fails_cleanly => 240,
    deleting_a_disk_succeeds => 240,
    reading_and_writing_a_disk_succeeds => 240,
    mapping_the_domains_file_fails_cleanly => 120,
];

/// A disk that a thread of the test serves.
struct Disk {
    served: Mutex<Option<Served>>,
    file: Arc<File>,
    device: TestDevice,
}

impl Disk {
    #[track_caller]
    fn new() -> Self {
        let device = TestDevice::disk();
        let file = memory_file(1 << 20);
        let served = Served::start(device.open_nonblocking(), 1, file.clone()).expect("serving");
        Self {
            served: Mutex::new(Some(served)),
            file,
            device,
        }
    }

    /// If the device is broken, starts a new daemon. The device ceases to be broken when the new
    /// daemon opens the device.
    #[track_caller]
    fn replace_if_broken(&self) {
        let mut served = self.served.lock().expect("the daemon");
        let broken = |served: &Served| served.device().features().is_err();
        if served.as_ref().is_some_and(broken) {
            *served = None;
            let device = self.device.open_nonblocking();
            *served = Some(Served::start(device, 1, self.file.clone()).expect("serving"));
        }
    }

    /// Runs an operation that waits for the disk. If the device breaks meanwhile, starts a new
    /// daemon.
    fn with_replacement<T>(&self, operation: impl FnOnce() -> T) -> T {
        let (end, ended) = mpsc::channel::<()>();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let moment = Duration::from_millis(5);
                while ended.recv_timeout(moment) == Err(mpsc::RecvTimeoutError::Timeout) {
                    self.replace_if_broken();
                }
            });
            let result = operation();
            drop(end);
            result
        })
    }

    /// Reads from the disk, which must be bound to virtio-vdpa.
    #[track_caller]
    fn reads(&self) {
        let disk = bus::disk_name(self.device.name()).expect("a disk");
        let block = crate::lab::driver::block::Block::open(&disk).expect("opening the disk");
        block.read(0, 4096).expect("reading");
    }
}

fn binding_to_virtio_fails_cleanly() {
    let injection = Injection::of_allocations(Below::Driver);
    several(FEW, ["binding to virtio"], || {
        let disk = Disk::new();
        let on_bus = OnBus::add(disk.device.name()).expect("adding");
        let bind = || on_bus.bind(Driver::Virtio);
        let unbind = || on_bus.unbind(Driver::Virtio).expect("unbinding");
        let tally = injection.each("binding to virtio", |fault| {
            // Binding to virtio-vdpa may succeed even if virtio_blk's probe fails. The virtio
            // device then has no driver.
            let bound = disk.with_replacement(|| fault.hit(UNTOLD, bind));
            disk.replace_if_broken();
            if bound.is_some() {
                unbind();
            }
            bind().expect("binding");
            disk.reads();
            unbind();
        });
        drop(on_bus);
        [tally]
    });
}

fn deleting_a_disk_succeeds() {
    let injection = Injection::of_allocations(Below::Driver);
    several(FEW, ["deleting a disk"], || {
        let disk = Disk::new();
        let tally = injection.each("deleting a disk", |fault| {
            let on_bus = OnBus::add(disk.device.name()).expect("adding");
            on_bus.bind(Driver::Virtio).expect("binding");
            disk.reads();
            disk.with_replacement(|| fault.hit(NEVER, || on_bus.delete()));
            disk.replace_if_broken();
            assert!(!bus::directory(disk.device.name()).exists(), "{fault}");
        });
        [tally]
    });
}

fn reading_and_writing_a_disk_succeeds() {
    const LEN: usize = 32 << 10;
    let injection = Injection::of_allocations(Below::Driver);
    // Each fault gets its own disk. With so many disks, object counts vary from run to run, so only
    // kmemleak looks for leaks here.
    for (path, write) in [("reading", false), ("writing", true)] {
        let tally = injection.each(path, |fault| {
            // A disk keeps the bounce pages that it has allocated, so a later request would not
            // allocate them again.
            let disk = LiveDisk::new(Shape::default());
            // With an I/O scheduler, another thread might start the requests. Faults are injected
            // into this thread only.
            let scheduler = Path::new("/sys/block")
                .join(disk.disk())
                .join("queue/scheduler");
            sysfs::write(&scheduler, "none").expect("choosing no scheduler");
            let block = disk.block();
            // The block layer retries the request, so the request never fails.
            if write {
                fault.hit(NEVER, || block.write(0, &[7; LEN]));
            } else {
                disk.file
                    .write_all_at(&[7; LEN], 0)
                    .expect("writing to the file");
                let found = fault.hit(NEVER, || block.read(0, LEN)).expect("a read");
                assert!(found.iter().all(|&byte| byte == 7), "{fault}");
            }
            let found = block.read(0, LEN).expect("reading");
            assert!(found.iter().all(|&byte| byte == 7), "{fault}");
        });
        tally.note(path);
        assert!(tally.faults > 0);
    }
}

fn mapping_the_domains_file_fails_cleanly() {
    let injection = Injection::of_allocations(Below::Anything);
    let disk = LiveDisk::new(Shape::default());
    disk.block().read(0, 4096).unwrap();
    // The rings have IOVAs above the bounce area.
    let region = disk.vduse().iotlb_fd(64 << 20, u64::MAX).unwrap();
    let map = || FileMapping::new(region.file.as_fd(), region.offset, PAGE as usize, true);
    let paths = ["mapping the domain's file", "a page of it"];
    several(TIMES, paths, || {
        [
            injection.survived(paths[0], NO_MEMORY, map, drop),
            injection.each(paths[1], |fault| {
                let mapping = map().expect("mapping");
                let prober = Prober::new();
                // The kernel makes the access on behalf of `prober`, and returns an error if it
                // cannot allocate a page table.
                let look = || prober.read(mapping.address(), 64).map(drop);
                if fault.hit(&[Errno::NOMEM, Errno::FAULT], look).is_none() {
                    fault.again(look);
                }
            }),
        ]
    });
}
