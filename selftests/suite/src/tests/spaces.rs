// SPDX-License-Identifier: GPL-2.0

//! Address spaces, which version 1 of the API adds. Each address space has its own mappings.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};

use rustix::io::Errno;
use vduse::request::{Answer, Kind};
use vduse::umem::Umem;
use vduse::{Device, Mapping};
use vduse_uapi::{IotlbEntryV2, IovaInfo, IovaUmem, IOVA_CAP_UMEM};

use crate::lab::assert::data::assert_same;
use crate::lab::assert::errors::{fails, fails_at};
use crate::lab::assert::timing::soon;
use crate::lab::daemon::answered::{agree, Answered};
use crate::lab::daemon::regions::{self, first_byte};
use crate::lab::daemon::served_groups::ServedGroups;
use crate::lab::device::bus::{self, Driver, OnBus};
use crate::lab::device::spaces;
use crate::lab::driver::block::Block;
use crate::lab::driver::client::{self, Client};
use crate::lab::driver::ring::{self, HandQueue, LEN};
use crate::lab::driver::vhost::{self, access, Vhost};
use crate::lab::kernel::cpu;
use crate::lab::kernel::memlock::{self, unlimited_memlock};
use crate::lab::kernel::memory::{page_of, PAGE};

tests![
    set_map_of_a_space_leaves_the_others_alone,
    update_iotlb_names_the_space,
    a_batch_is_one_update_of_its_space,
    set_map_that_the_daemon_refuses_leaves_what_was_there,
    set_map_of_a_space_out_of_range_fails,
    the_same_iova_in_two_spaces_is_two_files,
    each_space_has_as_many_maps_as_vhost_allows => 40,
    closing_the_client_empties_all_spaces,
    killing_the_client_empties_all_spaces,
    get_fd_is_get_fd2_of_space_0,
    get_fd2_reserved_fields_must_be_0,
    get_info_and_umem_reserved_fields_must_be_0_in_version_1,
    an_asid_out_of_range_is_einval,
    get_info_of_an_asid_out_of_range_is_einval,
    indexes_at_and_behind_their_ends_are_einval,
    what_is_taken_away_is_told_even_if_the_rest_cannot_be_mapped,
    what_stays_is_there_while_another_map_fails,
    two_groups_in_two_spaces_do_io,
    neither_group_reaches_the_other_ones_memory,
    groups_can_share_a_space_that_is_not_0,
    virtio_has_its_bounce_area_in_space_0_only,
    umem_is_registered_for_a_space,
    a_space_too_small_for_a_page_is_refused_when_it_is_attached,
    the_bounce_area_is_divided_between_the_spaces,
];

fn update(asid: u32) -> Kind {
    Kind::UpdateIotlb {
        first: 0,
        last: u64::MAX,
        asid,
    }
}

/// Maps a page filled with `byte` at `iova` in the address space `asid`. Returns the page. The
/// caller must keep the page as long as it uses the mapping.
#[track_caller]
fn map(vhost: &Vhost, asid: u32, iova: u64, byte: u8) -> Mapping {
    let page = page_of(byte);
    vhost
        .map_in(asid, iova, &page, access::RW)
        .expect("mapping a page");
    page
}

fn set_map_of_a_space_leaves_the_others_alone() {
    let answered = Answered::new(&[0], 1, 3);
    let vhost = answered.vhost();
    let file = &answered.file;
    let _kept: Vec<_> = (0..3)
        .map(|asid| map(&vhost, asid, 0x10_0000, 10 + asid as u8))
        .collect();
    let _more = map(&vhost, 1, 0x20_0000, 21);
    vhost.unmap_in(1, 0x10_0000, PAGE).unwrap();
    assert_eq!(first_byte(file, 0, 0x10_0000).unwrap(), 10);
    fails(first_byte(file, 1, 0x10_0000), Errno::INVAL);
    assert_eq!(first_byte(file, 1, 0x20_0000).unwrap(), 21);
    assert_eq!(first_byte(file, 2, 0x10_0000).unwrap(), 12);
    vhost.unmap_in(0, 0, u64::MAX).unwrap();
    fails(file.iotlb_fd2(0, 0, u64::MAX), Errno::INVAL);
    assert_eq!(first_byte(file, 2, 0x10_0000).unwrap(), 12);
}

