// SPDX-License-Identifier: GPL-2.0

//! The driver's memory. A daemon finds the memory with ioctls and maps it. The daemon may keep the
//! mappings and the descriptors.

use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::io::Errno;
use rustix::io::FdFlags;
use vduse::device::Region;
use vduse::{Device, Mapping};
use vduse_uapi::{ioctl, IovaInfo, ACCESS_RO, ACCESS_RW, ACCESS_WO, IOVA_CAP_UMEM};

use crate::lab::assert::errors::{fails, fails_at};
use crate::lab::daemon::responder::Responder;
use crate::lab::device::bus::{self, Driver, OnBus};
use crate::lab::device::test_device::TestDevice;
use crate::lab::driver::vhost::{access, Vhost};
use crate::lab::driver::virtio_disk::{LiveDisk, Shape};
use crate::lab::kernel::huge_page::HugePage;
use crate::lab::kernel::memory::{self, PAGE};
use crate::lab::kernel::probe::{self, Prober};
use crate::lab::kernel::raw::{self, Edge};

tests![
    get_fd_finds_what_vhost_mapped,
    get_fd_gives_the_first_of_several,
    get_fd_with_start_behind_last_is_einval,
    get_fd_where_nothing_is_mapped_is_einval,
    get_fd_of_what_was_unmapped_is_einval,
    get_fd_that_cannot_answer_is_efault_and_makes_no_descriptor,
    get_fd_is_close_on_exec,
    get_fd_tells_the_permission,
    get_fd_from_several_threads,
    a_map_without_a_valid_permission_does_no_harm,
    a_map_of_the_whole_address_space_does_no_harm,
    get_info_finds_regions,
    get_info_reserved_fields_must_be_0,
    get_info_asid_must_be_0_in_version_0,
    each_of_a_hundred_maps_is_found,
    the_bounce_area_is_one_region_that_can_be_backed,
    the_domain_can_be_mapped_from_0_and_at_its_offset,
    the_domain_cannot_be_read_or_written,
    what_nobody_uses_raises_sigbus,
    bounce_pages_have_nothing_of_the_kernel_in_them,
    one_fault_maps_the_bounce_pages_behind_it,
    a_mapping_outlives_the_device,
    a_descriptor_outlives_the_device,
    a_descriptor_kept_over_a_rebind_shows_no_other_memory,
    what_a_vhost_client_left_does_not_disturb_virtio,
    a_ring_that_was_touched_and_freed_can_be_written_to,
    a_client_that_maps_the_domains_own_file_leaks_nothing,
];

/// A device with a vhost-vdpa client. The fields are dropped in declaration order.
struct Client {
    vhost: Vhost,
    _on_bus: OnBus,
    _responder: Responder,
    file: Arc<Device>,
    _device: TestDevice,
}

impl Client {
    #[track_caller]
    fn new() -> Self {
        let device = TestDevice::disk();
        let file = Arc::new(device.open_ready(1));
        let responder = Responder::ok(&file);
        let on_bus = OnBus::add(device.name()).expect("adding");
        on_bus.bind(Driver::Vhost).expect("binding");
        let vhost = Vhost::open(&bus::vhost_path(device.name()).expect("a node")).expect("opening");
        vhost.set_owner().expect("owning");
        vhost.set_backend_features().expect("backend features");
        Self {
            vhost,
            _on_bus: on_bus,
            _responder: responder,
            file,
            _device: device,
        }
    }

    /// Maps pages of a new file at an IOVA. Returns this process's mapping of the file.
    #[track_caller]
    fn map(&self, iova: u64, pages: u64, access: u8) -> Mapping {
        let file = memory::file(pages * PAGE);
        let mapping = Mapping::of_file(file.as_fd(), 0, pages * PAGE, ACCESS_RW).expect("mapping");
        self.vhost.map(iova, &mapping, access).expect("mapping");
        mapping
    }
}

