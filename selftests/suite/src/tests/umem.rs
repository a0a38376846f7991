// SPDX-License-Identifier: GPL-2.0

//! User memory that a daemon registers in place of the bounce pages.

use std::os::unix::fs::FileExt;

use rustix::io::Errno;
use vduse::umem::Umem;
use vduse::Mapping;
use vduse_uapi::ACCESS_RW;
use vduse_uapi::{ioctl, IovaUmem};

use crate::lab::assert::errors::{fails, fails_at};
use crate::lab::assert::timing::soon;
use crate::lab::daemon::disk::Served;
use crate::lab::driver::exerciser::{exercise, Exerciser};
use crate::lab::driver::virtio_disk::{LiveDisk, Shape};
use crate::lab::kernel::memlock::{pinned_kib, set_memlock, unlimited_memlock};
use crate::lab::kernel::memory::PAGE;
use crate::lab::kernel::probe::Prober;
use crate::lab::kernel::raw::{self, Bytes};

tests![
    registering_and_deregistering_works_again_and_again,
    data_goes_through_the_memory,
    registering_twice_is_eexist,
    deregistering_what_is_not_there_is_enoent,
    deregistering_another_region_is_einval,
    a_misaligned_address_is_einval,
    a_wrong_size_is_einval,
    a_wrong_iova_is_einval,
    reserved_fields_must_be_0,
    asid_must_be_0_in_version_0,
    memory_that_is_not_there_is_refused,
    memory_that_is_read_only_is_efault,
    the_memlock_limit_is_enomem,
    the_memlock_limit_holds_for_two_devices_at_once,
    pinned_memory_is_accounted,
    closing_the_device_takes_the_memory_back,
    the_area_cannot_be_mapped_meanwhile,
    pages_that_were_touched_before_are_not_used_meanwhile,
    the_areas_own_mapping_in_its_place_does_no_harm,
    data_is_intact_when_it_comes_and_goes_under_io => 40,
];

/// The size of the bounce area, in bytes.
const SIZE: u64 = 2 << 20;

/// Returns a disk with a small bounce area. Requests have already used some of its bounce pages.
#[track_caller]
fn disk() -> LiveDisk {
    unlimited_memlock();
    let disk = LiveDisk::new(Shape {
        bounce: SIZE,
        ..Default::default()
    });
    disk.block().read(0, 4096).expect("reading");
    disk
}

fn registering_and_deregistering_works_again_and_again() {
    let disk = disk();
    let block = disk.block();
    for round in 1..=5 {
        disk.served.handle().register_umem().unwrap();
        block.write(4096, &[round; 4096]).unwrap();
        assert_eq!(block.read(4096, 4096).unwrap()[..], [round; 4096]);
        disk.served.handle().deregister_umem().unwrap();
        assert_eq!(block.read(4096, 4096).unwrap()[..], [round; 4096]);
    }
}

fn data_goes_through_the_memory() {
    let LiveDisk {
        on_bus,
        served,
        device,
        file,
        ..
    } = disk();
    // No daemon serves the disk, so a request stays pending, with its data in the registered
    // memory.
    drop(served);
    let opened = std::sync::Arc::new(device.open_nonblocking());
    let umem = Umem::register(opened.clone()).unwrap();
    assert_eq!(umem.memory().len() as u64, SIZE);
    let disk = crate::lab::device::bus::disk_name(device.name()).unwrap();
    let mut writer = std::process::Command::new("/proc/self/exe")
        .args(["--helper", "write", &disk, "119"])
        .spawn()
        .unwrap();
    let prober = Prober::new();
    let found = || {
        (0..umem.memory().len()).step_by(PAGE as usize).any(|at| {
            let address = umem.memory().address().wrapping_add(at);
            prober.read(address, 4096).unwrap() == [119; 4096]
        })
    };
    soon("the data is in the memory", found);
    drop(umem);
    drop(opened);
    let served = Served::start(device.open_nonblocking(), 1, file.clone()).unwrap();
    assert!(writer.wait().unwrap().success());
    let mut written = [0; 4096];
    file.read_exact_at(&mut written, 0).unwrap();
    assert_eq!(written, [119; 4096]);
    drop(on_bus);
    drop(served);
}

