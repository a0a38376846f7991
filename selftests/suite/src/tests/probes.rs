// SPDX-License-Identifier: GPL-2.0

//! Kernel drivers that are probed again after a failed probe. virtio's core does not reset the
//! device between the two probes.

use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use vduse::blk::{self, SECTOR};
use vduse::request::{Answer, Kind};
use vduse::{Device, DeviceConfig, Mapping};

use crate::lab::assert::random::Random;
use crate::lab::assert::timing::{soon, within};
use crate::lab::daemon::answered::agree;
use crate::lab::daemon::disk::{memory_file, Served};
use crate::lab::daemon::responder::Responder;
use crate::lab::device::bus::{self, Driver, OnBus};
use crate::lab::device::test_device::{unique_name, TestDevice};
use crate::lab::device::virtio::feature;
use crate::lab::device::virtio::status::{
    ACKNOWLEDGE, DRIVER, DRIVER_OK, FAILED, FEATURES_OK, RESET, UP_TO_DRIVER_OK, UP_TO_FEATURES_OK,
};
use crate::lab::kernel::probe::Prober;
use crate::lab::kernel::sysfs;
use crate::lab::kernel::trace::Trace;
use crate::lab::run::report::note;
use crate::lab::run::settings::seed;

tests![
    a_probe_after_a_failed_one_begins_with_a_reset,
    a_driver_is_not_called_before_its_second_probe_is_done,
    a_daemon_that_interrupts_a_second_probe_does_no_harm => 60,
    a_driver_that_failed_twice_is_not_called => 30,
    a_driver_that_failed_is_not_called_even_if_the_daemon_refuses_that,
    a_driver_that_was_refused_to_be_ready_after_a_failure_is_helped_by_the_next_daemon => 40,
    a_driver_that_was_refused_to_be_ready_twice_is_helped_by_the_next_daemon => 40,
    a_reset_that_was_not_acknowledged_is_told_again,
    probes_that_fail_under_interrupts_do_no_harm => 120,
];

const BYTES: u64 = 1 << 20;