fn get_fd_finds_what_vhost_mapped() {
    let client = Client::new();
    let theirs = client.map(0x10_0000, 4, access::RW);
    let prober = Prober::new();
    prober.write(theirs.address(), 0x5a).unwrap();
    for (first, last) in [
        (0x10_0000, 0x10_0000),
        (0, u64::MAX),
        (0x10_3fff, 0x10_3fff),
        (0xf_ffff, 0x10_0000),
    ] {
        let region = client.file.iotlb_fd(first, last).unwrap();
        assert_eq!((region.first, region.last), (0x10_0000, 0x10_3fff));
        assert_eq!((region.offset, region.access), (0, ACCESS_RW));
        let ours = map(&region);
        assert_eq!(prober.read(ours.address(), 1).unwrap(), [0x5a]);
    }
}

#[track_caller]
fn map(region: &Region) -> Mapping {
    let size = region.last - region.first + 1;
    Mapping::of_file(region.file.as_fd(), region.offset, size, region.access).expect("mapping")
}

fn get_fd_gives_the_first_of_several() {
    let client = Client::new();
    let _kept = [0x30_0000, 0x10_0000, 0x20_0000].map(|iova| client.map(iova, 1, access::RW));
    for (first, last, found) in [
        (0, u64::MAX, 0x10_0000),
        (0x10_1000, u64::MAX, 0x20_0000),
        (0x20_0fff, 0x30_0000, 0x20_0000),
        (0x20_1000, 0x30_0000, 0x30_0000),
    ] {
        assert_eq!(client.file.iotlb_fd(first, last).unwrap().first, found);
    }
    fails(client.file.iotlb_fd(0x10_1000, 0x1f_ffff), Errno::INVAL);
}

fn get_fd_with_start_behind_last_is_einval() {
    let client = Client::new();
    let _kept = client.map(0x10_0000, 4, access::RW);
    for (first, last) in [(1, 0), (u64::MAX, 0), (0x10_1000, 0x10_0000)] {
        fails_at(client.file.iotlb_fd(first, last), Errno::INVAL, first);
        let info = IovaInfo {
            start: first,
            last,
            ..Default::default()
        };
        fails_at(client.file.iotlb_info(info), Errno::INVAL, first);
    }
}

fn get_fd_where_nothing_is_mapped_is_einval() {
    let client = Client::new();
    fails(client.file.iotlb_fd(0, u64::MAX), Errno::INVAL);
    let _kept = client.map(0x10_0000, 1, access::RW);
    for (first, last) in [(0, 0xf_ffff), (0x10_1000, u64::MAX), (u64::MAX, u64::MAX)] {
        fails_at(client.file.iotlb_fd(first, last), Errno::INVAL, first);
    }
}

fn get_fd_of_what_was_unmapped_is_einval() {
    let client = Client::new();
    let _kept = client.map(0x10_0000, 2, access::RW);
    let _other = client.map(0x20_0000, 2, access::RW);
    client.vhost.unmap(0x10_0000, 2 * PAGE).unwrap();
    fails(client.file.iotlb_fd(0x10_0000, 0x10_1fff), Errno::INVAL);
    client.file.iotlb_fd(0x20_0000, 0x20_0000).unwrap();
}

/// Returns how many descriptors this process has open.
fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

fn get_fd_that_cannot_answer_is_efault_and_makes_no_descriptor() {
    let client = Client::new();
    let _kept = client.map(0x10_0000, 1, access::RW);
    let before = descriptors();
    // The kernel can read the ioctl's argument, but cannot write its answer there.
    let file = memory::file(PAGE);
    let request = raw::Bytes::new()
        .u64(0)
        .u64(0x10_0000)
        .u64(0x10_0000)
        .u64(0);
    rustix::io::pwrite(&file, &request.0, 0).unwrap();
    let readable = Mapping::of_file(file.as_fd(), 0, PAGE, ACCESS_RO).unwrap();
    let result = raw::call_read_only(&client.file, ioctl::IOTLB_GET_FD, &readable);
    fails(result, Errno::FAULT);
    let result = Edge::new().call(&client.file, ioctl::IOTLB_GET_FD, &request.0[..24]);
    fails(result, Errno::FAULT);
    assert_eq!(descriptors(), before + 1);
}