fn update_iotlb_names_the_space() {
    let answered = Answered::new(&[0], 1, 0xff);
    let vhost = answered.vhost();
    for asid in [0, 1, 7, 0xfe] {
        answered.responder.take_kinds();
        let _kept = map(&vhost, asid, 0x1000, 1);
        assert_eq!(answered.responder.take_kinds(), [update(asid)]);
        vhost.unmap_in(asid, 0x1000, PAGE).unwrap();
        assert_eq!(answered.responder.take_kinds(), [update(asid)]);
    }
}

fn a_batch_is_one_update_of_its_space() {
    let answered = Answered::new(&[0], 1, 2);
    let vhost = answered.vhost();
    let _before = map(&vhost, 1, 0x1000, 1);
    answered.responder.take_kinds();
    vhost.batch_begin(1).unwrap();
    vhost.unmap_in(1, 0x1000, PAGE).unwrap();
    let _kept: Vec<_> = (2..9u8)
        .map(|n| map(&vhost, 1, u64::from(n) << 12, n))
        .collect();
    // The daemon sees no change before the batch ends. Meanwhile, the client cannot begin a batch
    // in another address space.
    assert_eq!(answered.responder.take_kinds(), []);
    assert_eq!(first_byte(&answered.file, 1, 0x1000).unwrap(), 1);
    fails(vhost.batch_begin(0), Errno::FAULT);
    vhost.batch_end(1).unwrap();
    assert_eq!(answered.responder.take_kinds(), [update(1)]);
    fails(first_byte(&answered.file, 1, 0x1000), Errno::INVAL);
    for n in 2..9u8 {
        let found = first_byte(&answered.file, 1, u64::from(n) << 12);
        assert_eq!(found.unwrap(), n);
    }
}

fn set_map_that_the_daemon_refuses_leaves_what_was_there() {
    let refuse = Arc::new(AtomicBool::new(false));
    let theirs = refuse.clone();
    let answered = Answered::with(&[0], 1, 2, move |request| match request.kind {
        Kind::UpdateIotlb { .. } if theirs.load(Ordering::Relaxed) => Some(Answer::Failed),
        _ => agree(request),
    });
    let vhost = answered.vhost();
    let _kept = [map(&vhost, 0, 0x1000, 1), map(&vhost, 1, 0x1000, 2)];
    refuse.store(true, Ordering::Relaxed);
    let page = page_of(3);
    fails(vhost.map_in(1, 0x2000, &page, access::RW), Errno::FAULT);
    refuse.store(false, Ordering::Relaxed);
    let file = &answered.file;
    assert_eq!(first_byte(file, 0, 0x1000).unwrap(), 1);
    assert_eq!(first_byte(file, 1, 0x1000).unwrap(), 2);
    fails(file.iotlb_fd2(1, 0x2000, u64::MAX), Errno::INVAL);
}

fn what_is_taken_away_is_told_even_if_the_rest_cannot_be_mapped() {
    let answered = Answered::new(&[0], 1, 2);
    let vhost = answered.vhost();
    let file = &answered.file;
    let _kept = [map(&vhost, 1, 0x1000, 1), map(&vhost, 1, 0x2000, 2)];
    // This mapping permits no access, so the device refuses it. vhost keeps the mapping
    // nevertheless.
    vhost.batch_begin(1).unwrap();
    let page = page_of(3);
    vhost.map_in(1, 0x3000, &page, 0).unwrap();
    answered.responder.take_kinds();
    let _ = vhost.batch_end(1);
    assert_eq!(answered.responder.take_kinds(), []);
    assert_eq!(first_byte(file, 1, 0x1000).unwrap(), 1);
    let _ = vhost.unmap_in(1, 0x1000, PAGE);
    assert_eq!(answered.responder.take_kinds(), [update(1)]);
    fails(first_byte(file, 1, 0x1000), Errno::INVAL);
    assert_eq!(first_byte(file, 1, 0x2000).unwrap(), 2);
}