/// Returns the configuration of a zoned disk. virtio_blk asks for the zones after it has set
/// `DRIVER_OK`. [`blk::Disk`] does not support zones and returns an error, so each probe then
/// fails.
fn zoned() -> DeviceConfig {
    let mut config = blk::device_config(&unique_name(), BYTES, 1);
    config.features |= feature::BLK_ZONED;
    config.space.resize(96, 0);
    // In this order, the fields are the size of a zone in sectors, the maximum number of open
    // zones, the maximum number of active zones, the maximum size of an append in sectors, and the
    // write granularity in bytes (virtio 1.3, section 5.2.4).
    for (offset, value) in [
        (72, 256u32),
        (76, 8),
        (80, 8),
        (84, 64),
        (88, SECTOR as u32),
    ] {
        config.space[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
    }
    // The zones are host-managed.
    config.space[92] = 1;
    config
}

/// A zoned disk on the bus, whose first probe has failed. The fields are dropped in this order.
struct Failed {
    on_bus: OnBus,
    device: TestDevice,
}

impl Failed {
    /// Creates a device whose probe failed after `DRIVER_OK`. The device is left without a daemon.
    #[track_caller]
    fn when_ready() -> Self {
        let device = TestDevice::new(&zoned());
        let served = serve(&device);
        let on_bus = OnBus::add(device.name()).expect("adding");
        on_bus.bind(Driver::Virtio).expect("binding");
        assert_eq!(status(device.name()), UP_TO_DRIVER_OK | FAILED);
        served.stop();
        Self { on_bus, device }
    }

    /// Creates a device whose probe failed before `DRIVER_OK`, because the daemon refused the
    /// features.
    #[track_caller]
    fn when_set_up() -> Self {
        let device = TestDevice::new(&zoned());
        let file = Arc::new(device.open_ready(1));
        let responder = refusing(&file, FEATURES_OK);
        let on_bus = OnBus::add(device.name()).expect("adding");
        on_bus.bind(Driver::Virtio).expect("binding");
        assert_eq!(status(device.name()), ACKNOWLEDGE | DRIVER | FAILED);
        drop(responder);
        Self { on_bus, device }
    }

    /// Makes the virtio bus probe the device once more, and waits for the probe.
    fn probe(&self) {
        probe(self.device.name());
    }
}

/// Makes the virtio bus probe a device once more, and waits for the probe.
fn probe(name: &str) {
    let Some(directory) = bus::virtio_directory(name) else {
        return;
    };
    let virtio = directory
        .file_name()
        .and_then(|name| name.to_str())
        .expect("a name");
    // The probe may succeed or fail.
    let _ = sysfs::write("/sys/bus/virtio/drivers_probe".as_ref(), virtio);
}

#[track_caller]
fn serve(device: &TestDevice) -> Served {
    Served::start(device.open_nonblocking(), 1, memory_file(BYTES)).expect("serving the disk")
}

/// Returns the device status that virtio's core reads.
#[track_caller]
fn status(name: &str) -> u8 {
    bus::virtio_status(name).expect("a virtio device")
}

/// Starts a responder that refuses each status whose highest bit is `bit`, and agrees to all other
/// requests.
fn refusing(file: &Arc<Device>, bit: u8) -> Responder {
    Responder::new(file, move |request| match request.kind {
        Kind::SetStatus(status) if status & bit != 0 && status < bit.saturating_mul(2) => {
            Some(Answer::Failed)
        }
        _ => agree(request),
    })
}

fn a_probe_after_a_failed_one_begins_with_a_reset() {
    for failed in [Failed::when_ready(), Failed::when_set_up()] {
        let file = Arc::new(failed.device.open_nonblocking());
        let responder = refusing(&file, FEATURES_OK);
        failed.probe();
        let kinds = responder.take_kinds();
        let told = [
            RESET,
            ACKNOWLEDGE | DRIVER,
            UP_TO_FEATURES_OK,
            ACKNOWLEDGE | DRIVER | FAILED,
        ]
        .map(Kind::SetStatus);
        assert_eq!(kinds, told);
    }
}

fn a_driver_is_not_called_before_its_second_probe_is_done() {
    let failed = Failed::when_ready();
    let trace = Trace::of_function("virtio_vdpa:virtio_vdpa_virtqueue_cb");
    let file = Arc::new(failed.device.open_nonblocking());
    let daemon = file.clone();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let ours = seen.clone();
    let responder = Responder::new(&file, move |request| {
        if let Kind::SetStatus(status) = request.kind {
            let was_refused = daemon.inject_vq_irq(0).is_err();
            ours.lock().unwrap().push((status, was_refused));
        }
        agree(request)
    });
    std::thread::scope(|scope| {
        scope.spawn(|| failed.probe());
        within(Duration::from_secs(10), "the driver is ready", || {
            seen.lock()
                .unwrap()
                .iter()
                .any(|&(status, _)| status & DRIVER_OK != 0)
        });
        let early = trace.events().len();
        drop(responder);
        drop(file);
        // The probe waits for a report of the zones. The new daemon answers with an error.
        let served = serve(&failed.device);
        within(Duration::from_secs(10), "the probe fails", || {
            status(failed.device.name()) == UP_TO_DRIVER_OK | FAILED
        });
        served.stop();
        assert_eq!(early, 0);
    });
    // Skip the first status, which is the reset. The reset does not take effect until the daemon
    // agrees, so the interrupt before that need not be refused.
    for (status, was_refused) in seen.lock().unwrap().iter().skip(1) {
        assert!(was_refused, "an interrupt is let through at {status:#x}");
    }
}

/// The ring of a disk's only virtqueue, as the daemon accesses it. The driver may free the ring at
/// any time.
struct Ring {
    memory: Mapping,
    prober: Prober,
    /// The offset of the driver area (available ring) in `memory`.
    avail: usize,
    /// The offset of the device area (used ring) in `memory`.
    used: usize,
}

impl Ring {
    /// Returns the ring, or `None` if the virtqueue is not ready or the ring cannot be mapped.
    fn find(file: &Device) -> Option<Self> {
        let info = file.vq_info(0).ok().filter(|info| info.ready != 0)?;
        let at = info.device_addr;
        let region = file.iotlb_fd(at, at).ok()?;
        let len = region.last - region.first + 1;
        Some(Self {
            memory: Mapping::of_file(region.file.as_fd(), region.offset, len, region.access)
                .ok()?,
            prober: Prober::new(),
            avail: info.driver_addr.checked_sub(region.first)? as usize,
            used: (at - region.first) as usize,
        })
    }

    fn put(&self, offset: usize, bytes: &[u8]) -> io::Result<()> {
        for (at, &byte) in (self.used + offset..).zip(bytes) {
            self.prober
                .write(self.memory.address().wrapping_add(at), byte)?;
        }
        Ok(())
    }

    fn available(&self, offset: usize) -> io::Result<[u8; 2]> {
        let at = self.memory.address().wrapping_add(self.avail + offset);
        let bytes = self.prober.read(at, 2)?;
        Ok([bytes[0], bytes[1]])
    }

    /// Sets the used index, which must have been below 256, to `count`.
    fn set_used(&self, count: u8) -> io::Result<()> {
        self.put(2, &[count])
    }

    /// If the first request has arrived, marks the request as used without serving it. Returns
    /// whether the first request has arrived.
    fn use_first(&self) -> io::Result<bool> {
        if self.available(2)? == [0, 0] {
            return Ok(false);
        }
        let head = self.available(4)?;
        // The used ring element consists of the head descriptor's index and the written length, 32
        // bits each.
        self.put(4, &[head[0], head[1], 0, 0, 1, 0, 0, 0])?;
        self.set_used(1)?;
        Ok(true)
    }
}

/// Starts a responder that refuses the statuses in `refused` and agrees to all other requests. Also
/// returns a flag that is set once the driver has written `DRIVER_OK`.
fn watching(file: &Arc<Device>, refused: &'static [u8]) -> (Responder, Arc<AtomicBool>) {
    let ready = Arc::new(AtomicBool::new(false));
    let ours = ready.clone();
    let responder = Responder::new(file, move |request| match request.kind {
        Kind::SetStatus(status) if refused.contains(&status) => Some(Answer::Failed),
        Kind::SetStatus(status) if status & DRIVER_OK != 0 => {
            ours.store(true, Ordering::Release);
            agree(request)
        }
        _ => agree(request),
    });
    (responder, ready)
}

fn a_daemon_that_interrupts_a_second_probe_does_no_harm() {
    let failed = Failed::when_ready();
    for _ in 0..4 {
        let file = Arc::new(failed.device.open_nonblocking());
        let (ready, calm) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicBool::new(false)),
        );
        let ours = (ready.clone(), calm.clone());
        let responder = Responder::new(&file, move |request| {
            if matches!(request.kind, Kind::SetStatus(status) if status & DRIVER_OK != 0) {
                // Once the daemon agrees to `DRIVER_OK`, the driver may look at the ring. So the
                // daemon agrees only after the test has set the used index back to 0.
                ours.0.store(true, Ordering::Release);
                while !ours.1.load(Ordering::Acquire) {
                    std::thread::yield_now();
                }
            }
            agree(request)
        });
        std::thread::scope(|scope| {
            let probing = scope.spawn(|| failed.probe());
            // Until the driver sets `DRIVER_OK`, keeps injecting interrupts. Also sets the used
            // index to 1, as if the daemon had already completed a request.
            let mut ring = None;
            while !ready.load(Ordering::Acquire) {
                if ring.is_none() {
                    ring = Ring::find(&file);
                    ring.iter().for_each(|ring| ring.set_used(1).unwrap());
                }
                let _ = file.inject_vq_irq(0);
                let _ = file.inject_config_irq();
            }
            let ring = ring.or_else(|| Ring::find(&file)).expect("a ring");
            ring.set_used(0).unwrap();
            calm.store(true, Ordering::Release);
            soon("the driver asks for the zones", || {
                ring.use_first().unwrap()
            });
            file.inject_vq_irq(0).unwrap();
            probing.join().unwrap();
        });
        assert_eq!(status(failed.device.name()), UP_TO_DRIVER_OK | FAILED);
        drop(responder);
    }
}