fn get_fd_is_close_on_exec() {
    let client = Client::new();
    let _kept = client.map(0x10_0000, 1, access::RW);
    let region = client.file.iotlb_fd(0, u64::MAX).unwrap();
    let flags = rustix::io::fcntl_getfd(&region.file).unwrap();
    assert!(flags.contains(FdFlags::CLOEXEC));
}

fn get_fd_tells_the_permission() {
    let client = Client::new();
    let mut kept = Vec::new();
    for access in [ACCESS_RO, ACCESS_WO, ACCESS_RW] {
        let iova = u64::from(access) << 20;
        kept.push(client.map(iova, 1, access));
        assert_eq!(client.file.iotlb_fd(iova, iova).unwrap().access, access);
    }
}

fn get_fd_from_several_threads() {
    let client = Client::new();
    let _kept = client.map(0x10_0000, 1, access::RW);
    let before = descriptors();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..100 {
                    let region = client.file.iotlb_fd(0, u64::MAX).unwrap();
                    assert_eq!(region.first, 0x10_0000);
                }
            });
        }
    });
    assert_eq!(descriptors(), before);
}

fn a_map_without_a_valid_permission_does_no_harm() {
    let client = Client::new();
    for access in [0, 4, 5, 0xff] {
        let file = memory::file(PAGE);
        let mapping = Mapping::of_file(file.as_fd(), 0, PAGE, ACCESS_RW).unwrap();
        if client.vhost.map(0x10_0000, &mapping, access).is_ok() {
            // The result of IOTLB_GET_FD does not matter, as long as the kernel logs no warning.
            if let Ok(region) = client.file.iotlb_fd(0x10_0000, 0x10_0000) {
                assert!((ACCESS_RO..=ACCESS_RW).contains(&region.access));
            }
            client.vhost.unmap(0x10_0000, PAGE).unwrap();
        }
    }
    // The device still works.
    let _kept = client.map(0x20_0000, 1, access::RW);
    client.file.iotlb_fd(0x20_0000, 0x20_0000).unwrap();
}

fn a_map_of_the_whole_address_space_does_no_harm() {
    let client = Client::new();
    // The client maps the highest page, and then unmaps the whole address space at once.
    let _kept = client.map(u64::MAX - PAGE + 1, 1, access::RW);
    let region = client.file.iotlb_fd(u64::MAX, u64::MAX).unwrap();
    assert_eq!((region.first, region.last), (u64::MAX - PAGE + 1, u64::MAX));
    client.vhost.unmap(0, u64::MAX).unwrap();
}

fn get_info_finds_regions() {
    let client = Client::new();
    let _kept = client.map(0x10_0000, 4, access::RW);
    let info = client
        .file
        .iotlb_info(IovaInfo {
            start: 0,
            last: u64::MAX,
            ..Default::default()
        })
        .unwrap();
    assert_eq!((info.start, info.last), (0x10_0000, 0x10_3fff));
    // The region cannot be backed by user memory, because the client's own memory backs it already.
    assert_eq!(info.capability, 0);
    fails(client.file.iotlb_info(IovaInfo::default()), Errno::INVAL);
}

fn get_info_reserved_fields_must_be_0() {
    let client = Client::new();
    let _kept = client.map(0, 1, access::RW);
    for index in 0..5 {
        let mut info = IovaInfo::default();
        info.reserved[index] = 1;
        fails_at(client.file.iotlb_info(info), Errno::INVAL, index);
    }
}

fn get_info_asid_must_be_0_in_version_0() {
    let client = Client::new();
    let _kept = client.map(0, 1, access::RW);
    for asid in [1, u32::MAX] {
        let info = IovaInfo {
            asid,
            ..Default::default()
        };
        fails_at(client.file.iotlb_info(info), Errno::INVAL, asid);
    }
}