/// Asserts that the driver refuses to register `umem`, with the error `errno`, and that no memory
/// stays pinned.
#[track_caller]
fn refused(disk: &LiveDisk, umem: &IovaUmem, errno: Errno) {
    // SAFETY: All access to the memory of the tests' mappings is volatile. If the driver registers
    // the memory by mistake, the memory stays pinned until the process ends.
    fails_at(unsafe { disk.vduse().register_umem(umem) }, errno, umem);
    assert_eq!(pinned_kib(), 0);
}

fn memory() -> (Mapping, IovaUmem) {
    let mapping = Mapping::anonymous(SIZE as usize + PAGE as usize).expect("memory");
    let umem = IovaUmem {
        uaddr: mapping.address() as u64,
        size: SIZE,
        ..Default::default()
    };
    (mapping, umem)
}

fn registering_twice_is_eexist() {
    let disk = disk();
    let _umem = Umem::register(disk.vduse().clone()).unwrap();
    fails(Umem::register(disk.vduse().clone()).map(drop), Errno::EXIST);
}

fn deregistering_what_is_not_there_is_enoent() {
    let disk = disk();
    let (_memory, umem) = memory();
    fails(disk.vduse().deregister_umem(&umem), Errno::NOENT);
}

fn deregistering_another_region_is_einval() {
    let disk = disk();
    let umem = Umem::register(disk.vduse().clone()).unwrap();
    let region = *umem.region();
    for (iova, size) in [(PAGE, SIZE), (0, SIZE - PAGE), (0, SIZE + PAGE), (0, 0)] {
        let other = IovaUmem {
            iova,
            size,
            ..region
        };
        fails_at(
            disk.vduse().deregister_umem(&other),
            Errno::INVAL,
            (iova, size),
        );
    }
    umem.deregister().unwrap();
}

fn a_misaligned_address_is_einval() {
    let disk = disk();
    let (_memory, umem) = memory();
    for off in [1, 8, PAGE - 1] {
        let uaddr = umem.uaddr + off;
        refused(&disk, &IovaUmem { uaddr, ..umem }, Errno::INVAL);
    }
}

fn a_wrong_size_is_einval() {
    let disk = disk();
    let (_memory, umem) = memory();
    for size in [0, 1, PAGE, SIZE - PAGE, SIZE + PAGE, SIZE + 1, u64::MAX] {
        refused(&disk, &IovaUmem { size, ..umem }, Errno::INVAL);
    }
}

fn a_wrong_iova_is_einval() {
    let disk = disk();
    let (_memory, umem) = memory();
    let ring = disk.vduse().vq_info(0).unwrap().desc_addr;
    for iova in [1, PAGE, SIZE, ring, u64::MAX] {
        refused(&disk, &IovaUmem { iova, ..umem }, Errno::INVAL);
    }
}

fn reserved_fields_must_be_0() {
    let disk = disk();
    let (_memory, umem) = memory();
    for index in 0..5 {
        let mut umem = umem;
        umem.reserved[index] = 1;
        refused(&disk, &umem, Errno::INVAL);
        fails(disk.vduse().deregister_umem(&umem), Errno::INVAL);
    }
}

fn asid_must_be_0_in_version_0() {
    let disk = disk();
    let (_memory, umem) = memory();
    for asid in [1, u32::MAX] {
        refused(&disk, &IovaUmem { asid, ..umem }, Errno::INVAL);
        let other = IovaUmem { asid, ..umem };
        fails(disk.vduse().deregister_umem(&other), Errno::INVAL);
    }
}

