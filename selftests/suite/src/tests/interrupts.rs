// SPDX-License-Identifier: GPL-2.0

//! Interrupts that a daemon injects.

use std::os::fd::AsFd;
use std::sync::{mpsc, Arc, Barrier};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use vduse::eventfd::EventFd;
use vduse::request::Kind;

use crate::lab::assert::errors::fails;
use crate::lab::assert::race::beside;
use crate::lab::assert::timing::{soon, stays};
use crate::lab::daemon::answered::agree;
use crate::lab::daemon::responder::Responder;
use crate::lab::device::bus::{self, Driver, OnBus};
use crate::lab::device::test_device::{net_config, TestDevice};
use crate::lab::device::virtio::status::{
    ACKNOWLEDGE, DRIVER, RESET, UP_TO_DRIVER_OK, UP_TO_FEATURES_OK,
};
use crate::lab::driver::bare_disk::{open_vhost, BareDisk, IOVA};
use crate::lab::driver::ring::HandDriver;
use crate::lab::driver::virtio_disk::{LiveDisk, Shape};
use crate::lab::kernel::cpu::{self, OfflineCpu};
use crate::lab::kernel::trace::Trace;
use crate::lab::kernel::{modules, sysfs};

tests![
    an_interrupt_reaches_the_driver,
    an_interrupt_before_driver_ok_is_einval,
    an_interrupt_right_after_a_queue_is_enabled_arrives => 40,
    an_interrupt_before_a_reset_is_answered_arrives,
    a_driver_of_the_kernel_that_resets_is_not_interrupted,
    a_config_interrupt_reaches_the_driver,
    a_config_interrupt_before_driver_ok_is_einval,
    interrupts_from_several_threads_all_arrive,
    interrupts_of_a_driver_without_eventfd_do_no_harm,
    interrupts_kicks_and_resets_do_each_other_no_harm,
    call_eventfds_that_come_and_go_under_interrupts_do_no_harm => 40,
    affinity_is_kept,
    an_interrupt_holds_softirqs_back_and_no_interrupts,
    affinity_of_an_offline_cpu_delivers_all_the_same,
    affinity_is_not_for_vhost,
];

fn an_interrupt_reaches_the_driver() {
    let bare = BareDisk::started();
    for _ in 0..5 {
        bare.file.inject_vq_irq(0).unwrap();
        soon("the interrupt arrives", || {
            bare.driver.call.take().unwrap() == 1
        });
    }
}

fn an_interrupt_before_driver_ok_is_einval() {
    let bare = BareDisk::new();
    bare.driver.set_queue_up();
    fails(bare.file.inject_vq_irq(0), Errno::INVAL);
    stays("no interrupt comes", || {
        bare.driver.call.take().unwrap() == 0
    });
}

fn an_interrupt_right_after_a_queue_is_enabled_arrives() {
    let bare = BareDisk::started();
    let (vhost, call, file) = (&bare.driver.vhost, &bare.driver.call, &bare.file);
    let ready = || file.vq_info(0).unwrap().ready;
    // The daemon's thread polls until the virtqueue is ready, and then injects an interrupt at
    // once.
    let (begin, begun) = mpsc::sync_channel::<()>(0);
    let (done, end) = mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            cpu::run_on(1);
            while begun.recv().is_ok() {
                while ready() == 0 {}
                file.inject_vq_irq(0).unwrap();
                done.send(()).unwrap();
            }
        });
        // Dropping `begin` ends the other thread.
        let begin = begin;
        cpu::run_on(0);
        let last = Instant::now() + Duration::from_secs(4);
        while Instant::now() < last {
            vhost.disable_queue(0).unwrap();
            call.take().unwrap();
            begin.send(()).unwrap();
            vhost.enable_queue(0).unwrap();
            end.recv().unwrap();
            soon("the interrupt arrives", || call.take().unwrap() == 1);
        }
    });
}

fn an_interrupt_before_a_reset_is_answered_arrives() {
    let device = TestDevice::disk();
    let file = Arc::new(device.open_ready(1));
    let daemon = file.clone();
    // The device is not reset until the daemon answers, so an interrupt before the answer must
    // arrive.
    let _responder = Responder::new(&file, move |request| {
        if request.kind == Kind::SetStatus(RESET) {
            let _ = daemon.inject_vq_irq(0);
        }
        agree(request)
    });
    let on_bus = OnBus::add(device.name()).unwrap();
    on_bus.bind(Driver::Vhost).unwrap();
    let driver = HandDriver::prepare(open_vhost(device.name()), IOVA);
    driver.set_queue_up();
    driver.start();
    assert_eq!(driver.call.take().unwrap(), 0);
    driver.vhost.set_status(RESET).unwrap();
    soon("the interrupt arrives", || driver.call.take().unwrap() == 1);
    drop(driver);
    drop(on_bus);
}

