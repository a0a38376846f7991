// SPDX-License-Identifier: GPL-2.0

//! Suspending a device (`VDUSE_F_SUSPEND`). A reset ends the suspension. With an extension of
//! `vduse_rs`, a client can also resume the device.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{mpsc, Arc, OnceLock};

use rustix::io::Errno;
use vduse::eventfd::EventFd;
use vduse::request::{Answer, Kind, Request};
use vduse_uapi::{extension, F_QUEUE_READY, F_SUSPEND};

use crate::lab::assert::errors::fails;
use crate::lab::assert::timing::{received, soon, stays};
use crate::lab::daemon::answered::{agree, Answered};
use crate::lab::daemon::responder::Responder;
use crate::lab::device::negotiation::Negotiation;
use crate::lab::device::virtio::status;
use crate::lab::driver::client::Client;
use crate::lab::driver::ring::{self, HandQueue};
use crate::lab::driver::vhost::{access, backend, Vhost};
use crate::lab::kernel::cpu;
use crate::lab::kernel::memory::page_of;
use crate::lab::kernel::sysfs;
use crate::lab::run::report::note;

tests![
    suspending_is_offered_exactly_if_it_was_negotiated,
    resuming_is_offered_exactly_if_it_was_negotiated,
    a_driver_that_is_not_ready_suspends_nothing,
    a_suspended_device_is_neither_kicked_nor_interrupts,
    a_suspended_device_refuses_interrupts_for_other_cpus_as_well,
    a_suspended_device_does_everything_else,
    an_interrupt_right_before_the_agreement_arrives => 60,
    a_refusal_suspends_nothing,
    silence_breaks_the_device,
    a_client_that_is_killed_suspends_nothing,
    a_reset_ends_it,
    a_reset_ends_it_whatever_the_daemon_says,
    a_new_daemon_can_see_it,
    a_new_daemon_is_not_kicked_either,
    resuming_lets_everything_go_on,
    a_kick_meanwhile_arrives_when_the_device_resumes,
    resuming_a_device_that_is_not_suspended_asks_nobody,
    a_refusal_leaves_the_device_suspended,
    it_can_be_suspended_and_resumed_again_and_again,
    nothing_comes_after_the_agreement_in_a_storm => 240,
    nothing_comes_after_the_agreement_in_a_storm_with_resets => 120,
];

const SUSPEND: Negotiation = Negotiation {
    version: 0,
    features: F_SUSPEND,
    extensions: 0,
};

const RESUME: Negotiation = Negotiation {
    extensions: extension::F_RESUME,
    ..SUSPEND
};

const IOVA: u64 = 0x10_0000;

/// A device whose vhost client has set `DRIVER_OK`. The fields are dropped in this order.
struct Running {
    queue: HandQueue,
    vhost: Vhost,
    /// The eventfd to which configuration interrupts are written.
    config: EventFd,
    /// The eventfd to which kicks of virtqueue 0 are written.
    kick: EventFd,
    setup: Answered,
}

impl Running {
    #[track_caller]
    fn new(negotiation: Negotiation) -> Self {
        Self::with(negotiation, agree)
    }

    #[track_caller]
    fn with(
        negotiation: Negotiation,
        answer: impl FnMut(&Request) -> Option<Answer> + Send + 'static,
    ) -> Self {
        let setup = Answered::negotiated(negotiation, 1, answer);
        let kick = EventFd::new().expect("an eventfd");
        setup
            .file
            .set_kick(0, kick.as_fd())
            .expect("the kick eventfd");
        let vhost = setup.vhost();
        // Opening the vhost-vdpa node has reset the device, which removed the kick eventfd.
        setup
            .file
            .set_kick(0, kick.as_fd())
            .expect("the kick eventfd");
        let config = EventFd::new().expect("an eventfd");
        ring::agree(&vhost);
        let queue = HandQueue::prepare(&vhost, 0, 0, IOVA);
        queue.set_up(&vhost);
        vhost.set_config_call(config.as_fd()).expect("config call");
        ring::start(&vhost);
        setup.responder.take_kinds();
        Self {
            queue,
            vhost,
            config,
            kick,
            setup,
        }
    }

    /// Resets the device, and starts it again.
    #[track_caller]
    fn restart(&self) {
        self.vhost.set_status(status::RESET).expect("a reset");
        self.start_again();
    }

    /// Starts the device again after a reset.
    #[track_caller]
    fn start_again(&self) {
        let file = &self.setup.file;
        file.set_kick(0, self.kick.as_fd())
            .expect("the kick eventfd");
        ring::agree(&self.vhost);
        self.queue.set_up(&self.vhost);
        self.vhost
            .set_config_call(self.config.as_fd())
            .expect("config call");
        ring::start(&self.vhost);
    }

