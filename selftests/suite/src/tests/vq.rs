// SPDX-License-Identifier: GPL-2.0

//! Virtqueues in use: how a driver has set them up, kicks, interrupts.

use std::os::fd::AsFd;
use std::sync::{mpsc, Arc, Barrier};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use vduse::eventfd::EventFd;
use vduse::request::{Answer, Kind};
use vduse::Device;
use vduse_uapi::PackedState;

use crate::lab::assert::data::assert_same;
use crate::lab::assert::errors::fails;
use crate::lab::assert::timing::{soon, stays};
use crate::lab::daemon::answered::agree;
use crate::lab::daemon::responder::Responder;
use crate::lab::device::bus::{self, Driver, OnBus};
use crate::lab::device::test_device::{disk_config, net_config, TestDevice};
use crate::lab::device::virtio::feature;
use crate::lab::device::virtio::status::{
    ACKNOWLEDGE, DRIVER, RESET, UP_TO_DRIVER_OK, UP_TO_FEATURES_OK,
};
use crate::lab::driver::ring::{HandDriver, SIZE};
use crate::lab::driver::vhost::{RingAddress, Vhost};
use crate::lab::driver::virtio_disk::{LiveDisk, Shape};
use crate::lab::kernel::cpu::{self, OfflineCpu};
use crate::lab::kernel::trace::Trace;
use crate::lab::kernel::{memory, modules, sysfs};

tests![
    features_are_those_that_the_driver_accepted,
    features_that_were_not_offered_are_refused,
    get_info_tells_what_the_driver_set,
    get_info_tells_packed_state,
    packed_state_is_asked_for_and_masked,
    a_reset_clears_queues_and_features,
    vq_setup_can_be_repeated_on_a_queue_in_use,
    a_kick_reaches_the_eventfd,
    a_kick_before_the_eventfd_is_delivered_when_it_comes,
    a_kick_is_delivered_once,
    a_kick_of_a_queue_that_is_not_ready_is_dropped,
    a_reset_takes_the_eventfd_away,
    a_kick_between_two_daemons_reaches_the_second,
    a_kick_that_kicks_itself_comes_to_rest,
    kicks_that_go_in_circles_come_to_rest,
    a_kick_is_forwarded_from_device_to_device,
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
    get_info_shows_addresses_that_were_set_together => 40,
    a_config_space_is_written_as_a_whole => 40,
    affinity_is_kept,
    an_interrupt_holds_softirqs_back_and_no_interrupts,
    affinity_of_an_offline_cpu_delivers_all_the_same,
    affinity_is_not_for_vhost,
    queues_enabled_after_driver_ok_are_served,
];

/// A disk with a vhost-vdpa driver, whose daemon is the test itself. The fields are dropped in this
/// order.
struct Bare {
    driver: HandDriver,
    on_bus: OnBus,
    responder: Responder,
    file: Arc<Device>,
    device: TestDevice,
}

const IOVA: u64 = 0x10_0000;

impl Bare {
    /// Creates a disk and takes it as far as the features.
    #[track_caller]
    fn new() -> Self {
        let device = TestDevice::disk();
        let file = Arc::new(device.open_ready(1));
        let responder = Responder::ok(&file);
        let on_bus = OnBus::add(device.name()).expect("adding");
        on_bus.bind(Driver::Vhost).expect("binding");
        let driver = HandDriver::prepare(open_vhost(device.name()), IOVA);
        Self {
            driver,
            on_bus,
            responder,
            file,
            device,
        }
    }

    /// Creates a disk and takes it as far as `DRIVER_OK`.
    #[track_caller]
    fn started() -> Self {
        let bare = Self::new();
        bare.driver.set_queue_up();
        bare.driver.start();
        bare
    }

    #[track_caller]
    fn kick_fd(&self) -> EventFd {
        let event = EventFd::new().expect("an eventfd");
        self.file.set_kick(0, event.as_fd()).expect("setting it");
        event
    }
}

#[track_caller]
fn open_vhost(name: &str) -> Vhost {
    Vhost::open(&bus::vhost_path(name).expect("a node")).expect("opening vhost-vdpa")
}

fn features_are_those_that_the_driver_accepted() {
    let bare = Bare::new();
    let accepted = bare.file.features().unwrap();
    let offered = bare.driver.vhost.features().unwrap();
    assert_eq!(accepted, offered & !feature::RING_EVENT_IDX);
    assert_eq!(
        bus::vdpa()
            .config(bare.device.name())
            .unwrap()
            .negotiated_features,
        Some(accepted)
    );
}

