// SPDX-License-Identifier: GPL-2.0

//! Devices, drivers and daemons that are removed in every order while a device is in use.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::time::Duration;

use rustix::io::Errno;
use vduse::request::{Answer, Kind};
use vduse::{Control, Device};
use vduse_uapi::ACCESS_RW;

use crate::lab::assert::errors::fails;
use crate::lab::assert::limit::in_time;
use crate::lab::assert::timing::soon;
use crate::lab::assert::waiting::Waiting;
use crate::lab::daemon::answered::agree;
use crate::lab::daemon::disk::{memory_file, Served};
use crate::lab::daemon::process::{Daemon, Manner};
use crate::lab::daemon::responder::Responder;
use crate::lab::device::bus::{self, Driver, OnBus};
use crate::lab::device::test_device::{disk_config, unique_name, TestDevice};
use crate::lab::device::virtio::status::{DRIVER_OK, RESET};
use crate::lab::driver::block::read_until_error;
use crate::lab::driver::vhost::Vhost;
use crate::lab::driver::virtio_disk::{LiveDisk, Shape};
use crate::lab::kernel::memory::PAGE;
use crate::lab::kernel::modules;
use crate::lab::run::scratch::Scratch;

tests![
    deleting_a_device_under_io_ends_the_io,
    deleting_a_device_without_daemon_under_io_waits_for_the_next_one,
    a_disk_that_was_refused_to_be_ready_can_be_taken_away,
    unbinding_under_io_ends_the_io,
    destroying_while_others_open_does_no_harm,
    creating_and_adding_at_once_does_no_harm,
    calls_during_bind_and_unbind_do_no_harm => 40,
    the_module_stays_while_a_device_exists,
    the_module_stays_while_the_control_device_is_open,
    the_module_stays_while_a_mapping_exists,
    a_daemon_that_closes_first_is_let_go,
    deleting_a_device_beside_an_open_that_is_refused_ends,
];

fn deleting_a_device_under_io_ends_the_io() {
    let LiveDisk {
        on_bus,
        served,
        device,
        ..
    } = LiveDisk::new(Shape::default());
    let disk = bus::disk_name(device.name()).unwrap();
    let readers = read_until_error(&disk);
    readers.go_on(10);
    on_bus.delete().unwrap();
    readers.join();
    drop(served);
    device.destroy().unwrap();
}

fn deleting_a_device_without_daemon_under_io_waits_for_the_next_one() {
    let scratch = Scratch::new();
    let path = scratch.file("disk", 4 << 20);
    let name = unique_name();
    let daemon = Daemon::start(&name, &path, 1, Manner::Serve);
    let device = TestDevice::adopt(&name);
    let on_bus = OnBus::add(&name).unwrap();
    on_bus.bind(Driver::Virtio).unwrap();
    let disk = bus::disk_name(&name).unwrap();
    let readers = read_until_error(&disk);
    readers.go_on(10);
    daemon.kill();
    let deleting = Waiting::new(move || on_bus.delete());
    deleting.assert_waits();
    let daemon = Daemon::start(&name, &path, 1, Manner::Serve);
    deleting.result().unwrap();
    readers.join();
    daemon.kill();
    drop(device);
}

fn a_disk_that_was_refused_to_be_ready_can_be_taken_away() {
    let device = TestDevice::disk();
    let file = Arc::new(device.open_ready(1));
    let responder = Responder::new(&file, |request| {
        if matches!(request.kind, Kind::SetStatus(status) if status & DRIVER_OK != 0) {
            return Some(Answer::Failed);
        }
        agree(request)
    });
    let on_bus = OnBus::add(device.name()).unwrap();
    std::thread::scope(|scope| {
        // The daemon refuses `DRIVER_OK`. virtio_blk does not notice the refusal, so it reads the
        // disk's first sectors.
        let binding = scope.spawn(|| on_bus.bind(Driver::Virtio));
        soon("the driver reads", || {
            responder
                .seen()
                .iter()
                .any(|request| matches!(request.kind, Kind::SetStatus(status) if status & DRIVER_OK != 0))
        });
        drop(responder);
        drop(file);
        let device = device.open_nonblocking();
        let served = Served::start(device, 1, memory_file(1 << 20)).unwrap();
        binding.join().unwrap().unwrap();
        on_bus.unbind(Driver::Virtio).unwrap();
        served.stop();
    });
}

fn unbinding_under_io_ends_the_io() {
    let disk = LiveDisk::new(Shape::default());
    for _ in 0..3 {
        let readers = read_until_error(&disk.disk());
        readers.go_on(10);
        disk.on_bus.unbind(Driver::Virtio).unwrap();
        readers.join();
        disk.on_bus.bind(Driver::Virtio).unwrap();
    }
}

/// Runs each function repeatedly in its own thread. All threads run for `time`, which begins when
/// all have started.
fn meanwhile(functions: &[&(dyn Fn() + Sync)], time: Duration) {
    let stop = AtomicBool::new(false);
    let together = Barrier::new(functions.len() + 1);
    std::thread::scope(|scope| {
        for function in functions {
            scope.spawn(|| {
                together.wait();
                while !stop.load(Ordering::Relaxed) {
                    function();
                }
            });
        }
        together.wait();
        std::thread::sleep(time);
        stop.store(true, Ordering::Relaxed);
    });
}

fn destroying_while_others_open_does_no_harm() {
    let config = disk_config();
    let open = || {
        if let Ok(device) = Device::open_nonblocking(&config.name) {
            device.vq_setup(0, 64).unwrap();
            device.vq_info(0).unwrap();
        }
    };
    let create = || {
        let control = Control::open().unwrap();
        let _ = control.create(&config);
        let _ = control.destroy(&config.name);
    };
    meanwhile(&[&open, &open, &create, &create], Duration::from_secs(1));
    let _ = Control::open().unwrap().create(&config);
    TestDevice::adopt(&config.name).destroy().unwrap();
}