    /// Kicks the device. Returns once the VDUSE driver has received the kick. While the device is
    /// suspended, the VDUSE driver holds the kick back from the daemon.
    #[track_caller]
    fn kick(&self) {
        self.queue.kick_at_once(&self.vhost);
    }

    /// Asserts that kicks, virtqueue interrupts and configuration interrupts arrive.
    #[track_caller]
    fn works(&self) {
        let _ = self.kick.take();
        self.kick();
        soon("the kick arrives", || {
            self.kick.take().is_ok_and(|count| count > 0)
        });
        let _ = (self.queue.call.take(), self.config.take());
        self.setup.file.inject_vq_irq(0).expect("an interrupt");
        self.setup.file.inject_config_irq().expect("an interrupt");
        for eventfd in [&self.queue.call, &self.config] {
            soon("the interrupt arrives", || {
                eventfd.take().is_ok_and(|count| count > 0)
            });
        }
    }

    /// Asserts that neither kicks nor interrupts arrive.
    #[track_caller]
    fn is_suspended(&self) {
        for eventfd in [&self.queue.call, &self.config, &self.kick] {
            let _ = eventfd.take();
        }
        self.kick();
        self.queue.kick.signal().expect("kicking");
        fails(self.setup.file.inject_vq_irq(0), Errno::INVAL);
        fails(self.setup.file.inject_config_irq(), Errno::INVAL);
        stays("nothing arrives", || {
            [&self.queue.call, &self.config, &self.kick]
                .iter()
                .all(|eventfd| eventfd.take().is_ok_and(|count| count == 0))
        });
    }

    /// Returns the value of the sysfs attribute `suspended`.
    #[track_caller]
    fn attribute(&self) -> String {
        let path = sysfs::attribute(self.setup.device.name(), "suspended");
        sysfs::read(&path).expect("reading the attribute")
    }
}

fn suspending_is_offered_exactly_if_it_was_negotiated() {
    for (features, offered) in [
        (0, false),
        (F_QUEUE_READY, false),
        (F_SUSPEND, true),
        (F_SUSPEND | F_QUEUE_READY, true),
    ] {
        let negotiation = Negotiation {
            features,
            ..Negotiation::default()
        };
        let setup = Answered::negotiated(negotiation, 1, agree);
        let vhost = setup.vhost();
        let found = vhost.backend_features().unwrap() & backend::SUSPEND != 0;
        assert_eq!(found, offered, "{features:#x}");
        let accepted = vhost.accept_backend_features(backend::SUSPEND);
        if offered {
            accepted.unwrap();
        } else {
            fails(accepted, Errno::OPNOTSUPP);
            ring::agree(&vhost);
            ring::start(&vhost);
            fails(vhost.suspend(), Errno::OPNOTSUPP);
        }
    }
}

fn resuming_is_offered_exactly_if_it_was_negotiated() {
    for (negotiation, offered) in [(SUSPEND, false), (RESUME, true)] {
        let running = Running::new(negotiation);
        let found = running.vhost.backend_features().unwrap() & backend::RESUME != 0;
        assert_eq!(found, offered);
        if !offered {
            running.vhost.suspend().unwrap();
            fails(running.vhost.resume(), Errno::OPNOTSUPP);
            running.is_suspended();
        }
    }
}

fn a_driver_that_is_not_ready_suspends_nothing() {
    let setup = Answered::negotiated(SUSPEND, 1, agree);
    let vhost = setup.vhost();
    ring::agree(&vhost);
    setup.responder.take_kinds();
    vhost.suspend().unwrap();
    assert_eq!(setup.responder.take_kinds(), []);
}

fn a_suspended_device_is_neither_kicked_nor_interrupts() {
    let running = Running::new(SUSPEND);
    running.works();
    running.vhost.suspend().unwrap();
    assert_eq!(running.setup.responder.take_kinds(), [Kind::Suspend]);
    running.is_suspended();
    // If the client suspends the device once more, the daemon receives another request, and nothing
    // changes.
    running.vhost.suspend().unwrap();
    assert_eq!(running.setup.responder.take_kinds(), [Kind::Suspend]);
    running.is_suspended();
}