fn features_that_were_not_offered_are_refused() {
    let device = TestDevice::disk();
    let file = Arc::new(device.open_ready(1));
    let _responder = Responder::ok(&file);
    let on_bus = OnBus::add(device.name()).unwrap();
    on_bus.bind(Driver::Vhost).unwrap();
    let vhost = open_vhost(device.name());
    vhost.set_status(ACKNOWLEDGE | DRIVER).unwrap();
    let offered = vhost.features().unwrap();
    for bit in [1u64 << 20, feature::RING_PACKED, 1 << 63] {
        fails(vhost.set_features(offered | bit), Errno::INVAL);
    }
    assert_eq!(file.features().unwrap() & !offered, 0);
    vhost.set_features(offered).unwrap();
    drop(vhost);
    drop(on_bus);
}

fn get_info_tells_what_the_driver_set() {
    let bare = Bare::new();
    bare.driver.set_queue_up();
    bare.driver.vhost.set_queue_base(0, 0x1234).unwrap();
    let info = bare.file.vq_info(0).unwrap();
    let address = bare.driver.address();
    assert_eq!(info.num, u32::from(SIZE));
    assert_eq!(info.desc_addr, address.desc);
    assert_eq!(info.driver_addr, address.avail);
    assert_eq!(info.device_addr, address.used);
    assert_eq!(info.state.split(), 0x1234);
    assert_eq!(info.ready, 1);
}

/// Creates a device that offers packed virtqueues, and takes it as far as the features.
#[track_caller]
fn packed(answer: PackedState) -> Bare {
    let mut config = disk_config();
    config.features |= feature::RING_PACKED;
    let device = TestDevice::new(&config);
    let file = Arc::new(device.open_ready(1));
    let responder = Responder::new(&file, move |request| {
        Some(match request.kind {
            Kind::GetVqState { index } => Answer::PackedState {
                index,
                state: answer,
            },
            _ => Answer::Ok,
        })
    });
    let on_bus = OnBus::add(device.name()).expect("adding");
    on_bus.bind(Driver::Vhost).expect("binding");
    let driver = HandDriver::prepare(open_vhost(device.name()), IOVA);
    Bare {
        driver,
        on_bus,
        responder,
        file,
        device,
    }
}

fn get_info_tells_packed_state() {
    let bare = packed(PackedState::default());
    assert_ne!(bare.file.features().unwrap() & feature::RING_PACKED, 0);
    bare.driver
        .vhost
        .set_queue_base(0, 0x8005 | 0x0003 << 16)
        .unwrap();
    assert_eq!(
        bare.file.vq_info(0).unwrap().state.packed(),
        PackedState {
            last_avail_counter: 1,
            last_avail_idx: 5,
            last_used_counter: 0,
            last_used_idx: 3,
        }
    );
}

fn packed_state_is_asked_for_and_masked() {
    let bare = packed(PackedState {
        last_avail_counter: 0xfffe,
        last_avail_idx: 0xffff,
        last_used_counter: 0xffff,
        last_used_idx: 0x8007,
    });
    // A counter has one bit, an index fifteen.
    assert_eq!(
        bare.driver.vhost.queue_base(0).unwrap(),
        0x7fff | (0x8000 | 7) << 16
    );
}

fn a_reset_clears_queues_and_features() {
    let bare = Bare::started();
    bare.driver.vhost.set_status(RESET).unwrap();
    let info = bare.file.vq_info(0).unwrap();
    assert_eq!((info.num, info.ready), (0, 0));
    assert_eq!((info.desc_addr, info.driver_addr), (0, 0));
    assert_eq!((info.device_addr, info.state.split()), (0, 0));
    assert_eq!(bare.file.features().unwrap(), 0);
}

fn vq_setup_can_be_repeated_on_a_queue_in_use() {
    let bare = Bare::started();
    bare.file.vq_setup(0, 256).unwrap();
    let info = bare.file.vq_info(0).unwrap();
    assert_eq!((info.num, info.ready), (u32::from(SIZE), 1));
}

fn a_kick_reaches_the_eventfd() {
    let bare = Bare::started();
    let kicked = bare.kick_fd();
    for _ in 0..5 {
        bare.driver.kick.signal().unwrap();
        soon("the kick arrives", || kicked.take().unwrap() == 1);
    }
}