fn each_of_a_hundred_maps_is_found() {
    let client = Client::new();
    let file = memory::file(PAGE);
    let mapping = Mapping::of_file(file.as_fd(), 0, PAGE, ACCESS_RW).unwrap();
    let iova = |n: u64| n * 2 * PAGE;
    for n in 0..100 {
        client.vhost.map(iova(n), &mapping, access::RW).unwrap();
    }
    for n in 0..100 {
        assert_eq!(
            client.file.iotlb_fd(iova(n), iova(n)).unwrap().first,
            iova(n)
        );
        fails_at(
            client.file.iotlb_fd(iova(n) + PAGE, iova(n) + PAGE),
            Errno::INVAL,
            n,
        );
    }
    client.vhost.unmap(0, u64::MAX).unwrap();
    fails(client.file.iotlb_fd(0, u64::MAX), Errno::INVAL);
}

fn the_bounce_area_is_one_region_that_can_be_backed() {
    let disk = LiveDisk::new(Shape {
        bounce: 2 << 20,
        ..Default::default()
    });
    let region = disk.vduse().iotlb_fd(0, 0).unwrap();
    assert_eq!((region.first, region.last), (0, (2 << 20) - 1));
    assert_eq!((region.offset, region.access), (0, ACCESS_RW));
    let info = disk.vduse().iotlb_info(IovaInfo::default()).unwrap();
    assert_eq!((info.start, info.last), (0, (2 << 20) - 1));
    assert_eq!(info.capability, IOVA_CAP_UMEM);
    let stat = rustix::fs::fstat(&region.file).unwrap();
    assert_eq!(stat.st_blksize, PAGE as i64);
    // The rings are outside the bounce area, and cannot be backed by user memory.
    let ring = ring_iova(&disk);
    let info = IovaInfo {
        start: ring,
        last: ring,
        ..Default::default()
    };
    assert_eq!(disk.vduse().iotlb_info(info).unwrap().capability, 0);
}

fn ring_iova(disk: &LiveDisk) -> u64 {
    disk.vduse().vq_info(0).unwrap().desc_addr
}

fn the_domain_can_be_mapped_from_0_and_at_its_offset() {
    let disk = LiveDisk::new(Shape::default());
    let iova = ring_iova(&disk);
    let region = disk.vduse().iotlb_fd(iova, iova).unwrap();
    assert_eq!(region.first, iova);
    let at_offset = map(&region);
    let size = region.last - region.first + 1;
    let from_0 = Mapping::of_file(region.file.as_fd(), 0, region.offset + size, ACCESS_RW).unwrap();
    let prober = Prober::new();
    let page = PAGE as usize;
    let one = prober.read(at_offset.address(), page).unwrap();
    let other = from_0.address().wrapping_add(region.offset as usize);
    assert_eq!(one, prober.read(other, page).unwrap());
    // virtio_blk has written descriptors to the ring.
    assert!(one.iter().any(|&byte| byte != 0));
}

fn the_domain_cannot_be_read_or_written() {
    let disk = LiveDisk::new(Shape::default());
    let region = disk.vduse().iotlb_fd(0, 0).unwrap();
    let result = rustix::io::read(&region.file, &mut [0; 8]);
    fails(result.map_err(Into::into), Errno::INVAL);
    let result = rustix::io::write(&region.file, &[0; 8]);
    fails(result.map_err(Into::into), Errno::INVAL);
}

fn what_nobody_uses_raises_sigbus() {
    let disk = LiveDisk::new(Shape::default());
    let iova = ring_iova(&disk);
    let region = disk.vduse().iotlb_fd(iova, iova).unwrap();
    let prober = Prober::new();
    // The driver does not use the domain's file at these offsets, which are beyond all rings.
    for offset in [region.offset + (64 << 20), 1 << 40] {
        let nothing = Mapping::of_file(region.file.as_fd(), offset, PAGE, ACCESS_RW).unwrap();
        fails_at(
            prober.read(nothing.address(), 1),
            Errno::FAULT,
            format_args!("{offset:#x}"),
        );
        fails(prober.write(nothing.address(), 1), Errno::FAULT);
    }
}

