// SPDX-License-Identifier: GPL-2.0

//! Injected faults on the code paths of user memory that a daemon registers.

use vduse::Mapping;
use vduse_uapi::IovaUmem;

use crate::lab::assert::fault_paths::{several, FEW, NEVER, NO_MEMORY, TIMES};
use crate::lab::daemon::disk::Served;
use crate::lab::driver::virtio_disk::{LiveDisk, Shape};
use crate::lab::kernel::fault_injection::{Below, Fault, Injection};
use crate::lab::kernel::memlock::{pinned_kib, unlimited_memlock};
use crate::lab::kernel::memory::PAGE;

tests![
    registering_memory_fails_cleanly => 120,
    closing_with_memory_registered_succeeds => 120,
];

/// The size of a bounce area, in bytes.
const AREA: u64 = 1 << 20;

/// Returns a disk whose bounce areas have [`AREA`] bytes each, memory of the same size, and the
/// argument that registers this memory for the first address space's bounce area. The disk has
/// `spaces` address spaces. If `spaces` is 0, the disk has API version 0.
#[track_caller]
fn disk_and_memory(spaces: u32) -> (LiveDisk, Mapping, IovaUmem) {
    unlimited_memlock();
    let disk = LiveDisk::new(Shape {
        bounce: AREA * u64::from(spaces.max(1)),
        spaces,
        ..Default::default()
    });
    disk.block().write(0, &[7; 4096]).expect("writing");
    let memory = Mapping::anonymous(AREA as usize).expect("memory");
    // Populates all pages.
    let bytes = memory.bytes();
    for at in (0..AREA as usize).step_by(PAGE as usize) {
        vm_memory::Bytes::write_slice(&bytes, &[1], at).expect("writing to memory");
    }
    let umem = IovaUmem {
        uaddr: memory.address() as u64,
        size: AREA,
        ..Default::default()
    };
    (disk, memory, umem)
}

fn registering_memory_fails_cleanly() {
    let injection = Injection::of_allocations(Below::Anything);
    let paths = [
        "registering memory, version 0",
        "deregistering it",
        "registering memory, version 1",
        "deregistering it",
    ];
    several(FEW, paths, || {
        let mut tallies = Vec::new();
        // A device keeps freed IOVAs for later use as long as it exists, so each round uses new
        // devices.
        for spaces in [0, 2] {
            let (disk, _memory, umem) = &disk_and_memory(spaces);
            let file = disk.vduse();
            // SAFETY: All access to the memory is volatile, and the memory stays until it is
            // deregistered.
            let register = || unsafe { file.register_umem(umem) };
            let deregister = || file.deregister_umem(umem);
            // The disk's daemon does not know of registered memory, so the daemon can serve
            // requests only while no memory is registered.
            let works = |fault: &Fault<'_>| {
                let found = disk.block().read(0, 4096).expect("reading");
                assert!(found.iter().all(|&byte| byte == 7), "{fault}");
            };
            tallies.push(injection.each(paths[0], |fault| {
                if fault.hit(NO_MEMORY, register).is_none() {
                    assert_eq!(pinned_kib(), 0, "{fault}");
                    works(fault);
                    fault.again(register);
                }
                assert_eq!(pinned_kib(), AREA >> 10, "{fault}");
                deregister().expect("deregistering");
            }));
            tallies.push(injection.each(paths[1], |fault| {
                register().expect("registering");
                if fault.hit(NO_MEMORY, deregister).is_none() {
                    assert_eq!(pinned_kib(), AREA >> 10, "{fault}");
                    fault.again(deregister);
                }
                assert_eq!(pinned_kib(), 0, "{fault}");
                works(fault);
            }));
        }
        tallies.try_into().expect("four of them")
    });
}

fn closing_with_memory_registered_succeeds() {
    let injection = Injection::of_allocations(Below::Anything);
    let (disk, _memory, umem) = disk_and_memory(0);
    let LiveDisk {
        on_bus,
        served,
        device,
        file: data,
        ..
    } = disk;
    served.stop();
    several(TIMES, ["closing with memory registered"], || {
        let tally = injection.each("closing", |fault| {
            let file = device.open_nonblocking();
            // SAFETY: All access to the memory is volatile, and the memory stays until the file is
            // closed.
            unsafe { file.register_umem(&umem) }.expect("registering");
            fault.hit(NEVER, || {
                drop(file);
                Ok(())
            });
            assert_eq!(pinned_kib(), 0, "{fault}");
        });
        [tally]
    });
    let served = Served::start(device.open_nonblocking(), 1, data).unwrap();
    drop(on_bus);
    drop(served);
}