fn a_suspended_device_refuses_interrupts_for_other_cpus_as_well() {
    let setup = Answered::negotiated(SUSPEND, 1, agree);
    let vhost = setup.vhost();
    // The vhost client sets no call eventfd, so vhost sets no callback for the virtqueue. The
    // affinity would not apply to a callback of vhost.
    ring::agree(&vhost);
    ring::start(&vhost);
    let affinity = sysfs::affinity(setup.device.name(), 0);
    vhost.suspend().unwrap();
    cpu::run_on(0);
    for cpu in cpu::online() {
        sysfs::write(&affinity, &format!("{:x}", 1u64 << cpu)).unwrap();
        fails(setup.file.inject_vq_irq(0), Errno::INVAL);
    }
}

fn a_suspended_device_does_everything_else() {
    let running = Running::with(SUSPEND, |request| match request.kind {
        Kind::GetVqState { index } => Some(Answer::SplitState {
            index,
            next_avail: 41,
        }),
        _ => agree(request),
    });
    let (vhost, file) = (&running.vhost, &running.setup.file);
    vhost.suspend().unwrap();
    assert_eq!(vhost.queue_base(0).unwrap(), 41);
    assert_eq!(vhost.status().unwrap(), status::UP_TO_DRIVER_OK);
    file.set_config(0, &[7]).unwrap();
    assert_eq!(vhost.config(0, 1).unwrap(), [7]);
    let page = page_of(9);
    vhost.map(0x80_0000, &page, access::RW).unwrap();
    assert_eq!(
        file.iotlb_fd(0x80_0000, 0x80_0000).unwrap().first,
        0x80_0000
    );
    vhost.unmap(0x80_0000, 4096).unwrap();
    fails(file.iotlb_fd(0x80_0000, 0x80_0000), Errno::INVAL);
    // While the device is suspended, vhost lets the client set up a virtqueue anew.
    vhost.set_queue_base(0, 5).unwrap();
    vhost.set_queue_address(0, running.queue.address()).unwrap();
    assert_eq!(file.vq_info(0).unwrap().state.split(), 5);
    assert_eq!(file.vq_info(0).unwrap().ready, 1);
    running.is_suspended();
}

fn an_interrupt_right_before_the_agreement_arrives() {
    let slot: Arc<OnceLock<Arc<vduse::Device>>> = Arc::default();
    let device = slot.clone();
    let running = Running::with(SUSPEND, move |request| {
        if request.kind == Kind::Suspend {
            let device = device.get().expect("the open device");
            device.inject_vq_irq(0).expect("an interrupt");
            device.inject_config_irq().expect("an interrupt");
        }
        agree(request)
    });
    slot.set(running.setup.file.clone()).expect("set once");
    // The daemon's thread now has the only reference to `slot`. When the thread ends, it drops the
    // device in `slot`.
    drop(slot);
    for round in 0..200 {
        running.vhost.suspend().unwrap();
        for eventfd in [&running.queue.call, &running.config] {
            assert_eq!(eventfd.take().unwrap(), 1, "round {round}");
        }
        running.restart();
    }
}

fn a_refusal_suspends_nothing() {
    let running = Running::with(SUSPEND, |request| match request.kind {
        Kind::Suspend => Some(Answer::Failed),
        _ => agree(request),
    });
    fails(running.vhost.suspend(), Errno::IO);
    running.works();
    // The refusal has not broken the device: the ioctls of its node still work.
    running.setup.file.vq_info(0).unwrap();
    running.vhost.set_status(status::RESET).unwrap();
}

fn silence_breaks_the_device() {
    let running = Running::with(SUSPEND, |request| match request.kind {
        Kind::Suspend => None,
        _ => agree(request),
    });
    let timeout = sysfs::attribute(running.setup.device.name(), "msg_timeout");
    sysfs::write(&timeout, "1").unwrap();
    fails(running.vhost.suspend(), Errno::IO);
    fails(running.setup.file.vq_info(0), Errno::PERM);
}

fn a_client_that_is_killed_suspends_nothing() {
    let (asked, is_asked) = mpsc::channel();
    let setup = Answered::negotiated(SUSPEND, 1, move |request| match request.kind {
        Kind::Suspend => {
            let _ = asked.send(*request);
            None
        }
        _ => agree(request),
    });
    let client = Client::suspend(setup.device.name());
    let request = received("the daemon is asked", &is_asked);
    client.kill();
    soon("the client's reset arrives", || {
        setup.responder.seen().last().map(|request| request.kind) == Some(Kind::SetStatus(0))
    });
    // The daemon agrees too late, so its answer fails. The failure tells the daemon that the device
    // is not suspended.
    fails(setup.file.answer(&request, Answer::Ok), Errno::NOENT);
    setup.file.vq_info(0).unwrap();
}

fn a_reset_ends_it() {
    let running = Running::new(SUSPEND);
    for _ in 0..3 {
        running.vhost.suspend().unwrap();
        running.is_suspended();
        running.restart();
        running.works();
    }
}