fn bounce_pages_have_nothing_of_the_kernel_in_them() {
    // Fills free memory with a mark. The test would find the mark in bounce pages that are not
    // zeroed.
    const MARK: u8 = 0xa5;
    drop(std::hint::black_box(vec![MARK; 64 << 20]));
    let disk = LiveDisk::new(Shape {
        bounce: 2 << 20,
        ..Default::default()
    });
    let block = disk.block();
    // Each request is shorter than a page. Together, the requests use several bounce pages.
    for sector in 0..64 {
        block.read(sector * 512, 512).unwrap();
        block.write(sector * 512, &[0; 512]).unwrap();
    }
    let region = disk.vduse().iotlb_fd(0, 0).unwrap();
    let area = map(&region);
    let prober = Prober::new();
    let mut pages = 0;
    for offset in (0..area.len()).step_by(PAGE as usize) {
        let address = area.address().wrapping_add(offset);
        let Ok(page) = prober.read(address, PAGE as usize) else {
            continue;
        };
        pages += 1;
        // `MARK` would come from memory that was not zeroed. The disk is all zeroes, so any other
        // byte that is not 0 comes from a request header.
        assert!(
            !page.contains(&MARK),
            "what was there before, at {offset:#x}"
        );
        let other = page.iter().filter(|&&byte| byte != 0).count();
        assert!(other < 512, "{other} bytes at {offset:#x}");
    }
    assert!(pages > 0);
}

fn one_fault_maps_the_bounce_pages_behind_it() {
    /// The number of pages that a fault maps, including the touched page.
    const AROUND: usize = 16;
    let disk = LiveDisk::new(Shape::default());
    // The bounce pages of one request are consecutive if they fit into a block of 32 slots, together
    // with that of the request's header.
    let count = 24;
    let mut memory = HugePage::new();
    let pages = memory.bytes().chunks_mut(PAGE as usize).take(count);
    pages.zip(1..).for_each(|(page, number)| page.fill(number));
    let written = &memory.bytes()[..count * PAGE as usize];
    assert_eq!(
        rustix::io::pwrite(disk.block(), written, 0),
        Ok(written.len())
    );
    let region = disk.vduse().iotlb_fd(0, 0).unwrap();
    let prober = Prober::new();
    let page = |area: &Mapping, number: usize| area.address().wrapping_add(number * PAGE as usize);
    let all = map(&region);
    let region_pages = all.len() / PAGE as usize;
    let used: Vec<usize> = (0..region_pages)
        .filter(|&number| prober.read(page(&all, number), 1).is_ok())
        .collect();
    // The pages must be consecutive. The first of them must hold the first page of `written`.
    let is_run = |run: &&[usize]| {
        run[count - 1] - run[0] == count - 1
            && prober
                .read(page(&all, run[0]), PAGE as usize)
                .is_ok_and(|bytes| bytes == written[..PAGE as usize])
    };
    let run = used
        .windows(count)
        .find(is_run)
        .expect("the pages of a write");
    let first = run[0];
    let is_edge = |number: &&usize| !used.contains(&(**number + 1)) && **number < region_pages - 1;
    let edge = *used
        .iter()
        .find(is_edge)
        .expect("a page whose follower is not there");

    let area = map(&region);
    let present = |from: usize, count: usize| {
        let is_present = |number| probe::is_present(page(&area, number));
        (from..from + count).map(is_present).collect::<Vec<_>>()
    };
    assert_eq!(present(first, count), vec![false; count]);
    // A fault on the page `first` maps `AROUND` pages.
    prober.read(page(&area, first), 1).unwrap();
    assert_eq!(present(first, AROUND), [true; AROUND]);
    assert_eq!(
        present(first + AROUND, count - AROUND),
        vec![false; count - AROUND]
    );
    // If the page after the touched page does not exist, a fault maps the touched page only.
    prober.read(page(&area, edge), 1).unwrap();
    assert_eq!(present(edge, 2), [true, false]);
    fails(prober.read(page(&area, edge + 1), 1), Errno::FAULT);
    // A fault also maps the following pages, up to a page that is already mapped.
    prober.read(page(&area, first + AROUND + 4), 1).unwrap();
    prober.read(page(&area, first + AROUND), 1).unwrap();
    assert_eq!(present(first + AROUND, 5), [true; 5]);
    // The mapped pages contain the written data.
    for (&number, page_written) in run.iter().zip(written.chunks(PAGE as usize)) {
        let seen = prober.read(page(&area, number), PAGE as usize).unwrap();
        assert!(seen == page_written, "{number}");
    }
    // A fault on a ring page maps that page only.
    let ring = disk
        .vduse()
        .iotlb_fd(ring_iova(&disk), ring_iova(&disk))
        .unwrap();
    let size = ring.offset + ring.last - ring.first + 1;
    let to_rings = Mapping::of_file(region.file.as_fd(), 0, size, ACCESS_RW).unwrap();
    let pages = [0, 1].map(|number| ring.offset as usize / PAGE as usize + number);
    for touched in 0..2 {
        let is_present = |number| probe::is_present(page(&to_rings, number));
        assert_eq!(pages.map(is_present), [touched > 0, false]);
        prober.read(page(&to_rings, pages[touched]), 1).unwrap();
    }
    // A fault maps no pages beyond the end of the mapping, although more bounce pages exist.
    let offset = region.offset + first as u64 * PAGE;
    let three = Mapping::of_file(region.file.as_fd(), offset, 3 * PAGE, ACCESS_RO).unwrap();
    prober.read(page(&three, 1), 1).unwrap();
    let is_present = |number| probe::is_present(page(&three, number));
    assert_eq!([0, 1, 2].map(is_present), [false, true, true]);
}