fn a_driver_of_the_kernel_that_resets_is_not_interrupted() {
    modules::tool("modprobe", &["virtio_net"]).unwrap();
    let device = TestDevice::new(&net_config());
    let file = Arc::new(device.open_ready(2));
    let daemon = file.clone();
    let responder = Responder::new(&file, move |request| {
        if request.kind == Kind::SetStatus(RESET) {
            let _ = daemon.inject_vq_irq(0);
        }
        agree(request)
    });
    let on_bus = OnBus::add(device.name()).unwrap();
    on_bus.bind(Driver::Virtio).unwrap();
    soon("the card appears", || {
        bus::interface(device.name()).is_some()
    });
    let trace = Trace::of_function("virtio_vdpa:virtio_vdpa_virtqueue_cb");
    // Before the reset, an interrupt reaches the driver.
    file.inject_vq_irq(0).unwrap();
    soon("the driver is called", || trace.events().len() == 1);
    responder.take_kinds();
    on_bus.unbind(Driver::Virtio).unwrap();
    assert!(responder.take_kinds().contains(&Kind::SetStatus(RESET)));
    assert_eq!(trace.events().len(), 1);
    drop(on_bus);
}

fn a_config_interrupt_reaches_the_driver() {
    let bare = BareDisk::new();
    let changed = EventFd::new().unwrap();
    bare.driver.vhost.set_config_call(changed.as_fd()).unwrap();
    bare.driver.set_queue_up();
    bare.driver.start();
    bare.file.set_config(0, &9u64.to_le_bytes()).unwrap();
    bare.file.inject_config_irq().unwrap();
    soon("the interrupt arrives", || changed.take().unwrap() == 1);
    assert_eq!(bare.driver.vhost.config(0, 8).unwrap(), 9u64.to_le_bytes());
}

fn a_config_interrupt_before_driver_ok_is_einval() {
    let bare = BareDisk::new();
    let changed = EventFd::new().unwrap();
    bare.driver.vhost.set_config_call(changed.as_fd()).unwrap();
    fails(bare.file.inject_config_irq(), Errno::INVAL);
    stays("no interrupt comes", || changed.take().unwrap() == 0);
}

fn interrupts_from_several_threads_all_arrive() {
    let bare = BareDisk::started();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..250 {
                    bare.file.inject_vq_irq(0).unwrap();
                }
            });
        }
    });
    // Each ioctl signalled the eventfd once before it returned.
    assert_eq!(bare.driver.call.take().unwrap(), 1000);
}

fn interrupts_of_a_driver_without_eventfd_do_no_harm() {
    let bare = BareDisk::started();
    bare.driver.vhost.set_call(0, None).unwrap();
    for _ in 0..10 {
        bare.file.inject_vq_irq(0).unwrap();
        bare.file.inject_config_irq().unwrap();
    }
    stays("nothing comes", || bare.driver.call.take().unwrap() == 0);
}

fn interrupts_kicks_and_resets_do_each_other_no_harm() {
    use std::sync::atomic::{AtomicBool, Ordering};
    let bare = BareDisk::started();
    let stop = AtomicBool::new(false);
    let running = || !stop.load(Ordering::Relaxed);
    let together = Barrier::new(4);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            together.wait();
            while running() {
                // The driver refuses both calls during a reset.
                let _ = bare.file.inject_vq_irq(0);
                let _ = bare.file.inject_config_irq();
            }
        });
        scope.spawn(|| {
            together.wait();
            while running() {
                bare.driver.kick.signal().unwrap();
                let event = EventFd::new().unwrap();
                bare.file.set_kick(0, event.as_fd()).unwrap();
                bare.file.clear_kick(0).unwrap();
            }
        });
        scope.spawn(|| {
            together.wait();
            while running() {
                bare.file.vq_info(0).unwrap();
                bare.file.features().unwrap();
                bare.file.set_config(0, &[1; 60]).unwrap();
                let _ = bare.file.iotlb_fd(0, u64::MAX);
            }
        });
        together.wait();
        for _ in 0..60 {
            let driver = &bare.driver;
            driver.vhost.set_status(RESET).unwrap();
            driver.vhost.set_status(ACKNOWLEDGE | DRIVER).unwrap();
            let features = driver.vhost.features().unwrap();
            driver.vhost.set_features(features).unwrap();
            driver.vhost.set_status(UP_TO_FEATURES_OK).unwrap();
            driver.set_queue_up();
            driver.start();
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(bare.driver.vhost.status().unwrap(), UP_TO_DRIVER_OK);
}