fn what_stays_is_there_while_another_map_fails() {
    let answered = Answered::new(&[0], 1, 2);
    let vhost = answered.vhost();
    let _kept: Vec<_> = (1..100).map(|n| map(&vhost, 1, n << 12, 1)).collect();
    let page = page_of(2);
    let over = AtomicBool::new(false);
    let together = Barrier::new(2);
    std::thread::scope(|scope| {
        let looking = scope.spawn(|| {
            together.wait();
            while !over.load(Ordering::Relaxed) {
                answered.file.iotlb_fd2(1, 0x1000, 0x1000).unwrap();
            }
        });
        together.wait();
        // The device refuses this mapping, because it permits no access.
        let mapped = (0..150).filter(|_| vhost.map_in(1, 0x100_0000, &page, 0).is_ok());
        let mapped = mapped.count();
        over.store(true, Ordering::Relaxed);
        looking.join().unwrap();
        assert_eq!(mapped, 0);
    });
}

fn set_map_of_a_space_out_of_range_fails() {
    let answered = Answered::new(&[0], 1, 2);
    let vhost = answered.vhost();
    answered.responder.take_kinds();
    let page = page_of(1);
    for asid in [2, 3, 0xffff, u32::MAX] {
        fails_at(
            vhost.map_in(asid, 0x1000, &page, access::RW),
            Errno::FAULT,
            asid,
        );
        fails_at(vhost.unmap_in(asid, 0x1000, PAGE), Errno::FAULT, asid);
    }
    assert_eq!(answered.responder.take_kinds(), []);
}

/// Returns the device number and the inode number of a mapping's file, and the mapping's offset in
/// the file.
#[track_caller]
fn place(file: &Device, asid: u32, iova: u64) -> (u64, u64, u64) {
    let region = file.iotlb_fd2(asid, iova, iova).expect("a mapping");
    let stat = rustix::fs::fstat(&region.file).expect("its file");
    (stat.st_dev, stat.st_ino, region.offset)
}

fn the_same_iova_in_two_spaces_is_two_files() {
    let answered = Answered::new(&[0, 1], 2, 2);
    let vhost = answered.vhost();
    let file = &answered.file;
    let _kept = [map(&vhost, 0, 0x1000, 0xaa), map(&vhost, 1, 0x1000, 0xbb)];
    assert_eq!(first_byte(file, 0, 0x1000).unwrap(), 0xaa);
    assert_eq!(first_byte(file, 1, 0x1000).unwrap(), 0xbb);
    assert_ne!(place(file, 0, 0x1000), place(file, 1, 0x1000));
    // A page that is mapped in both address spaces has the same file and offset in both.
    let shared = page_of(0xcc);
    for asid in 0..2 {
        vhost.map_in(asid, 0x9000, &shared, access::RW).unwrap();
    }
    assert_eq!(place(file, 0, 0x9000), place(file, 1, 0x9000));
}

fn each_space_has_as_many_maps_as_vhost_allows() {
    let limit: u64 = std::fs::read_to_string("/sys/module/vhost_vdpa/parameters/max_iotlb_entries")
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(2048);
    let most = limit.min(2048);
    let answered = Answered::new(&[0], 1, 2);
    let vhost = answered.vhost();
    let page = page_of(1);
    for asid in 0..2 {
        vhost.batch_begin(asid).unwrap();
        for n in 0..most {
            vhost.map_in(asid, n * 2 * PAGE, &page, access::RW).unwrap();
        }
        vhost.batch_end(asid).unwrap();
        fails(vhost.map_in(asid, 1 << 40, &page, access::RW), Errno::FAULT);
    }
    for asid in 0..2 {
        let last = (most - 1) * 2 * PAGE;
        assert_eq!(first_byte(&answered.file, asid, last).unwrap(), 1);
    }
}