fn a_mapping_outlives_the_device() {
    let disk = LiveDisk::new(Shape::default());
    let bounce = map(&disk.vduse().iotlb_fd(0, 0).unwrap());
    let iova = ring_iova(&disk);
    let ring = map(&disk.vduse().iotlb_fd(iova, iova).unwrap());
    let prober = Prober::new();
    prober.read(ring.address(), 1).unwrap();
    drop(disk);
    // These accesses may succeed or fail, but the kernel must not crash.
    for address in [bounce.address(), ring.address()] {
        for offset in [0, PAGE as usize] {
            let _ = prober.read(address.wrapping_add(offset), PAGE as usize);
            let _ = prober.write(address.wrapping_add(offset), 1);
        }
    }
    // IOVAs are allocated from the top, so the middle of the area is unused and has no pages.
    let unused = bounce.address().wrapping_add(bounce.len() / 2);
    fails(prober.read(unused, 1), Errno::FAULT);
}

fn a_descriptor_outlives_the_device() {
    let disk = LiveDisk::new(Shape::default());
    let iova = ring_iova(&disk);
    let region = disk.vduse().iotlb_fd(iova, iova).unwrap();
    drop(disk);
    let ring = map(&region);
    fails(Prober::new().read(ring.address(), 1), Errno::FAULT);
}

fn a_descriptor_kept_over_a_rebind_shows_no_other_memory() {
    let LiveDisk {
        on_bus,
        served,
        device,
        file: _file,
        ..
    } = LiveDisk::new(Shape::default());
    let iova = served.device().vq_info(0).unwrap().desc_addr;
    let region = served.device().iotlb_fd(iova, iova).unwrap();
    on_bus.unbind(Driver::Virtio).unwrap();
    on_bus.bind(Driver::Vhost).unwrap();
    let vhost = Vhost::open(&bus::vhost_path(device.name()).unwrap()).unwrap();
    vhost.set_owner().unwrap();
    vhost.set_backend_features().unwrap();
    let theirs = memory::file(PAGE);
    let theirs = Mapping::of_file(theirs.as_fd(), 0, PAGE, ACCESS_RW).unwrap();
    vhost.map(iova, &theirs, access::RW).unwrap();
    // The descriptor still refers to the virtio driver's ring, but the ring no longer exists, so
    // the access fails.
    let ring = map(&region);
    fails(Prober::new().read(ring.address(), 1), Errno::FAULT);
    drop(vhost);
    drop(on_bus);
    drop(served);
    drop(device);
}