fn memory_that_is_not_there_is_refused() {
    let disk = disk();
    let (memory, umem) = memory();
    drop(memory);
    refused(&disk, &umem, Errno::FAULT);
    // The file is too short, so the mapping's last page is missing.
    let file = crate::lab::kernel::memory::file(SIZE - PAGE);
    use std::os::fd::AsFd;
    let short = Mapping::of_file(file.as_fd(), 0, SIZE, ACCESS_RW).unwrap();
    let uaddr = short.address() as u64;
    let mut bytes = Bytes::new().u64(uaddr).u64(0).u64(SIZE).zeroes(24).0;
    let result = raw::call(disk.vduse(), ioctl::IOTLB_REG_UMEM, &mut bytes);
    let errno = result.err().and_then(|e| Errno::from_io_error(&e));
    assert!(
        matches!(errno, Some(Errno::FAULT | Errno::NOMEM)),
        "{errno:?}"
    );
    assert_eq!(pinned_kib(), 0);
}

fn memory_that_is_read_only_is_efault() {
    use std::os::fd::AsFd;
    let disk = disk();
    let file = crate::lab::kernel::memory::file(SIZE);
    let mapping = Mapping::of_file(file.as_fd(), 0, SIZE, 1).unwrap();
    let umem = IovaUmem {
        uaddr: mapping.address() as u64,
        size: SIZE,
        ..Default::default()
    };
    refused(&disk, &umem, Errno::FAULT);
}

fn the_memlock_limit_is_enomem() {
    let disk = disk();
    let (_memory, umem) = memory();
    for limit in [0, PAGE, SIZE - 1] {
        set_memlock(Some(limit));
        refused(&disk, &umem, Errno::NOMEM);
    }
    set_memlock(Some(SIZE));
    Umem::register(disk.vduse().clone())
        .unwrap()
        .deregister()
        .unwrap();
}

fn the_memlock_limit_holds_for_two_devices_at_once() {
    let disks = [disk(), disk()];
    // The limit allows one registration, not two.
    set_memlock(Some(SIZE + SIZE / 2));
    let barrier = std::sync::Barrier::new(2);
    let register = |disk: &LiveDisk| {
        barrier.wait();
        let umem = Umem::register(disk.vduse().clone());
        // Neither thread releases its memory before the other thread has tried to register.
        barrier.wait();
        umem.is_ok()
    };
    for _ in 0..50 {
        let both = std::thread::scope(|scope| {
            let other = scope.spawn(|| register(&disks[1]));
            (register(&disks[0]), other.join().unwrap())
        });
        assert_ne!(both, (true, true));
    }
    assert_eq!(pinned_kib(), 0);
}

fn pinned_memory_is_accounted() {
    let disk = disk();
    assert_eq!(pinned_kib(), 0);
    let umem = Umem::register(disk.vduse().clone()).unwrap();
    assert_eq!(pinned_kib(), SIZE >> 10);
    umem.deregister().unwrap();
    assert_eq!(pinned_kib(), 0);
}

fn closing_the_device_takes_the_memory_back() {
    let disk = disk();
    let (_memory, umem) = memory();
    // SAFETY: All access to the memory is volatile.
    unsafe { disk.vduse().register_umem(&umem) }.unwrap();
    assert_eq!(pinned_kib(), SIZE >> 10);
    let disk = disk.restart(|| assert_eq!(pinned_kib(), 0));
    assert_eq!(disk.block().read(0, 4096).unwrap()[..], [0; 4096]);
}

fn the_area_cannot_be_mapped_meanwhile() {
    use std::os::fd::AsFd;
    let disk = disk();
    let region = disk.vduse().iotlb_fd(0, 0).unwrap();
    let map = || Mapping::of_file(region.file.as_fd(), 0, SIZE, ACCESS_RW).unwrap();
    let prober = Prober::new();
    let is_there = |area: &Mapping, at| prober.read(area.address().wrapping_add(at), 1).is_ok();
    let pages = || (0..SIZE as usize).step_by(PAGE as usize);
    // Only bounce pages that requests have used can be accessed.
    let before = map();
    assert!(pages().any(|at| is_there(&before, at)));
    let umem = Umem::register(disk.vduse().clone()).unwrap();
    let meanwhile = map();
    assert!(!pages().any(|at| is_there(&meanwhile, at)));
    umem.deregister().unwrap();
    assert!(pages().any(|at| is_there(&meanwhile, at)));
}

