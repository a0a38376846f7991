// SPDX-License-Identifier: GPL-2.0

//! The daemon's agreement before a virtqueue becomes ready or stops being ready
//! (`VDUSE_F_QUEUE_READY`).

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{mpsc, Arc, Mutex};

use rustix::io::Errno;
use vduse::eventfd::EventFd;
use vduse::request::{Answer, Kind};
use vduse_uapi::{VqInfo, F_QUEUE_READY};

use crate::lab::assert::errors::fails;
use crate::lab::assert::timing::{received, soon, stays};
use crate::lab::daemon::answered::{agree, Answered};
use crate::lab::daemon::responder::Responder;
use crate::lab::device::bus::{self, Driver, OnBus};
use crate::lab::device::negotiation::{create, Negotiation};
use crate::lab::device::test_device::{disk_config, net_config};
use crate::lab::device::virtio::status;
use crate::lab::driver::client::Client;
use crate::lab::driver::ring::{self, HandQueue};
use crate::lab::driver::vhost::RingAddress;
use crate::lab::kernel::{modules, sysfs};

tests![
    the_daemon_is_asked_for_1_and_for_0_always,
    the_daemon_is_asked_in_any_state,
    the_queue_becomes_ready_when_the_daemon_agrees,
    a_refusal_breaks_the_device,
    silence_breaks_the_device,
    a_refusal_of_a_request_from_before_breaks_the_device,
    the_next_daemon_finds_what_the_driver_wants,
    a_kick_of_a_refused_queue_reaches_the_next_daemon,
    a_reset_asks_nobody,
    a_client_that_is_killed_breaks_nothing,
    deleting_a_device_that_nobody_serves_breaks_nothing,
    virtio_asks_for_each_queue_and_once_more_after_the_reset,
    a_driver_of_the_kernel_waits_for_all_its_queues_together,
    a_new_daemon_has_the_whole_timeout,
    an_interrupt_right_after_the_agreement_arrives => 60,
    a_kick_right_after_the_agreement_arrives => 60,
];

const NEGOTIATION: Negotiation = Negotiation {
    version: 0,
    features: F_QUEUE_READY,
    extensions: 0,
};

const IOVA: u64 = 0x10_0000;

fn asked(index: u32, ready: bool) -> Kind {
    Kind::SetVqReady { index, ready }
}

fn the_daemon_is_asked_for_1_and_for_0_always() {
    let setup = Answered::negotiated(NEGOTIATION, 2, agree);
    let vhost = setup.vhost();
    setup.responder.take_kinds();
    for (index, ready) in [
        (0, true),
        (0, true),
        (1, true),
        (1, false),
        (1, false),
        (0, false),
    ] {
        if ready {
            vhost.enable_queue(index).unwrap();
        } else {
            vhost.disable_queue(index).unwrap();
        }
        // The call returns only after the daemon has answered.
        assert_eq!(setup.responder.take_kinds(), [asked(index, ready)]);
        assert_eq!(setup.file.vq_info(index).unwrap().ready, u8::from(ready));
    }
}

fn the_daemon_is_asked_in_any_state() {
    let setup = Answered::negotiated(NEGOTIATION, 1, agree);
    let vhost = setup.vhost();
    let toggle = || {
        setup.responder.take_kinds();
        vhost.enable_queue(0).unwrap();
        vhost.disable_queue(0).unwrap();
        assert_eq!(
            setup.responder.take_kinds(),
            [asked(0, true), asked(0, false)]
        );
    };
    toggle();
    ring::agree(&vhost);
    toggle();
    ring::start(&vhost);
    toggle();
    vhost.set_status(status::RESET).unwrap();
    toggle();
}

/// The results of `VQ_GET_INFO` that the daemon gets while it handles a request.
type Infos = Arc<Mutex<Vec<VqInfo>>>;