fn closing_the_client_empties_all_spaces() {
    let answered = Answered::new(&[0], 1, 3);
    let vhost = answered.vhost();
    let _kept: Vec<_> = (0..3).map(|asid| map(&vhost, asid, 0x1000, 1)).collect();
    drop(vhost);
    for asid in 0..3 {
        fails_at(
            answered.file.iotlb_fd2(asid, 0, u64::MAX),
            Errno::INVAL,
            asid,
        );
    }
}

fn killing_the_client_empties_all_spaces() {
    let disk = ServedGroups::new(2, 2);
    disk.on_bus.bind(Driver::Vhost).unwrap();
    let file = disk.served.device();
    for _ in 0..3 {
        Client::start(disk.device.name(), file, 2).kill();
        soon("the address spaces are empty", || {
            (0..2).all(|asid| file.iotlb_fd2(asid, 0, u64::MAX).is_err())
        });
    }
    // The next client can use the device as usual.
    let (_vhost, mut queues) = opened_queues(&disk, [client::IOVA; 2], |_| ());
    for queue in &mut queues {
        assert_same(&queue.read(7), &[8; 512], "a sector");
    }
}

fn get_fd_is_get_fd2_of_space_0() {
    let answered = Answered::new(&[0], 1, 2);
    let vhost = answered.vhost();
    let file = &answered.file;
    let _kept = [map(&vhost, 0, 0x1000, 1), map(&vhost, 1, 0x2000, 2)];
    let region = file.iotlb_fd(0, u64::MAX).unwrap();
    assert_eq!((region.first, region.last), (0x1000, 0x1fff));
    fails(file.iotlb_fd(0x2000, u64::MAX), Errno::INVAL);
    let region = file.iotlb_fd2(1, 0, u64::MAX).unwrap();
    assert_eq!((region.first, region.last), (0x2000, 0x2fff));
    fails(file.iotlb_fd2(1, 1, 0), Errno::INVAL);
}

fn get_fd2_reserved_fields_must_be_0() {
    let answered = Answered::new(&[0], 1, 2);
    let vhost = answered.vhost();
    let _kept = map(&vhost, 1, 0x1000, 1);
    let entry = IotlbEntryV2 {
        start: 0x1000,
        last: 0x1000,
        asid: 1,
        ..Default::default()
    };
    let call = |entry: &IotlbEntryV2| regions::find_raw(&answered.file, entry);
    for index in 0..entry.reserved.len() {
        let mut entry = entry;
        entry.reserved[index] = 1 << index;
        fails_at(call(&entry), Errno::INVAL, index);
    }
    assert!(call(&entry).is_ok());
}

fn get_info_and_umem_reserved_fields_must_be_0_in_version_1() {
    let answered = Answered::new(&[0], 1, 2);
    let vhost = answered.vhost();
    let _kept = map(&vhost, 1, 0x1000, 1);
    let file = &answered.file;
    let info = IovaInfo {
        start: 0x1000,
        last: 0x1000,
        asid: 1,
        ..Default::default()
    };
    let found = file.iotlb_info(info).unwrap();
    assert_eq!((found.start, found.last), (0x1000, 0x1fff));
    assert_eq!((found.capability, found.asid), (0, 1));
    for index in 0..info.reserved.len() {
        let mut info = info;
        info.reserved[index] = 1;
        let result = file.iotlb_info(info);
        // The test iotlb::get_info_reserved_fields_must_be_0 checks which error is returned.
        assert!(result.is_err(), "{result:?}");
        let mut umem = IovaUmem {
            asid: 1,
            size: PAGE,
            ..Default::default()
        };
        umem.reserved[index] = 1;
        // SAFETY: The VDUSE driver refuses the registration.
        fails(unsafe { file.register_umem(&umem) }, Errno::INVAL);
        fails(file.deregister_umem(&umem), Errno::INVAL);
    }
}