fn a_kick_before_the_eventfd_is_delivered_when_it_comes() {
    let bare = Bare::started();
    bare.driver.kick_at_once();
    let kicked = bare.kick_fd();
    soon("the kick arrives", || kicked.take().unwrap() == 1);
}

fn a_kick_is_delivered_once() {
    let bare = Bare::started();
    bare.driver.kick_at_once();
    let first = bare.kick_fd();
    soon("the kick arrives", || first.take().unwrap() == 1);
    let second = bare.kick_fd();
    stays("nothing more comes", || second.take().unwrap() == 0);
}

fn a_kick_of_a_queue_that_is_not_ready_is_dropped() {
    let bare = Bare::new();
    bare.driver
        .vhost
        .set_kick(0, bare.driver.kick.as_fd())
        .unwrap();
    let kicked = bare.kick_fd();
    bare.driver.kick.signal().unwrap();
    stays("no kick comes", || kicked.take().unwrap() == 0);
}

fn a_reset_takes_the_eventfd_away() {
    let bare = Bare::started();
    let before = bare.kick_fd();
    bare.driver.vhost.set_status(RESET).unwrap();
    // The next driver's kicks must not reach the former eventfd.
    let driver = &bare.driver;
    driver.vhost.set_status(ACKNOWLEDGE | DRIVER).unwrap();
    let features = driver.vhost.features().unwrap() & !feature::RING_EVENT_IDX;
    driver.vhost.set_features(features).unwrap();
    driver.vhost.set_status(UP_TO_FEATURES_OK).unwrap();
    driver.set_queue_up();
    driver.start();
    driver.kick.signal().unwrap();
    stays("no kick comes", || before.take().unwrap() == 0);
    let after = bare.kick_fd();
    soon("the kick arrives", || after.take().unwrap() == 1);
}

fn a_kick_between_two_daemons_reaches_the_second() {
    let Bare {
        driver,
        on_bus,
        responder,
        file,
        device,
    } = Bare::started();
    let first = EventFd::new().unwrap();
    file.set_kick(0, first.as_fd()).unwrap();
    drop(responder);
    drop(file);
    driver.kick_at_once();
    let file = Arc::new(device.open_nonblocking());
    let responder = Responder::ok(&file);
    let second = EventFd::new().unwrap();
    file.set_kick(0, second.as_fd()).unwrap();
    // The kick went to one of the two eventfds, before its call returned.
    let counts = [&first, &second].map(|event| event.take().unwrap());
    drop(driver);
    drop(on_bus);
    drop(responder);
    assert_eq!(
        counts,
        [0, 1],
        "the kick went to the first daemon's eventfd"
    );
}

/// Waits until nothing more is written to eventfds, and asserts that they stay quiet.
#[track_caller]
fn comes_to_rest(events: &[&EventFd]) {
    std::thread::sleep(Duration::from_millis(100));
    for event in events {
        event.take().unwrap();
    }
    stays("no more kicks", || {
        events.iter().all(|event| event.take().unwrap() == 0)
    });
}

fn a_kick_that_kicks_itself_comes_to_rest() {
    let bare = Bare::started();
    let kick = &bare.driver.kick;
    bare.file.set_kick(0, kick.as_fd()).unwrap();
    kick.signal().unwrap();
    comes_to_rest(&[kick]);
    // A kick that does not kick itself still works.
    let kicked = bare.kick_fd();
    for _ in 0..5 {
        kick.signal().unwrap();
        soon("the kick arrives", || kicked.take().unwrap() == 1);
    }
}

fn kicks_that_go_in_circles_come_to_rest() {
    let bares = [(); 3].map(|()| Bare::started());
    let kicks = [0, 1, 2].map(|n: usize| &bares[n].driver.kick);
    // Each device kicks the next one.
    for (n, bare) in bares.iter().enumerate() {
        bare.file.set_kick(0, kicks[(n + 1) % 3].as_fd()).unwrap();
    }
    for kick in kicks {
        kick.signal().unwrap();
    }
    comes_to_rest(&kicks);
}

fn a_kick_is_forwarded_from_device_to_device() {
    let [first, second, third] = [(); 3].map(|()| Bare::started());
    first.file.set_kick(0, second.driver.kick.as_fd()).unwrap();
    second.file.set_kick(0, third.driver.kick.as_fd()).unwrap();
    let kicked = third.kick_fd();
    for _ in 0..20 {
        first.driver.kick.signal().unwrap();
        soon("the kick arrives", || kicked.take().unwrap() == 1);
    }
    stays("no more kicks", || kicked.take().unwrap() == 0);
}