fn a_reset_ends_it_whatever_the_daemon_says() {
    let refuses = Arc::new(AtomicBool::new(false));
    let ours = refuses.clone();
    let running = Running::with(SUSPEND, move |request| match request.kind {
        Kind::SetStatus(0) if ours.load(Ordering::Relaxed) => Some(Answer::Failed),
        _ => agree(request),
    });
    running.vhost.suspend().unwrap();
    refuses.store(true, Ordering::Relaxed);
    fails(running.vhost.set_status(status::RESET), Errno::IO);
    refuses.store(false, Ordering::Relaxed);
    // In the failed reset, vhost set its maximum queue size to 0. The successful reset in `restart`
    // sets the size back to the device's maximum.
    running.restart();
    running.works();
}

fn a_new_daemon_can_see_it() {
    let running = Running::new(SUSPEND);
    assert_eq!(running.attribute(), "0");
    running.vhost.suspend().unwrap();
    assert_eq!(running.attribute(), "1");
    let Running { setup, vhost, .. } = running;
    let (on_bus, device) = setup.end_daemon();
    let file = Arc::new(device.open_nonblocking());
    let path = sysfs::attribute(device.name(), "suspended");
    assert_eq!(sysfs::read(&path).unwrap(), "1");
    fails(file.inject_vq_irq(0), Errno::INVAL);
    let _responder = Responder::ok(&file);
    vhost.set_status(status::RESET).unwrap();
    assert_eq!(sysfs::read(&path).unwrap(), "0");
    drop(vhost);
    drop(on_bus);
}

fn a_new_daemon_is_not_kicked_either() {
    let running = Running::new(SUSPEND);
    running.vhost.suspend().unwrap();
    running.kick();
    let Running {
        setup,
        vhost,
        queue,
        ..
    } = running;
    let (on_bus, device) = setup.end_daemon();
    let file = Arc::new(device.open_nonblocking());
    let kick = EventFd::new().unwrap();
    file.set_kick(0, kick.as_fd()).unwrap();
    let _responder = Responder::ok(&file);
    queue.kick_at_once(&vhost);
    stays("no kick", || kick.take().is_ok_and(|count| count == 0));
    drop(vhost);
    drop(on_bus);
}

fn resuming_lets_everything_go_on() {
    let running = Running::new(RESUME);
    running.vhost.suspend().unwrap();
    running.is_suspended();
    running.setup.responder.take_kinds();
    running.vhost.resume().unwrap();
    assert_eq!(running.setup.responder.take_kinds(), [Kind::Resume]);
    assert_eq!(running.attribute(), "0");
    running.works();
}

fn a_kick_meanwhile_arrives_when_the_device_resumes() {
    for kicks in [0, 3] {
        let running = Running::new(RESUME);
        running.works();
        let _ = running.kick.take();
        running.vhost.suspend().unwrap();
        for _ in 0..kicks {
            running.kick();
        }
        assert_eq!(running.kick.take().unwrap(), 0);
        running.vhost.resume().unwrap();
        assert_eq!(running.kick.take().unwrap(), u64::from(kicks > 0));
    }
}

fn resuming_a_device_that_is_not_suspended_asks_nobody() {
    let running = Running::new(RESUME);
    running.vhost.resume().unwrap();
    assert_eq!(running.setup.responder.take_kinds(), []);
    running.works();
}

fn a_refusal_leaves_the_device_suspended() {
    let refuses = Arc::new(AtomicBool::new(true));
    let ours = refuses.clone();
    let running = Running::with(RESUME, move |request| match request.kind {
        Kind::Resume if ours.load(Ordering::Relaxed) => Some(Answer::Failed),
        _ => agree(request),
    });
    running.vhost.suspend().unwrap();
    fails(running.vhost.resume(), Errno::IO);
    running.is_suspended();
    refuses.store(false, Ordering::Relaxed);
    running.vhost.resume().unwrap();
    running.works();
}

fn it_can_be_suspended_and_resumed_again_and_again() {
    let running = Running::new(RESUME);
    for _ in 0..50 {
        running.vhost.suspend().unwrap();
        fails(running.setup.file.inject_vq_irq(0), Errno::INVAL);
        running.vhost.resume().unwrap();
        running.setup.file.inject_vq_irq(0).unwrap();
    }
    running.works();
}

/// The number of rounds in a storm without resets.
const ROUNDS: u64 = 10_000;
/// The number of rounds in a storm with resets.
const RESETS: u64 = 500;

/// The events that arrive at a device or at its driver in a storm.
const WHAT: [&str; 3] = ["kick", "interrupt", "configuration interrupt"];