/// Asserts that the ioctls of an address space, except for GET_INFO, refuse an ASID that does not
/// exist.
#[track_caller]
fn refuses_asid(file: &Device, asid: u32) {
    fails_at(file.iotlb_fd2(asid, 0, u64::MAX), Errno::INVAL, asid);
    let umem = IovaUmem {
        uaddr: 0x1000,
        size: PAGE,
        asid,
        ..Default::default()
    };
    // SAFETY: The VDUSE driver refuses the registration.
    fails_at(unsafe { file.register_umem(&umem) }, Errno::INVAL, asid);
    fails_at(file.deregister_umem(&umem), Errno::INVAL, asid);
}

fn an_asid_out_of_range_is_einval() {
    let answered = Answered::new(&[0], 1, 2);
    let vhost = answered.vhost();
    let _kept = [map(&vhost, 0, 0x1000, 1), map(&vhost, 1, 0x1000, 2)];
    for asid in OUT_OF_RANGE {
        refuses_asid(&answered.file, asid);
    }
}

/// ASIDs that do not exist on a device with two address spaces.
const OUT_OF_RANGE: [u32; 7] = [2, 3, 0xffff, 0x1_0000, 0x1_0001, 1 << 31, u32::MAX];

fn get_info_of_an_asid_out_of_range_is_einval() {
    let answered = Answered::new(&[0], 1, 2);
    let vhost = answered.vhost();
    let _kept = [map(&vhost, 0, 0x1000, 1), map(&vhost, 1, 0x1000, 2)];
    for asid in OUT_OF_RANGE {
        let info = IovaInfo {
            last: u64::MAX,
            asid,
            ..Default::default()
        };
        fails_at(answered.file.iotlb_info(info), Errno::INVAL, asid);
    }
}

fn indexes_at_and_behind_their_ends_are_einval() {
    // A test cannot observe the speculation barrier after the range check of an index. It can only
    // observe the range check.
    let answered = Answered::new(&[0, 1, 2], 3, 2);
    let vhost = answered.vhost();
    let file = &answered.file;
    for index in [0, 2] {
        file.vq_info(index).unwrap();
        spaces::set_up(file, index, index).unwrap();
    }
    for index in [3, 4, 0xffff, 0x1_0000, 0x1_0002, 1 << 31, u32::MAX] {
        fails_at(file.vq_info(index), Errno::INVAL, index);
        fails_at(file.inject_vq_irq(index), Errno::INVAL, index);
        fails_at(spaces::set_up(file, index, 0), Errno::INVAL, index);
        let kick = vduse_uapi::VqEventfd { index, fd: -1 };
        fails_at(file.set_kick_raw(&kick), Errno::INVAL, index);
        fails_at(vhost.group_of(index), Errno::NOBUFS, index);
        fails_at(file.iotlb_fd2(index, 0, 0), Errno::INVAL, index);
    }
}

/// Binds a disk to vhost, and sets up queues 0 and 1 at `iovas`. The queues are in groups 0 and 1,
/// and in address spaces 0 and 1. Calls `prepare` before `DRIVER_OK`.
#[track_caller]
fn two_queues(
    disk: &ServedGroups,
    iovas: [u64; 2],
    prepare: impl FnOnce(&Vhost),
) -> (Vhost, [HandQueue; 2]) {
    disk.on_bus.bind(Driver::Vhost).unwrap();
    opened_queues(disk, iovas, prepare)
}

/// Sets up the queues as [`two_queues`] does, for a disk that is bound already.
#[track_caller]
fn opened_queues(
    disk: &ServedGroups,
    iovas: [u64; 2],
    prepare: impl FnOnce(&Vhost),
) -> (Vhost, [HandQueue; 2]) {
    let vhost = vhost::open(&disk.device);
    ring::agree(&vhost);
    vhost.set_group_asid(1, 1).unwrap();
    let queues = [0, 1].map(|n| HandQueue::prepare(&vhost, n, n, iovas[n as usize]));
    for queue in &queues {
        queue.set_up(&vhost);
    }
    prepare(&vhost);
    ring::start(&vhost);
    (vhost, queues)
}