fn an_interrupt_reaches_the_driver() {
    let bare = Bare::started();
    for _ in 0..5 {
        bare.file.inject_vq_irq(0).unwrap();
        soon("the interrupt arrives", || {
            bare.driver.call.take().unwrap() == 1
        });
    }
}

fn an_interrupt_before_driver_ok_is_einval() {
    let bare = Bare::new();
    bare.driver.set_queue_up();
    fails(bare.file.inject_vq_irq(0), Errno::INVAL);
    stays("no interrupt comes", || {
        bare.driver.call.take().unwrap() == 0
    });
}

fn an_interrupt_right_after_a_queue_is_enabled_arrives() {
    let bare = Bare::started();
    let (vhost, call, file) = (&bare.driver.vhost, &bare.driver.call, &bare.file);
    let ready = || file.vq_info(0).unwrap().ready;
    // The daemon waits for the queue, and interrupts as soon as the queue is ready.
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
    // The daemon knows of no reset until it answers the request.
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
    // Before the reset, the driver is interrupted.
    file.inject_vq_irq(0).unwrap();
    soon("the driver is called", || trace.events().len() == 1);
    responder.take_kinds();
    on_bus.unbind(Driver::Virtio).unwrap();
    assert!(responder.take_kinds().contains(&Kind::SetStatus(RESET)));
    assert_eq!(trace.events().len(), 1);
    drop(on_bus);
}

fn a_config_interrupt_reaches_the_driver() {
    let bare = Bare::new();
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
    let bare = Bare::new();
    let changed = EventFd::new().unwrap();
    bare.driver.vhost.set_config_call(changed.as_fd()).unwrap();
    fails(bare.file.inject_config_irq(), Errno::INVAL);
    stays("no interrupt comes", || changed.take().unwrap() == 0);
}

fn interrupts_from_several_threads_all_arrive() {
    let bare = Bare::started();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..250 {
                    bare.file.inject_vq_irq(0).unwrap();
                }
            });
        }
    });
    // Each interrupt was signalled on its own, before its call returned.
    assert_eq!(bare.driver.call.take().unwrap(), 1000);
}

fn interrupts_of_a_driver_without_eventfd_do_no_harm() {
    let bare = Bare::started();
    bare.driver.vhost.set_call(0, None).unwrap();
    for _ in 0..10 {
        bare.file.inject_vq_irq(0).unwrap();
        bare.file.inject_config_irq().unwrap();
    }
    stays("nothing comes", || bare.driver.call.take().unwrap() == 0);
}

fn interrupts_kicks_and_resets_do_each_other_no_harm() {
    use std::sync::atomic::{AtomicBool, Ordering};
    let bare = Bare::started();
    let stop = AtomicBool::new(false);
    let running = || !stop.load(Ordering::Relaxed);
    let together = Barrier::new(4);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            together.wait();
            while running() {
                // Refused during a reset.
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

/// Runs `other` repeatedly in a thread, and `here` repeatedly in this one, for a while and until
/// both have run often enough to meet.
#[track_caller]
fn beside(other: impl Fn() + Sync, mut here: impl FnMut()) {
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
    const OFTEN: u32 = 100;
    let stop = AtomicBool::new(false);
    let others = AtomicU32::new(0);
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                other();
                others.fetch_add(1, Ordering::Relaxed);
            }
        });
        let end = Instant::now() + Duration::from_secs(2);
        let mut ours = 0;
        let enough = |ours| ours >= OFTEN && others.load(Ordering::Relaxed) >= OFTEN;
        // The other thread must end even if this one fails.
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            while Instant::now() < end || !enough(ours) && !thread.is_finished() {
                here();
                ours += 1;
            }
        }));
        stop.store(true, Ordering::Relaxed);
        if let Err(panic) = result {
            std::panic::resume_unwind(panic);
        }
    });
}

fn call_eventfds_that_come_and_go_under_interrupts_do_no_harm() {
    let bare = Bare::started();
    let vhost = &bare.driver.vhost;
    beside(
        || bare.file.inject_vq_irq(0).unwrap(),
        || {
            let event = EventFd::new().unwrap();
            vhost.set_call(0, Some(event.as_fd())).unwrap();
        },
    );
    // The driver's first eventfd may have been signalled as well, before it was replaced. An
    // interrupt that is still on its way goes to the last eventfd, too.
    let last = EventFd::new().unwrap();
    vhost.set_call(0, Some(last.as_fd())).unwrap();
    bare.file.inject_vq_irq(0).unwrap();
    soon("the interrupt arrives", || last.take().unwrap() > 0);
}