fn nothing_comes_after_the_agreement_in_a_storm() {
    let [arrived, accepted] = storm(RESUME, ROUNDS, |running| {
        running.vhost.resume().expect("resuming");
    });
    // All interrupts that the driver accepted have arrived, and no others.
    assert_eq!(arrived, accepted);
}

fn nothing_comes_after_the_agreement_in_a_storm_with_resets() {
    storm(SUSPEND, RESETS, Running::restart);
}

/// Runs `rounds` rounds. Each round suspends a device, and then calls `go_on` to make the device
/// work again. Meanwhile, a thread on each CPU kicks the device and injects interrupts.
///
/// Returns two pairs of numbers: the interrupts that arrived, and the interrupts that the VDUSE
/// driver accepted. In each pair, virtqueue interrupts come first, then configuration interrupts.
#[track_caller]
fn storm(negotiation: Negotiation, rounds: u64, go_on: impl Fn(&Running)) -> [[u64; 2]; 2] {
    let arrived = Arc::new([const { AtomicU64::new(0) }; 3]);
    let agreed = Arc::new(AtomicU64::new(0));
    type Watched = (Arc<vduse::Device>, [EventFd; 3]);
    let watched: Arc<OnceLock<Watched>> = Arc::default();
    let (count, ended, within) = (arrived.clone(), agreed.clone(), watched.clone());
    let running = Running::with(negotiation, move |request| match request.kind {
        Kind::Suspend => {
            let (device, eventfds) = within.get().expect("the open device");
            device.answer(request, Answer::Ok).expect("agreeing");
            // No event may arrive after the answer to `Kind::Suspend`. This loop counts the events
            // that arrived before the answer.
            for (eventfd, count) in eventfds.iter().zip(count.iter()) {
                count.fetch_add(eventfd.take().expect("an eventfd"), Ordering::Relaxed);
            }
            ended.fetch_add(1, Ordering::Release);
            None
        }
        _ => agree(request),
    });
    let eventfds = [&running.kick, &running.queue.call, &running.config];
    let copies = eventfds.map(|eventfd| eventfd.try_clone().expect("a copy"));
    assert!(watched.set((running.setup.file.clone(), copies)).is_ok());
    // The daemon's thread now has the only reference to `watched`. When the thread ends, it drops
    // the device and the eventfds in `watched`.
    drop(watched);

    let cpus = cpu::online();
    let stop = AtomicBool::new(false);
    let kicks = AtomicU64::new(0);
    let accepted = [const { AtomicU64::new(0) }; 2];
    let refused = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let (setup, queue) = (&running.setup, &running.queue);
        let (stop, kicks, accepted, refused) = (&stop, &kicks, &accepted, &refused);
        for &cpu in &cpus {
            scope.spawn(move || {
                cpu::run_on(cpu);
                while !stop.load(Ordering::Relaxed) {
                    queue.kick.signal().expect("kicking");
                    kicks.fetch_add(1, Ordering::Relaxed);
                    let injected = [setup.file.inject_vq_irq(0), setup.file.inject_config_irq()];
                    for (result, accepted) in injected.iter().zip(accepted) {
                        let count = if result.is_ok() { accepted } else { refused };
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
        let storm = std::panic::AssertUnwindSafe(|| {
            for round in 1..=rounds {
                running.vhost.suspend().expect("suspending");
                soon("the daemon takes what has arrived", || {
                    agreed.load(Ordering::Acquire) == round
                });
                for (eventfd, what) in eventfds.iter().zip(WHAT) {
                    let late = eventfd.take().expect("an eventfd");
                    assert_eq!(late, 0, "a {what} after the agreement, round {round}");
                }
                go_on(&running);
            }
        });
        let result = std::panic::catch_unwind(storm);
        stop.store(true, Ordering::Relaxed);
        if let Err(panic) = result {
            std::panic::resume_unwind(panic);
        }
    });
    for (eventfd, count) in eventfds.iter().zip(arrived.iter()) {
        count.fetch_add(eventfd.take().expect("an eventfd"), Ordering::Relaxed);
    }
    running.works();
    let [kicked, interrupted, config] = arrived.each_ref().map(|n| n.load(Ordering::Relaxed));
    let accepted = accepted.map(AtomicU64::into_inner);
    let refused = refused.into_inner();
    assert!(refused > 0 && kicked > 0 && accepted.iter().all(|&count| count > rounds / 10));
    note(format_args!(
        "{rounds} rounds on {} CPUs: {} kicks, {accepted:?} interrupts, {refused} refused",
        cpus.len(),
        kicks.into_inner(),
    ));
    [[interrupted, config], accepted]
}