fn the_queue_becomes_ready_when_the_daemon_agrees() {
    let device = create(&disk_config(), NEGOTIATION).unwrap();
    let file = Arc::new(device.open_ready(1));
    let infos = Infos::default();
    let (ours, within) = (file.clone(), infos.clone());
    let _responder = Responder::new(&file, move |request| {
        if let Kind::SetVqReady { index, .. } = request.kind {
            within.lock().unwrap().push(ours.vq_info(index).unwrap());
        }
        agree(request)
    });
    let on_bus = OnBus::add(device.name()).unwrap();
    on_bus.bind(Driver::Vhost).unwrap();
    let vhost = crate::lab::driver::vhost::open(&device);
    ring::agree(&vhost);
    let address = RingAddress {
        desc: 0x1000,
        avail: 0x2000,
        used: 0x3000,
    };
    vhost.set_queue_size(0, 64).unwrap();
    vhost.set_queue_address(0, address).unwrap();
    vhost.set_queue_base(0, 7).unwrap();
    vhost.enable_queue(0).unwrap();
    assert_eq!(file.vq_info(0).unwrap().ready, 1);
    vhost.disable_queue(0).unwrap();
    assert_eq!(file.vq_info(0).unwrap().ready, 0);

    // While the daemon handles the request, all fields except `ready` have their final values.
    let infos = infos.lock().unwrap();
    assert_eq!(infos.len(), 2);
    for (info, ready) in infos.iter().zip([0, 1]) {
        assert_eq!((info.num, info.state.split()), (64, 7));
        assert_eq!(
            (info.desc_addr, info.driver_addr, info.device_addr),
            (0x1000, 0x2000, 0x3000)
        );
        assert_eq!(info.ready, ready);
    }
}

/// Returns a closure that answers as [`agree`] does, but refuses each request to set a virtqueue's
/// readiness to `ready`.
fn refuse(ready: bool) -> impl FnMut(&vduse::request::Request) -> Option<Answer> + Send {
    move |request| match request.kind {
        Kind::SetVqReady { ready: asked, .. } if asked == ready => Some(Answer::Failed),
        _ => agree(request),
    }
}

fn a_refusal_breaks_the_device() {
    for ready in [true, false] {
        let setup = Answered::negotiated(NEGOTIATION, 1, refuse(ready));
        let vhost = setup.vhost();
        ring::agree(&vhost);
        if !ready {
            vhost.enable_queue(0).unwrap();
        }
        assert_eq!(setup.file.vq_info(0).unwrap().ready, u8::from(!ready));
        // The client's call succeeds, because vhost reports no refusal.
        if ready {
            vhost.enable_queue(0).unwrap();
        } else {
            vhost.disable_queue(0).unwrap();
        }
        fails(setup.file.vq_info(0), Errno::PERM);
        // The broken device sends the daemon no further request, so the status stays the same.
        vhost.set_status(status::UP_TO_DRIVER_OK).unwrap();
        assert_eq!(vhost.status().unwrap(), status::UP_TO_FEATURES_OK);
    }
}

fn silence_breaks_the_device() {
    let setup = Answered::negotiated(NEGOTIATION, 1, |request| match request.kind {
        Kind::SetVqReady { .. } => None,
        _ => agree(request),
    });
    let timeout = sysfs::attribute(setup.device.name(), "msg_timeout");
    sysfs::write(&timeout, "1").unwrap();
    let vhost = setup.vhost();
    vhost.enable_queue(0).unwrap();
    fails(setup.file.vq_info(0), Errno::PERM);
}

fn a_refusal_of_a_request_from_before_breaks_the_device() {
    let setup = Answered::negotiated(NEGOTIATION, 1, agree);
    let vhost = setup.vhost();
    let (on_bus, device) = setup.end_daemon();
    std::thread::scope(|scope| {
        // No daemon has the device open, so the request waits for a daemon.
        let enabling = scope.spawn(|| vhost.enable_queue(0));
        stays("the request waits", || !enabling.is_finished());
        let file = device.open_nonblocking();
        let request = file.read_request().expect("the request");
        assert_eq!(request.kind, asked(0, true));
        file.answer(&request, Answer::Failed).expect("refusing");
        enabling.join().expect("a thread").expect("enabling");
        fails(file.vq_info(0), Errno::PERM);
    });
    // The next daemon finds the virtqueue ready, as the client requested.
    let file = Arc::new(device.open_nonblocking());
    assert_eq!(file.vq_info(0).unwrap().ready, 1);
    let _responder = Responder::ok(&file);
    drop(vhost);
    drop(on_bus);
}