fn get_info_shows_addresses_that_were_set_together() {
    let bare = Bare::new();
    let set = |at: u64| {
        let address = RingAddress {
            desc: at,
            avail: at + 0x1000,
            used: at + 0x2000,
        };
        bare.driver.vhost.set_queue_address(0, address).unwrap();
    };
    set(IOVA);
    beside(
        || [0x7fff_0000_0000, IOVA].into_iter().for_each(set),
        || {
            let info = bare.file.vq_info(0).unwrap();
            let behind =
                [info.driver_addr, info.device_addr].map(|a| a.wrapping_sub(info.desc_addr));
            assert_eq!(behind, [0x1000, 0x2000], "{info:x?}");
        },
    );
}

fn a_config_space_is_written_as_a_whole() {
    // The largest possible configuration space.
    let len = memory::PAGE as usize;
    let mut config = disk_config();
    config.space = vec![0; len];
    let device = TestDevice::new(&config);
    let file = Arc::new(device.open_ready(1));
    let _responder = Responder::ok(&file);
    let on_bus = OnBus::add(device.name()).unwrap();
    on_bus.bind(Driver::Vhost).unwrap();
    let vhost = open_vhost(device.name());
    beside(
        || {
            for byte in [0x11, 0xee] {
                file.set_config(0, &vec![byte; len]).unwrap();
            }
        },
        || {
            let found = vhost.config(0, len).unwrap();
            assert_same(&found, &vec![found[0]; len], "the configuration space");
        },
    );
    drop(vhost);
    drop(on_bus);
}

fn affinity_is_kept() {
    let disk = LiveDisk::new(Shape {
        queues: 2,
        ..Default::default()
    });
    let block = disk.block();
    let rq_affinity = format!("/sys/block/{}/queue/rq_affinity", block.name());
    sysfs::write(rq_affinity.as_ref(), "0").unwrap();
    // Requests of other disks complete on any CPU.
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
    // Applies to the daemon's threads as well.
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
    let bare = Bare::started();
    // A kernel driver may have left this affinity.
    sysfs::write(&sysfs::affinity(bare.device.name(), 0), "2").unwrap();
    cpu::run_on(0);
    // Both drivers under test signal vhost's eventfd with this function.
    let trace = Trace::of_function("eventfd_signal_mask");
    for _ in 0..TIMES {
        bare.file.inject_vq_irq(0).unwrap();
        soon("it arrives", || bare.driver.call.take().unwrap() == 1);
    }
    let events = trace.events();
    let here = events.iter().filter(|event| event.cpu == 0).count();
    assert_eq!(here, TIMES, "{events:?}");
}

fn queues_enabled_after_driver_ok_are_served() {
    let device = TestDevice::disk();
    let file = crate::lab::daemon::disk::memory_file(1 << 20);
    let served =
        crate::lab::daemon::disk::Served::start(device.open_nonblocking(), 1, file.clone())
            .unwrap();
    let on_bus = OnBus::add(device.name()).unwrap();
    on_bus.bind(Driver::Vhost).unwrap();
    let mut driver = HandDriver::prepare(open_vhost(device.name()), IOVA);
    driver.start();
    assert_eq!(driver.vhost.status().unwrap(), UP_TO_DRIVER_OK);
    // vhost-vdpa no longer accepts an address, but enabling the queue late is enough.
    let vhost = &driver.vhost;
    vhost.set_status(RESET).unwrap();
    vhost.set_status(ACKNOWLEDGE | DRIVER).unwrap();
    let features = vhost.features().unwrap() & !feature::RING_EVENT_IDX;
    vhost.set_features(features).unwrap();
    vhost.set_status(UP_TO_FEATURES_OK).unwrap();
    vhost.set_queue_size(0, SIZE.into()).unwrap();
    vhost.set_queue_address(0, driver.address()).unwrap();
    vhost.set_queue_base(0, 0).unwrap();
    driver.start();
    driver.vhost.set_kick(0, driver.kick.as_fd()).unwrap();
    driver.vhost.set_call(0, Some(driver.call.as_fd())).unwrap();
    // The daemon has looked for queues already, before it agreed to DRIVER_OK.
    driver.vhost.enable_queue(0).unwrap();
    assert_eq!(driver.read(0), [0; 512]);
    drop(driver);
    drop(on_bus);
    drop(served);
}