fn two_groups_in_two_spaces_do_io() {
    let disk = ServedGroups::new(2, 2);
    let (_vhost, mut queues) = two_queues(&disk, [0x7_0000_0000; 2], |_| ());
    for round in 0..40u64 {
        for (n, queue) in (0..).zip(&mut queues) {
            let sector = (round + 5 * n) % 16;
            assert_same(&queue.read(sector), &[sector as u8 + 1; 512], "a sector");
            // Each queue has its own callback.
            soon("an interrupt", || queue.call.take().unwrap() >= 1);
        }
    }
    // Each queue has its own kick, too.
    queues[0].submit_read(1);
    queues[1].submit_read(2);
    assert_same(&queues[1].finish_read().0, &[3; 512], "a sector");
    assert_same(&queues[0].finish_read().0, &[2; 512], "a sector");
}

fn neither_group_reaches_the_other_ones_memory() {
    let disk = ServedGroups::new(2, 2);
    let iovas = [0x10_0000, 0x20_0000];
    // vhost holds this process's mmap lock while it maps, and the server is in the same process. So
    // the test maps everything before the server accesses any memory.
    let foreign = page_of(0x77);
    let (_vhost, mut queues) = two_queues(&disk, iovas, |vhost| {
        vhost
            .map_in(0, 0x50_0000, &foreign, access::RW)
            .expect("mapping");
    });
    let device = disk.served.device();
    for asid in 0..2 {
        let (own, others) = (iovas[asid], iovas[1 - asid]);
        let region = device.iotlb_fd2(asid as u32, 0, u64::MAX).unwrap();
        assert_eq!((region.first, region.last), (own, own + LEN - 1));
        for at in [others, others + LEN - 1] {
            fails(device.iotlb_fd2(asid as u32, at, at), Errno::INVAL);
        }
        let stat = rustix::fs::fstat(&region.file).unwrap();
        assert_eq!(stat.st_size as u64, LEN);
    }
    for queue in &mut queues {
        assert_same(&queue.read(1), &[2; 512], "a sector");
    }
    // The buffer `foreign` is mapped in address space 0. A request on queue 1, which uses address
    // space 1, cannot write to this buffer. The request fails, and the buffer stays unchanged.
    assert_eq!(queues[1].read_to(1, 0x50_0000), None);
    let mut byte = [0];
    vm_memory::Bytes::read_slice(&foreign.bytes(), &mut byte, 0).unwrap();
    assert_eq!(byte, [0x77]);
    // On queue 0, which uses address space 0, the same request succeeds.
    assert_eq!(queues[0].read_to(1, 0x50_0000), Some(0));
    vm_memory::Bytes::read_slice(&foreign.bytes(), &mut byte, 0).unwrap();
    assert_eq!(byte, [2]);
}

fn groups_can_share_a_space_that_is_not_0() {
    let disk = ServedGroups::new(2, 3);
    disk.on_bus.bind(Driver::Vhost).unwrap();
    let vhost = vhost::open(&disk.device);
    ring::agree(&vhost);
    for group in 0..2 {
        vhost.set_group_asid(group, 2).unwrap();
    }
    let mut queues = [0, 1].map(|n| HandQueue::prepare(&vhost, n, 2, u64::from(n + 1) << 20));
    for queue in &queues {
        queue.set_up(&vhost);
    }
    ring::start(&vhost);
    for queue in &mut queues {
        assert_same(&queue.read(7), &[8; 512], "a sector");
        // Replaces the queue's memory with other memory, at the same IOVAs.
        queue.move_memory(&vhost);
        assert_same(&queue.read(8), &[9; 512], "a sector");
    }
}

/// Returns a disk with two address spaces. virtio_blk drives the disk, and has completed some
/// requests.
#[track_caller]
fn virtio(bounce: u64) -> (ServedGroups, Block) {
    unlimited_memlock();
    let disk = ServedGroups::with(2, 2, |device| {
        device.set_bounce_size(bounce);
    });
    disk.on_bus.bind(Driver::Virtio).expect("binding");
    soon("the disk appears", || {
        bus::disk_name(disk.device.name()).is_some()
    });
    let block = Block::open(&bus::disk_name(disk.device.name()).unwrap()).expect("opening");
    for number in 0..2 {
        cpu::run_on(number);
        assert_same(&block.read(0, 512).unwrap(), &[1; 512], "a sector");
    }
    (disk, block)
}