fn the_next_daemon_finds_what_the_driver_wants() {
    for ready in [true, false] {
        let setup = Answered::negotiated(NEGOTIATION, 2, refuse(ready));
        let vhost = setup.vhost();
        ring::agree(&vhost);
        if !ready {
            vhost.enable_queue(0).unwrap();
            vhost.disable_queue(0).unwrap();
        } else {
            vhost.enable_queue(0).unwrap();
        }
        let (on_bus, device) = setup.end_daemon();
        let file = device.open_nonblocking();
        assert_eq!(file.vq_info(0).unwrap().ready, u8::from(ready));
        assert_eq!(file.vq_info(1).unwrap().ready, 0);
        let file = Arc::new(file);
        let responder = Responder::ok(&file);
        vhost.disable_queue(0).unwrap();
        vhost.enable_queue(0).unwrap();
        assert_eq!(responder.take_kinds(), [asked(0, false), asked(0, true)]);
        drop(vhost);
        drop(on_bus);
    }
}

fn a_kick_of_a_refused_queue_reaches_the_next_daemon() {
    use std::os::fd::AsFd;

    let setup = Answered::negotiated(NEGOTIATION, 1, refuse(true));
    let vhost = setup.vhost();
    ring::agree(&vhost);
    let queue = HandQueue::prepare(&vhost, 0, 0, IOVA);
    queue.set_up(&vhost);
    queue.kick_at_once(&vhost);
    let (on_bus, device) = setup.end_daemon();
    let file = device.open_nonblocking();
    let kick = EventFd::new().unwrap();
    file.set_kick(0, kick.as_fd()).unwrap();
    assert_eq!(kick.take().unwrap(), 1);
    let file = Arc::new(file);
    let _responder = Responder::ok(&file);
    drop(vhost);
    drop(on_bus);
}

fn a_reset_asks_nobody() {
    let setup = Answered::negotiated(NEGOTIATION, 1, agree);
    let vhost = setup.vhost();
    vhost.enable_queue(0).unwrap();
    setup.responder.take_kinds();
    vhost.set_status(status::RESET).unwrap();
    assert_eq!(setup.responder.take_kinds(), [Kind::SetStatus(0)]);
    assert_eq!(setup.file.vq_info(0).unwrap().ready, 0);
}

fn a_client_that_is_killed_breaks_nothing() {
    let (asked, is_asked) = mpsc::channel();
    let setup = Answered::negotiated(NEGOTIATION, 1, move |request| match request.kind {
        Kind::SetVqReady { .. } => {
            let _ = asked.send(());
            None
        }
        _ => agree(request),
    });
    let client = Client::enable(setup.device.name());
    received("the daemon is asked", &is_asked);
    client.kill();
    // The device is not broken. The daemon receives the killed client's reset, and the next client
    // can use the device.
    soon("the client's reset arrives", || {
        setup.responder.seen().last().map(|request| request.kind) == Some(Kind::SetStatus(0))
    });
    assert_eq!(setup.file.vq_info(0).unwrap().ready, 0);
    let vhost = setup.vhost();
    ring::agree(&vhost);
}

fn deleting_a_device_that_nobody_serves_breaks_nothing() {
    let device = create(&net_config(), NEGOTIATION).unwrap();
    drop(device.open_ready(2));
    modules::tool("modprobe", &["virtio_net"]).unwrap();
    let on_bus = OnBus::add(device.name()).unwrap();
    std::thread::scope(|scope| {
        let name = device.name();
        let binding = scope.spawn(move || bus::bind(name, Driver::Virtio));
        stays("the driver waits", || !binding.is_finished());
        on_bus.delete().expect("deleting");
        // Once the device is deleted, the bind ends. The bind may succeed or fail.
        let _ = binding.join().expect("a thread");
    });
    let broken = sysfs::attribute(device.name(), "broken");
    assert_eq!(sysfs::read(&broken).unwrap(), "0");
}