fn call_eventfds_that_come_and_go_under_interrupts_do_no_harm() {
    let bare = BareDisk::started();
    let vhost = &bare.driver.vhost;
    beside(
        || bare.file.inject_vq_irq(0).unwrap(),
        || {
            let event = EventFd::new().unwrap();
            vhost.set_call(0, Some(event.as_fd())).unwrap();
        },
    );
    // An earlier interrupt may still be on its way and signal the last eventfd as well, so the
    // count may be more than 1.
    let last = EventFd::new().unwrap();
    vhost.set_call(0, Some(last.as_fd())).unwrap();
    bare.file.inject_vq_irq(0).unwrap();
    soon("the interrupt arrives", || last.take().unwrap() > 0);
}

fn affinity_is_kept() {
    let disk = LiveDisk::new(Shape {
        queues: 2,
        ..Default::default()
    });
    let block = disk.block();
    let rq_affinity = format!("/sys/block/{}/queue/rq_affinity", block.name());
    sysfs::write(rq_affinity.as_ref(), "0").unwrap();
    // The trace shows this disk only, because the requests of other disks complete on any CPU.
    let trace = Trace::of_disk("block/block_rq_complete", block.name());
    for cpu in [0usize, 1] {
        for queue in 0..2 {
            let mask = format!("{:x}", 1 << cpu);
            sysfs::write(&sysfs::affinity(disk.name(), queue), &mask).unwrap();
        }
        trace.clear();
        for sector in 0..20 {
            block.read(sector * 512, 512).unwrap();
        }
        let cpus: Vec<usize> = trace.events().iter().map(|event| event.cpu).collect();
        assert!(cpus.len() >= 20, "{} completions", cpus.len());
        assert!(
            cpus.iter().all(|&found| found == cpu),
            "completions on CPUs {cpus:?} rather than {cpu}"
        );
    }
}

fn an_interrupt_holds_softirqs_back_and_no_interrupts() {
    // The daemon's threads, which are created below, run on the same CPU.
    cpu::run_on(0);
    let disk = LiveDisk::new(Shape::default());
    let block = disk.block();
    let called = |function: &str, interrupt: &dyn Fn()| {
        let trace = Trace::of_function(&format!("virtio_vdpa:{function}"));
        interrupt();
        soon("the driver is called", || !trace.events().is_empty());
        let events = trace.events();
        for event in &events {
            let context = (event.irqs_off, event.softirqs_off, event.in_irq);
            assert_eq!(context, (false, true, false), "{function}: {event:?}");
        }
        events
    };
    for cpu in [0, 1] {
        let mask = format!("{:x}", 1 << cpu);
        sysfs::write(&sysfs::affinity(disk.name(), 0), &mask).unwrap();
        let events = called("virtio_vdpa_virtqueue_cb", &|| {
            for sector in 0..10 {
                block.read(sector * 512, 512).unwrap();
            }
        });
        assert!(
            events.len() >= 10 && events.iter().all(|event| event.cpu == cpu),
            "{events:?}"
        );
    }
    called("virtio_vdpa_config_cb", &|| {
        disk.vduse().inject_config_irq().expect("interrupting");
    });
}

fn affinity_of_an_offline_cpu_delivers_all_the_same() {
    let disk = LiveDisk::new(Shape::default());
    let block = disk.block();
    sysfs::write(&sysfs::affinity(disk.name(), 0), "2").unwrap();
    block.read(0, 512).unwrap();
    let offline = OfflineCpu::new();
    for sector in 0..10 {
        block.read(sector * 512, 512).unwrap();
    }
    drop(offline);
    block.read(0, 512).unwrap();
}

fn affinity_is_not_for_vhost() {
    const TIMES: usize = 20;
    let bare = BareDisk::started();
    // Restrict the affinity to CPU 1, as an earlier kernel driver may have left it. vhost's
    // callbacks ignore the affinity, so they run on CPU 0, where the interrupts are injected.
    sysfs::write(&sysfs::affinity(bare.device.name(), 0), "2").unwrap();
    cpu::run_on(0);
    // `eventfd_signal_mask` signals vhost's eventfd, both with vduse_rs and with the in-tree
    // driver.
    let trace = Trace::of_function("eventfd_signal_mask");
    for _ in 0..TIMES {
        bare.file.inject_vq_irq(0).unwrap();
        soon("it arrives", || bare.driver.call.take().unwrap() == 1);
    }
    let events = trace.events();
    let here = events.iter().filter(|event| event.cpu == 0).count();
    assert_eq!(here, TIMES, "{events:?}");
}