fn what_a_vhost_client_left_does_not_disturb_virtio() {
    let device = TestDevice::new(&vduse::blk::device_config(
        &crate::lab::device::test_device::unique_name(),
        1 << 20,
        1,
    ));
    let file = crate::lab::daemon::disk::memory_file(1 << 20);
    let served =
        crate::lab::daemon::disk::Served::start(device.open_nonblocking(), 1, file.clone())
            .unwrap();
    let on_bus = OnBus::add(device.name()).unwrap();
    on_bus.bind(Driver::Vhost).unwrap();
    let vhost = Vhost::open(&bus::vhost_path(device.name()).unwrap()).unwrap();
    vhost.set_owner().unwrap();
    vhost.set_backend_features().unwrap();
    let theirs = memory::file(64 * PAGE);
    let theirs = Mapping::of_file(theirs.as_fd(), 0, 64 * PAGE, ACCESS_RW).unwrap();
    vhost.map(0, &theirs, access::RW).unwrap();
    drop(vhost);
    on_bus.unbind(Driver::Vhost).unwrap();
    on_bus.bind(Driver::Virtio).unwrap();
    let disk = bus::disk_name(device.name()).unwrap();
    let block = crate::lab::driver::block::Block::open(&disk).unwrap();
    block.write(4096, &[7; 4096]).unwrap();
    assert_eq!(block.read(4096, 4096).unwrap()[..], [7; 4096]);
    drop(block);
    drop(on_bus);
    drop(served);
}

fn a_ring_that_was_touched_and_freed_can_be_written_to() {
    let disk = LiveDisk::new(Shape::default());
    disk.block().write(0, &[1; 4096]).unwrap();
    let iova = ring_iova(&disk);
    let ring = map(&disk.vduse().iotlb_fd(iova, iova).unwrap());
    let prober = Prober::new();
    let byte = prober.read(ring.address(), 1).unwrap()[0];
    prober.write(ring.address(), byte).unwrap();
    disk.on_bus.unbind(Driver::Virtio).unwrap();
    // If the ring's pages had been freed, the kernel would use some of them for `others`.
    const MARK: u8 = 0xa5;
    let others = std::hint::black_box(vec![MARK; 64 << 20]);
    let scribble = || {
        for offset in 0..PAGE as usize {
            // The write may succeed or fail.
            let _ = prober.write(ring.address().wrapping_add(offset), 0xff);
        }
    };
    scribble();
    assert!(others.iter().all(|&byte| byte == MARK));
    disk.on_bus.bind(Driver::Virtio).unwrap();
    scribble();
    let block = disk.block();
    for sector in 0..16 {
        block.write(sector * 4096, &[sector as u8; 4096]).unwrap();
        assert_eq!(
            block.read(sector * 4096, 4096).unwrap()[..],
            [sector as u8; 4096]
        );
    }
}

fn a_client_that_maps_the_domains_own_file_leaks_nothing() {
    let disk = LiveDisk::new(Shape::default());
    let area = map(&disk.vduse().iotlb_fd(0, 0).unwrap());
    let iova = ring_iova(&disk);
    let ring = map(&disk.vduse().iotlb_fd(iova, iova).unwrap());
    disk.on_bus.unbind(Driver::Virtio).unwrap();
    disk.on_bus.bind(Driver::Vhost).unwrap();
    for _ in 0..3 {
        let vhost = Vhost::open(&bus::vhost_path(disk.name()).unwrap()).unwrap();
        vhost.set_owner().unwrap();
        vhost.set_backend_features().unwrap();
        // The client maps the domain's own file into the domain.
        let mapped =
            [&area, &ring].map(|memory| vhost.map(memory.address() as u64, memory, access::RW));
        crate::lab::run::report::note(format_args!("mapped: {mapped:?}"));
        let _ = disk.vduse().iotlb_fd(0, u64::MAX);
    }
}