fn virtio_asks_for_each_queue_and_once_more_after_the_reset() {
    let mut config = net_config();
    config.queues = 2;
    let device = create(&config, NEGOTIATION).unwrap();
    let file = Arc::new(device.open_ready(2));
    let responder = Responder::ok(&file);
    let on_bus = OnBus::add(device.name()).unwrap();
    modules::tool("modprobe", &["virtio_net"]).unwrap();
    on_bus.bind(Driver::Virtio).unwrap();
    soon("the card has an interface", || {
        bus::interface(device.name()).is_some()
    });
    let ready = |kinds: Vec<Kind>| -> Vec<Kind> {
        kinds
            .into_iter()
            .filter(|kind| matches!(kind, Kind::SetVqReady { .. } | Kind::SetStatus(0)))
            .collect()
    };
    assert_eq!(
        ready(responder.take_kinds()),
        [Kind::SetStatus(0), asked(0, true), asked(1, true)]
    );
    assert_eq!(file.vq_info(1).unwrap().ready, 1);
    on_bus.unbind(Driver::Virtio).unwrap();
    let kinds = ready(responder.take_kinds());
    assert_eq!(kinds.first(), Some(&Kind::SetStatus(0)));
    let mut disabled: Vec<Kind> = kinds[1..].to_vec();
    disabled.retain(|kind| *kind != Kind::SetStatus(0));
    assert_eq!(disabled, [asked(0, false), asked(1, false)]);
}

fn a_driver_of_the_kernel_waits_for_all_its_queues_together() {
    let device = create(&net_config(), NEGOTIATION).unwrap();
    let file = Arc::new(device.open_ready(2));
    // One answer takes much less time than the timeout, and two answers take much more, even on a
    // busy machine.
    let slow = std::time::Duration::from_millis(2500);
    let responder = Responder::new(&file, move |request| {
        if matches!(request.kind, Kind::SetVqReady { .. }) {
            std::thread::sleep(slow);
        }
        agree(request)
    });
    sysfs::write(&sysfs::attribute(device.name(), "msg_timeout"), "4").unwrap();
    modules::tool("modprobe", &["virtio_net"]).unwrap();
    let on_bus = OnBus::add(device.name()).unwrap();
    on_bus.bind(Driver::Virtio).unwrap();
    // Each answer alone is in time, but both answers together are not.
    let broken = sysfs::attribute(device.name(), "broken");
    soon("the device breaks", || {
        sysfs::read(&broken).is_ok_and(|text| text == "1")
    });
    soon("the daemon was asked for the second", || {
        responder.seen().last().map(|request| request.kind) == Some(asked(1, true))
    });
}

fn a_new_daemon_has_the_whole_timeout() {
    let device = create(&net_config(), NEGOTIATION).unwrap();
    let file = Arc::new(device.open_ready(2));
    let (asking, is_asked) = mpsc::channel();
    let first = Responder::new(&file, move |request| match request.kind {
        Kind::SetVqReady { .. } => {
            let _ = asking.send(());
            None
        }
        _ => agree(request),
    });
    sysfs::write(&sysfs::attribute(device.name(), "msg_timeout"), "2").unwrap();
    modules::tool("modprobe", &["virtio_net"]).unwrap();
    let on_bus = OnBus::add(device.name()).unwrap();
    let pause = std::time::Duration::from_millis(1200);
    std::thread::scope(|scope| {
        let name = device.name();
        let binding = scope.spawn(move || bus::bind(name, Driver::Virtio));
        received("the first daemon is asked", &is_asked);
        drop(first);
        drop(file);
        // Most of the timeout passes without a daemon.
        std::thread::sleep(pause);
        let file = Arc::new(device.open_nonblocking());
        let second = Responder::new(&file, move |request| {
            if request.kind == asked(1, true) {
                std::thread::sleep(pause);
            }
            agree(request)
        });
        binding.join().expect("a thread").expect("binding");
        soon("the card has an interface", || {
            bus::interface(name).is_some()
        });
        let broken = sysfs::attribute(name, "broken");
        assert_eq!(sysfs::read(&broken).unwrap(), "0");
        assert_eq!(file.vq_info(1).unwrap().ready, 1);
        drop(on_bus);
        drop(second);
    });
}