fn info(asid: u32) -> IovaInfo {
    IovaInfo {
        asid,
        ..Default::default()
    }
}

fn virtio_has_its_bounce_area_in_space_0_only() {
    let size = 4 << 20;
    let (disk, _block) = virtio(size);
    let device = disk.served.device();
    let found = device.iotlb_info(info(0)).unwrap();
    assert_eq!((found.start, found.last), (0, size / 2 - 1));
    assert_eq!((found.capability, found.asid), (IOVA_CAP_UMEM, 0));
    fails(device.iotlb_info(info(1)), Errno::INVAL);
    fails(device.iotlb_fd2(1, 0, u64::MAX), Errno::INVAL);
    // The rings of both queues are above the bounce area.
    for queue in 0..2 {
        let ring = device.vq_info(queue).unwrap().desc_addr;
        assert!(ring >= size / 2);
        let region = device.iotlb_fd2(0, ring, ring).unwrap();
        assert_eq!(region.offset, region.first);
    }
}

fn umem_is_registered_for_a_space() {
    let size = 4 << 20;
    let (disk, block) = virtio(size);
    let device = disk.served.device();
    // Address space 1 has no bounce area, so the daemon cannot register user memory for it.
    let spare = Mapping::anonymous((size / 2) as usize).unwrap();
    let umem = IovaUmem {
        uaddr: spare.address() as u64,
        size: size / 2,
        asid: 1,
        ..Default::default()
    };
    // SAFETY: The VDUSE driver refuses the registration.
    fails(unsafe { device.register_umem(&umem) }, Errno::INVAL);
    fails(device.deregister_umem(&umem), Errno::NOENT);
    for round in 0..3u8 {
        disk.served.handle().register_umem().unwrap();
        assert_eq!(memlock::pinned_kib(), (size / 2) >> 10);
        fails(Umem::register(device.clone()).map(drop), Errno::EXIST);
        // Memory registered for one address space is not registered for the other.
        fails(device.deregister_umem(&umem), Errno::NOENT);
        for number in 0..2 {
            cpu::run_on(number);
            block.write(8192, &[round; 4096]).unwrap();
            let found = block.read(8192, 4096).unwrap();
            assert_same(&found, &[round; 4096], "what was written");
        }
        disk.served.handle().deregister_umem().unwrap();
        assert_eq!(memlock::pinned_kib(), 0);
    }
}

fn a_space_too_small_for_a_page_is_refused_when_it_is_attached() {
    // The minimum of `bounce_size` is 1 MiB, which gives each of the 256 address spaces one page.
    // One page is not enough, because the first page of an address space is never used.
    let device = spaces::create(&spaces::config(1, 1, 256)).unwrap();
    let file = device.open_ready(1);
    device.set_bounce_size(1 << 20);
    fails(OnBus::add(device.name()).map(drop), Errno::INVAL);
    // A `bounce_size` of 2 MiB is enough, because it gives each address space two pages.
    device.set_bounce_size(2 << 20);
    let file = Arc::new(file);
    let responder = crate::lab::daemon::responder::Responder::ok(&file);
    let on_bus = OnBus::add(device.name()).unwrap();
    drop(on_bus);
    drop(responder);
}

fn the_bounce_area_is_divided_between_the_spaces() {
    for (total, spaces, each) in [(1 << 20, 3, 0x5_6000), (64 << 20, 4, 16 << 20)] {
        let disk = ServedGroups::with(1, spaces, |device| {
            device.set_bounce_size(total);
        });
        disk.on_bus.bind(Driver::Virtio).expect("binding");
        let found = disk.served.device().iotlb_info(info(0)).unwrap();
        assert_eq!((found.start, found.last), (0, each - 1), "{total} bytes");
    }
}