fn data_is_intact_when_it_comes_and_goes_under_io() {
    let disk = disk();
    let block = disk.block();
    let handle = disk.served.handle();
    let mut exercisers: Vec<Exerciser> = (0..2)
        .map(|n| Exerciser::new(&block, n << 20, 1 << 20, 64 << 10, n + 1))
        .collect();
    exercise(&mut exercisers, |all| {
        for _ in 0..25 {
            handle.register_umem().unwrap();
            all.go_on(2);
            handle.deregister_umem().unwrap();
            all.go_on(2);
        }
    });
    for exerciser in &exercisers {
        exerciser.check_disk();
        exerciser.check_file(&disk.file);
    }
}

/// Maps the bounce area from the domain's file. Only pages that requests have used can be accessed.
#[track_caller]
fn own_mapping(disk: &LiveDisk) -> Mapping {
    use std::os::fd::AsFd;
    let region = disk.vduse().iotlb_fd(0, 0).expect("the area");
    Mapping::of_file(region.file.as_fd(), 0, SIZE, ACCESS_RW).expect("mapping it")
}

/// Overwrites some bytes of each page of the bounce area that can be accessed. Returns the number
/// of these pages.
fn scribble(area: &Mapping) -> usize {
    let prober = Prober::new();
    let pages = (0..area.len()).step_by(PAGE as usize);
    pages
        .filter(|&page| {
            (0..PAGE as usize).step_by(256).all(|at| {
                let address = area.address().wrapping_add(page + at);
                prober.write(address, 0xff).is_ok()
            })
        })
        .count()
}

fn pages_that_were_touched_before_are_not_used_meanwhile() {
    let disk = disk();
    let area = own_mapping(&disk);
    let block = disk.block();
    // No request is in flight, so nothing needs the overwritten data.
    assert!(scribble(&area) > 0);
    disk.served.handle().register_umem().unwrap();
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            let mut exerciser = Exerciser::new(&block, 0, 1 << 20, 64 << 10, 1);
            (0..60).for_each(|_| exerciser.step());
            exerciser.check_disk();
            exerciser.check_file(&disk.file);
        });
        while !worker.is_finished() {
            scribble(&area);
        }
        worker.join().expect("the data is what it was");
    });
    disk.served.handle().deregister_umem().unwrap();
    block.write(0, &[7; 4096]).unwrap();
    assert_eq!(block.read(0, 4096).unwrap()[..], [7; 4096]);
}

fn the_areas_own_mapping_in_its_place_does_no_harm() {
    let disk = disk();
    let block = disk.block();
    // This write uses as many bounce pages as possible.
    block.write(0, &vec![5; 1 << 20]).unwrap();
    let area = own_mapping(&disk);
    let umem = IovaUmem {
        uaddr: area.address() as u64,
        size: SIZE,
        ..Default::default()
    };
    // SAFETY: All access to the memory is volatile, and the memory stays mapped until the device is
    // closed.
    let registered = unsafe { disk.vduse().register_umem(&umem) };
    crate::lab::run::report::note(format_args!("registering: {registered:?}"));
    let mut exerciser = Exerciser::new(&block, 2 << 20, 1 << 20, 64 << 10, 1);
    (0..20).for_each(|_| exerciser.step());
    exerciser.check_disk();
    if registered.is_ok() {
        disk.vduse().deregister_umem(&umem).unwrap();
    }
    assert_eq!(pinned_kib(), 0);
    assert_eq!(block.read(0, 1 << 20).unwrap()[..], vec![5; 1 << 20]);
}
