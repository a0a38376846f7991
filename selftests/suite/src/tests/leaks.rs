// SPDX-License-Identifier: GPL-2.0

//! Leaks: tests repeat the removal of daemons, devices, drivers and clients in various orders, and
//! check that the kernel has freed everything afterwards.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};

use rustix::io::Errno;
use vduse::eventfd::EventFd;
use vduse::request::Answer;
use vduse::Control;

use crate::lab::assert::counts::{has_kmemleak, leaves_nothing};
use crate::lab::assert::errors::fails;
use crate::lab::assert::timing::soon;
use crate::lab::daemon::answered::Answered;
use crate::lab::daemon::process::{Daemon, Manner};
use crate::lab::device::bus::{self, Driver, OnBus};
use crate::lab::device::test_device::{unique_name, TestDevice};
use crate::lab::device::virtio::status::RESET;
use crate::lab::driver::block::read_until_error;
use crate::lab::driver::client::Client;
use crate::lab::driver::ring::{self, HandDriver};
use crate::lab::driver::vhost::{access, Vhost};
use crate::lab::driver::virtio_disk::{LiveDisk, Shape};
use crate::lab::kernel::memory::{page_of, PAGE};
use crate::lab::run::report::skip;
use crate::lab::run::scratch::Scratch;

tests![
    daemons_that_die_under_io_leave_nothing => 120,
    daemons_that_die_with_a_request_unanswered_leave_nothing => 120,
    deleting_devices_under_io_leaves_nothing => 120,
    refused_destroys_leave_nothing => 120,
    rebinding_between_virtio_and_vhost_leaves_nothing => 120,
    large_rings_leave_no_pages => 120,
    clients_killed_with_their_memory_mapped_leave_nothing => 120,
    switching_spaces_while_others_map_leaves_nothing => 120,
    interrupts_kicks_and_resets_leave_nothing => 120,
];

fn daemons_that_die_under_io_leave_nothing() {
    let scratch = Scratch::new();
    let path = scratch.file("disk", 4 << 20);
    leaves_nothing(|| {
        let name = unique_name();
        let daemon = Daemon::start(&name, &path, 1, Manner::Serve);
        let device = TestDevice::adopt(&name);
        let on_bus = OnBus::add(&name).unwrap();
        on_bus.bind(Driver::Virtio).unwrap();
        let readers = read_until_error(&bus::disk_name(&name).unwrap());
        readers.go_on(1);
        daemon.kill();
        let daemon = Daemon::start(&name, &path, 1, Manner::Serve);
        on_bus.delete().unwrap();
        readers.join();
        daemon.kill();
        drop(device);
    });
}

fn daemons_that_die_with_a_request_unanswered_leave_nothing() {
    leaves_nothing(|| {
        let device = TestDevice::disk();
        let file = device.open_ready(1);
        let on_bus = OnBus::add(device.name()).unwrap();
        on_bus.bind(Driver::Vhost).unwrap();
        let path = bus::vhost_path(device.name()).unwrap();
        let opening = std::thread::spawn(move || Vhost::open(&path));
        soon("a request", || file.read_request().is_ok());
        drop(file);
        let file = device.open_nonblocking();
        let request = file.read_request().unwrap();
        file.answer(&request, Answer::Failed).unwrap();
        fails(opening.join().unwrap(), Errno::IO);
        drop(on_bus);
    });
}

fn deleting_devices_under_io_leaves_nothing() {
    leaves_nothing(|| {
        let LiveDisk {
            on_bus,
            served,
            device,
            ..
        } = LiveDisk::new(Shape::default());
        let readers = read_until_error(&bus::disk_name(device.name()).unwrap());
        readers.go_on(1);
        on_bus.delete().unwrap();
        readers.join();
        drop(served);
    });
}