fn a_driver_that_failed_twice_is_not_called() {
    let failed = Failed::when_ready();
    let served = serve(&failed.device);
    failed.probe();
    assert_eq!(status(failed.device.name()), UP_TO_DRIVER_OK | FAILED);
    failed.on_bus.unbind(Driver::Virtio).unwrap();
    let trace = Trace::of_function("virtio_vdpa:virtio_vdpa_config_cb");
    for _ in 0..20 {
        // The daemon has seen `DRIVER_OK`, and no message has told the daemon that the driver is
        // gone.
        let _ = served.device().inject_config_irq();
    }
    assert_eq!(trace.events().len(), 0);
    served.stop();
}

fn a_driver_that_failed_is_not_called_even_if_the_daemon_refuses_that() {
    let failed = Failed::when_ready();
    let file = Arc::new(failed.device.open_nonblocking());
    let (responder, ready) = watching(&file, &[UP_TO_DRIVER_OK | FAILED]);
    std::thread::scope(|scope| {
        let probing = scope.spawn(|| failed.probe());
        soon("the driver is ready", || ready.load(Ordering::Acquire));
        let ring = Ring::find(&file).expect("a ring");
        soon("the driver asks for the zones", || {
            ring.use_first().unwrap()
        });
        file.inject_vq_irq(0).unwrap();
        probing.join().unwrap();
    });
    // The daemon refused `FAILED`, so the acknowledged status still says that the driver is ready.
    assert_eq!(status(failed.device.name()), UP_TO_DRIVER_OK);
    failed.on_bus.unbind(Driver::Virtio).unwrap();
    let trace = Trace::of_function("virtio_vdpa:virtio_vdpa_config_cb");
    let _ = file.inject_config_irq();
    let _ = file.inject_vq_irq(0);
    assert_eq!(trace.events().len(), 0);
    drop(trace);
    // The next driver can bind to the device, and resets the device itself.
    failed.on_bus.bind(Driver::Vhost).unwrap();
    drop(responder);
}