/// The number of rounds in the tests of kicks and interrupts right after the daemon's agreement.
const ROUNDS: u32 = 500;

fn an_interrupt_right_after_the_agreement_arrives() {
    let device = create(&disk_config(), NEGOTIATION).unwrap();
    let file = Arc::new(device.open_ready(1));
    let injected = Arc::new(AtomicU32::new(0));
    let (ours, count) = (file.clone(), injected.clone());
    let _responder = Responder::new(&file, move |request| match request.kind {
        Kind::SetVqReady { index, ready: true } => {
            ours.answer(request, Answer::Ok).expect("agreeing");
            if ours.inject_vq_irq(index).is_ok() {
                count.fetch_add(1, Ordering::SeqCst);
            }
            None
        }
        _ => agree(request),
    });
    let on_bus = OnBus::add(device.name()).unwrap();
    on_bus.bind(Driver::Vhost).unwrap();
    let vhost = crate::lab::driver::vhost::open(&device);
    ring::agree(&vhost);
    let queue = HandQueue::prepare(&vhost, 0, 0, IOVA);
    queue.set_up(&vhost);
    ring::start(&vhost);
    for round in 1..=ROUNDS {
        vhost.disable_queue(0).unwrap();
        let _ = queue.call.take();
        let before = injected.load(Ordering::SeqCst);
        vhost.enable_queue(0).unwrap();
        soon("the interrupt is injected", || {
            injected.load(Ordering::SeqCst) == before + 1
        });
        soon(&format!("interrupt {round} arrives"), || {
            queue.call.take().is_ok_and(|count| count > 0)
        });
    }
}

fn a_kick_right_after_the_agreement_arrives() {
    use std::os::fd::AsFd;

    let device = create(&disk_config(), NEGOTIATION).unwrap();
    let file = Arc::new(device.open_ready(1));
    let kick = EventFd::new().unwrap();
    let driver = Arc::new(Mutex::new(None::<Arc<EventFd>>));
    let (ours, from) = (file.clone(), driver.clone());
    let _responder = Responder::new(&file, move |request| match request.kind {
        Kind::SetVqReady { ready: true, .. } => {
            ours.answer(request, Answer::Ok).expect("agreeing");
            // The guest kicks as soon as the daemon has agreed, without waiting for the VMM.
            if let Some(kick) = from.lock().unwrap().as_ref() {
                kick.signal().expect("kicking");
            }
            None
        }
        _ => agree(request),
    });
    let on_bus = OnBus::add(device.name()).unwrap();
    on_bus.bind(Driver::Vhost).unwrap();
    let vhost = crate::lab::driver::vhost::open(&device);
    ring::agree(&vhost);
    let from_driver = Arc::new(EventFd::new().unwrap());
    vhost.set_kick(0, from_driver.as_fd()).unwrap();
    file.set_kick(0, kick.as_fd()).unwrap();
    ring::start(&vhost);
    *driver.lock().unwrap() = Some(from_driver);
    for round in 1..=ROUNDS {
        vhost.disable_queue(0).unwrap();
        let _ = kick.take();
        vhost.enable_queue(0).unwrap();
        soon(&format!("kick {round} arrives"), || {
            kick.take().is_ok_and(|count| count > 0)
        });
    }
    stays("no more kicks", || {
        !kick.take().is_ok_and(|count| count > 1)
    });
}