fn refused_destroys_leave_nothing() {
    let destroy = |device: &TestDevice| Control::open().unwrap().destroy(device.name());
    leaves_nothing(|| {
        let device = TestDevice::disk();
        let file = device.open_ready(1);
        fails(destroy(&device), Errno::BUSY);
        drop(file);
        let on_bus = OnBus::add(device.name()).unwrap();
        fails(destroy(&device), Errno::BUSY);
        let file = device.open();
        on_bus.delete().unwrap();
        fails(destroy(&device), Errno::BUSY);
        drop(file);
        device.destroy().unwrap();
    });
}

fn rebinding_between_virtio_and_vhost_leaves_nothing() {
    leaves_nothing(|| {
        let disk = LiveDisk::new(Shape::default());
        disk.block().read(0, 4096).unwrap();
        disk.on_bus.unbind(Driver::Virtio).unwrap();
        disk.on_bus.bind(Driver::Vhost).unwrap();
        let vhost = Vhost::open(&bus::vhost_path(disk.name()).unwrap()).unwrap();
        vhost.set_owner().unwrap();
        vhost.set_backend_features().unwrap();
        vhost.map(0x10_0000, &page_of(1), access::RW).unwrap();
        drop(vhost);
        disk.on_bus.unbind(Driver::Vhost).unwrap();
        disk.on_bus.bind(Driver::Virtio).unwrap();
        disk.block().read(0, 4096).unwrap();
    });
}

/// Checks that large rings leak no pages. The kernel counts objects by size, but pages only in
/// total. Each round uses rings of 850 KiB, so that a leak is visible in the total.
fn large_rings_leave_no_pages() {
    if has_kmemleak() {
        skip("the memory that there is says nothing here");
    }
    leaves_nothing(|| {
        let disk = LiveDisk::new(Shape {
            queue_size: 32768,
            ..Shape::default()
        });
        disk.block().read(0, 4096).unwrap();
    });
}

fn clients_killed_with_their_memory_mapped_leave_nothing() {
    leaves_nothing(|| {
        let answered = Answered::new(&[0, 1], 2, 3);
        Client::start(answered.device.name(), &answered.file, 3).kill();
        drop(answered);
    });
}

fn switching_spaces_while_others_map_leaves_nothing() {
    leaves_nothing(|| {
        let answered = Answered::new(&[0, 1], 2, 2);
        let vhost = answered.vhost();
        let page = page_of(1);
        let together = Barrier::new(3);
        std::thread::scope(|scope| {
            for asid in 0..2 {
                let (vhost, page, together) = (&vhost, &page, &together);
                scope.spawn(move || {
                    together.wait();
                    for _ in 0..5 {
                        vhost.map_in(asid, 0x10_0000, page, access::RW).unwrap();
                        vhost.unmap_in(asid, 0x10_0000, PAGE).unwrap();
                    }
                });
            }
            together.wait();
            for n in 0..10 {
                vhost.set_group_asid(n / 2 % 2, n % 2).unwrap();
            }
        });
        drop(vhost);
    });
}

fn interrupts_kicks_and_resets_leave_nothing() {
    leaves_nothing(|| {
        let answered = Answered::version_0(1);
        let path = bus::vhost_path(answered.device.name()).unwrap();
        let driver = HandDriver::prepare(Vhost::open(&path).unwrap(), 0x10_0000);
        let stop = AtomicBool::new(false);
        let file: &Arc<_> = &answered.file;
        let together = Barrier::new(3);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                together.wait();
                while !stop.load(Ordering::Relaxed) {
                    // The driver refuses both calls during a reset.
                    let _ = file.inject_vq_irq(0);
                    let _ = file.inject_config_irq();
                }
            });
            scope.spawn(|| {
                use std::os::fd::AsFd;
                together.wait();
                while !stop.load(Ordering::Relaxed) {
                    let event = EventFd::new().unwrap();
                    file.set_kick(0, event.as_fd()).unwrap();
                    driver.kick.signal().unwrap();
                }
            });
            together.wait();
            for _ in 0..4 {
                driver.set_queue_up();
                driver.start();
                driver.vhost.set_status(RESET).unwrap();
                ring::agree(&driver.vhost);
            }
            stop.store(true, Ordering::Relaxed);
        });
        drop(driver);
    });
}