/// Probes the device with a daemon that refuses `DRIVER_OK`, and then serves the device with
/// another daemon, so that the probe ends.
fn is_helped(failed: &Failed) {
    let file = Arc::new(failed.device.open_nonblocking());
    let asked = Arc::new(AtomicBool::new(false));
    let ours = asked.clone();
    let responder = Responder::new(&file, move |request| match request.kind {
        Kind::SetStatus(status) if status & DRIVER_OK != 0 => {
            ours.store(true, Ordering::Release);
            Some(Answer::Failed)
        }
        _ => agree(request),
    });
    std::thread::scope(|scope| {
        let probing = scope.spawn(|| failed.probe());
        soon("the driver says that it is ready", || {
            asked.load(Ordering::Acquire)
        });
        drop(responder);
        drop(file);
        let served = serve(&failed.device);
        within(Duration::from_secs(20), "the probe ends", || {
            probing.is_finished()
        });
        served.stop();
    });
}

fn a_driver_that_was_refused_to_be_ready_after_a_failure_is_helped_by_the_next_daemon() {
    is_helped(&Failed::when_set_up());
}

fn a_driver_that_was_refused_to_be_ready_twice_is_helped_by_the_next_daemon() {
    let failed = Failed::when_ready();
    is_helped(&failed);
    is_helped(&failed);
}

fn a_reset_that_was_not_acknowledged_is_told_again() {
    let device = TestDevice::disk();
    let file = Arc::new(device.open_ready(1));
    let mut resets = 0;
    let responder = Responder::new(&file, move |request| match request.kind {
        Kind::SetStatus(RESET) => {
            resets += 1;
            Some(if resets == 1 {
                Answer::Failed
            } else {
                Answer::Ok
            })
        }
        Kind::SetStatus(UP_TO_FEATURES_OK) => Some(Answer::Failed),
        _ => agree(request),
    });
    let on_bus = OnBus::add(device.name()).unwrap();
    // Kernel drivers do not check whether a reset succeeded.
    on_bus.bind(Driver::Virtio).unwrap();
    let told = [
        RESET,
        ACKNOWLEDGE,
        RESET,
        ACKNOWLEDGE | DRIVER,
        UP_TO_FEATURES_OK,
        ACKNOWLEDGE | DRIVER | FAILED,
    ]
    .map(Kind::SetStatus);
    assert_eq!(responder.take_kinds(), told);
    drop(on_bus);
}

fn probes_that_fail_under_interrupts_do_no_harm() {
    const ROUNDS: u32 = 100;
    let seed = seed();
    note(format_args!("seed {seed}"));
    let mut random = Random::new(seed);
    let device = TestDevice::new(&zoned());
    drop(device.open_ready(1));
    let on_bus = OnBus::add(device.name()).unwrap();
    let timeout = sysfs::attribute(device.name(), "msg_timeout");
    sysfs::write(&timeout, "10").unwrap();
    let mut failures = 0;
    for _ in 0..ROUNDS {
        let file = Arc::new(device.open_nonblocking());
        // In this round, if a status has any of the bits in `bits`, the daemon refuses the status
        // with a probability of `often` / 8.
        let bits = [0, DRIVER_OK, FEATURES_OK, FAILED, 2, 0xff][random.below(6) as usize];
        let often = 1 + random.below(8);
        let mut ours = Random::new(random.below(u64::MAX));
        let responder = Responder::new(&file, move |request| match request.kind {
            Kind::SetStatus(status) if status & bits != 0 && ours.below(8) < often => {
                Some(Answer::Failed)
            }
            _ => agree(request),
        });
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // This thread keeps injecting interrupts, and marks the first request of each ring
                // as used.
                while !stop.load(Ordering::Relaxed) {
                    let _ = file.inject_config_irq();
                    let _ = file.inject_vq_irq(0);
                    if Ring::find(&file).is_some_and(|ring| matches!(ring.use_first(), Ok(true))) {
                        let _ = file.inject_vq_irq(0);
                    }
                }
            });
            let _ = on_bus.bind(Driver::Virtio);
            for _ in 0..random.below(3) {
                probe(device.name());
            }
            if bus::virtio_directory(device.name()).is_some() {
                failures += u32::from(bus::disk_name(device.name()).is_none());
                on_bus.unbind(Driver::Virtio).unwrap();
            }
            stop.store(true, Ordering::Relaxed);
        });
        drop(responder);
    }
    assert_eq!(failures, ROUNDS);
    drop(on_bus);
}