fn creating_and_adding_at_once_does_no_harm() {
    let config = disk_config();
    let create = || {
        let control = Control::open().unwrap();
        if control.create(&config).is_ok() {
            if let Ok(device) = Device::open(&config.name) {
                device.vq_setup(0, 64).unwrap();
            }
        }
        let _ = control.destroy(&config.name);
    };
    let add = || {
        let vdpa = bus::vdpa();
        let _ = vdpa.add(&config.name, "vduse");
        let _ = vdpa.config(&config.name);
        let _ = vdpa.delete(&config.name);
    };
    meanwhile(&[&create, &add, &add], Duration::from_secs(1));
    let _ = bus::vdpa().delete(&config.name);
    let _ = Control::open().unwrap().create(&config);
    let device = TestDevice::adopt(&config.name);
    drop(device.open_ready(1));
    for _ in 0..2 {
        OnBus::add(device.name()).unwrap().delete().unwrap();
    }
    device.destroy().unwrap();
}

fn calls_during_bind_and_unbind_do_no_harm() {
    let disk = LiveDisk::new(Shape::default());
    let device: &Arc<Device> = disk.vduse();
    let mapper = || {
        if let Ok(region) = device.iotlb_fd(0, u64::MAX) {
            let size = (region.last - region.first + 1).min(16 * PAGE);
            use std::os::fd::AsFd;
            let mapping =
                vduse::Mapping::of_file(region.file.as_fd(), region.offset, size, ACCESS_RW);
            let mapping = mapping.expect("mapping a region");
            let _ = crate::lab::kernel::probe::Prober::new().read(mapping.address(), 64);
        }
    };
    let caller = || {
        let _ = device.inject_vq_irq(0);
        let _ = device.inject_config_irq();
        device.vq_info(0).unwrap();
        device.features().unwrap();
        let _ = device.iotlb_info(Default::default());
        let _ = bus::vdpa().config(disk.name());
    };
    let stop = AtomicBool::new(false);
    let together = Barrier::new(3);
    std::thread::scope(|scope| {
        let functions: [&(dyn Fn() + Sync); 2] = [&mapper, &caller];
        for function in functions {
            let (stop, together) = (&stop, &together);
            scope.spawn(move || {
                together.wait();
                while !stop.load(Ordering::Relaxed) {
                    function();
                }
            });
        }
        together.wait();
        for _ in 0..25 {
            disk.on_bus.unbind(Driver::Virtio).unwrap();
            disk.on_bus.bind(Driver::Virtio).unwrap();
        }
        stop.store(true, Ordering::Relaxed);
    });
    disk.block().read(0, 4096).unwrap();
}

/// Asserts that the module cannot be unloaded now.
#[track_caller]
fn assert_stays() {
    let module = modules::name(crate::lab::run::settings::driver());
    modules::tool("rmmod", &[module]).expect_err("the module was unloaded");
    assert!(modules::is_loaded(module));
    Control::open().expect("the control device");
}

fn the_module_stays_while_a_device_exists() {
    let device = TestDevice::disk();
    assert_stays();
    device.open();
}

fn the_module_stays_while_the_control_device_is_open() {
    let control = Control::open().unwrap();
    assert_stays();
    assert_eq!(control.api_version().unwrap(), 1);
}

fn the_module_stays_while_a_mapping_exists() {
    use std::os::fd::AsFd;
    let disk = LiveDisk::new(Shape::default());
    let region = disk.vduse().iotlb_fd(0, 0).unwrap();
    let mapping = vduse::Mapping::of_file(region.file.as_fd(), 0, 1 << 20, ACCESS_RW).unwrap();
    drop(region);
    drop(disk);
    assert_stays();
    let _ = crate::lab::kernel::probe::Prober::new().read(mapping.address(), 64);
}

fn a_daemon_that_closes_first_is_let_go() {
    let LiveDisk {
        on_bus,
        served,
        device,
        ..
    } = LiveDisk::new(Shape::default());
    served.stop();
    let timeout = crate::lab::kernel::sysfs::attribute(device.name(), "msg_timeout");
    crate::lab::kernel::sysfs::write(&timeout, "1").unwrap();
    fails(Control::open().unwrap().destroy(device.name()), Errno::BUSY);
    in_time(Duration::from_secs(10), "deleting", || {
        on_bus.delete().unwrap()
    });
    device.destroy().unwrap();
}

fn deleting_a_device_beside_an_open_that_is_refused_ends() {
    let device = TestDevice::disk();
    let file = Arc::new(device.open_ready(1));
    let on_bus = OnBus::add(device.name()).unwrap();
    on_bus.bind(Driver::Vhost).unwrap();
    let node = bus::vhost_path(device.name()).unwrap();
    let path = node.clone();
    let opening = std::thread::spawn(move || Vhost::open(&path));
    let mut request = None;
    soon("the reset is asked for", || {
        request = file.read_request().ok();
        request.is_some()
    });
    let request = request.unwrap();
    assert_eq!(request.kind, Kind::SetStatus(RESET));
    let deleting = Waiting::new(move || on_bus.delete());
    // The deletion first removes the vhost-vdpa node, and then waits until the node is closed.
    soon("the node goes", || !node.exists());
    deleting.assert_waits();
    file.answer(&request, Answer::Failed).unwrap();
    // `Vhost::open` in the other thread may succeed or fail. The test accepts both.
    let _responder = Responder::ok(&file);
    drop(opening.join().unwrap());
    deleting.result().unwrap();
}
