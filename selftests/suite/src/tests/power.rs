// SPDX-License-Identifier: GPL-2.0

//! Suspending the machine. The kernel freezes all processes, including daemons, so a call that
//! waits for a daemon must not keep the machine awake.

use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{mpsc, Arc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use vduse::request::Kind;
use vduse::Device;

use crate::lab::assert::errors::fails;
use crate::lab::assert::timing::{soon, within};
use crate::lab::daemon::answered::agree;
use crate::lab::daemon::disk::{memory_file, Served};
use crate::lab::daemon::process::{Daemon, Manner};
use crate::lab::daemon::responder::Responder;
use crate::lab::device::bus::{self, Driver, OnBus};
use crate::lab::device::test_device::{unique_name, TestDevice};
use crate::lab::device::virtio::status::{ACKNOWLEDGE, DRIVER_OK};
use crate::lab::driver::block::Block;
use crate::lab::driver::vhost::Vhost;
use crate::lab::driver::virtio_disk::{LiveDisk, Shape};
use crate::lab::kernel::suspend::{Depth, Machine, Sleep};
use crate::lab::kernel::sysfs;
use crate::lab::run::report::{need, note, skip};
use crate::lab::run::scratch::Scratch;

tests![
    a_client_that_opens_a_device_holds_no_suspend_up => 120,
    a_client_that_writes_the_status_holds_no_suspend_up => 120,
    a_client_that_asks_for_a_queues_state_holds_no_suspend_up => 120,
    a_client_that_closes_a_device_holds_no_suspend_up => 120,
    a_client_of_a_stopped_daemon_holds_no_suspend_up => 120,
    binding_a_disk_holds_no_suspend_up => 120,
    adding_a_disk_of_a_stopped_daemon_holds_no_suspend_up => 120,
    a_driver_that_says_it_is_ready_is_waited_for_and_works => 120,
    an_idle_disk_goes_on_after_suspend => 120,
    an_idle_disk_goes_on_after_freezing_for_hibernation => 60,
    a_disk_under_io_goes_on_after_suspend => 120,
];

/// The time limit for a waiting call to return after the machine has resumed and the daemon
/// answers.
const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until the driver has sent the daemon a request.
#[track_caller]
fn is_asked(file: &Device) {
    let mut fds = [PollFd::from_borrowed_fd(file.as_fd(), PollFlags::IN)];
    let limit = Timespec {
        tv_sec: 10,
        tv_nsec: 0,
    };
    let ready = poll(&mut fds, Some(&limit)).expect("polling");
    assert_eq!(ready, 1, "nobody asks the daemon");
}

/// A function that makes one call of a vhost-vdpa client. Returns the client afterwards, or `None`
/// if the call has closed the device.
type Call = fn(Vhost) -> io::Result<Option<Vhost>>;

/// Suspends the machine while a call of a vhost client waits for the daemon, which is this process.
/// The daemon answers only after the machine has resumed, and then the call must succeed. If `call`
/// is `None`, the waiting call is the open of the device.
#[track_caller]
fn client_waits(call: Option<Call>, depth: Depth) {
    let machine = Machine::new();
    let device = TestDevice::disk();
    let file = Arc::new(device.open_ready(1));
    let on_bus = OnBus::add(device.name()).unwrap();
    on_bus.bind(Driver::Vhost).unwrap();
    let path = bus::vhost_path(device.name()).unwrap();
    let calling = match call {
        None => std::thread::spawn(move || Vhost::open(&path).map(Some)),
        Some(call) => {
            let responder = Responder::ok(&file);
            let vhost = Vhost::open(&path).unwrap();
            drop(responder);
            std::thread::spawn(move || call(vhost))
        }
    };
    is_asked(&file);
    assert!(!calling.is_finished());
    let suspended = machine.suspend(Sleep::Idle, depth);
    let waits = !calling.is_finished();
    let _responder = Responder::ok(&file);
    within(PATIENCE, "the call returns", || calling.is_finished());
    let called = calling.join().unwrap();
    suspended.expect("the machine is suspended");
    assert!(waits, "the client did not wait for the daemon");
    drop(called.expect("the call succeeds"));
    drop(on_bus);
}

fn a_client_that_opens_a_device_holds_no_suspend_up() {
    client_waits(None, Depth::Freezer);
}

fn a_client_that_writes_the_status_holds_no_suspend_up() {
    let call: Call = |vhost| vhost.set_status(ACKNOWLEDGE).map(|()| Some(vhost));
    client_waits(Some(call), Depth::Freezer);
    client_waits(Some(call), Depth::Devices);
}

fn a_client_that_asks_for_a_queues_state_holds_no_suspend_up() {
    let call: Call = |vhost| {
        vhost.set_owner()?;
        vhost.queue_base(0).map(|_| Some(vhost))
    };
    client_waits(Some(call), Depth::Freezer);
}

fn a_client_that_closes_a_device_holds_no_suspend_up() {
    client_waits(Some(|_| Ok(None)), Depth::Freezer);
}

/// A thread with a known thread ID.
struct Caller<T> {
    thread: JoinHandle<T>,
    tid: i32,
}

impl<T: Send + 'static> Caller<T> {
    fn spawn(call: impl FnOnce() -> T + Send + 'static) -> Self {
        let (sender, tid) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let _ = sender.send(rustix::thread::gettid().as_raw_nonzero().get());
            call()
        });
        let tid = tid.recv().expect("a thread");
        Self { thread, tid }
    }

    /// Waits until the thread is blocked in the VDUSE driver.
    #[track_caller]
    fn waits_for_a_daemon(&self) {
        let stack = format!("/proc/self/task/{}/stack", self.tid);
        soon("the call waits for an answer", || {
            std::fs::read_to_string(&stack).is_ok_and(|stack| stack.contains("vduse"))
        });
    }

    #[track_caller]
    fn returns(self) -> T {
        within(PATIENCE, "the call returns", || self.thread.is_finished());
        self.thread.join().unwrap()
    }
}

/// A disk on the bus, whose daemon is a separate process.
struct Remote {
    on_bus: OnBus,
    daemon: Daemon,
    _device: TestDevice,
    _scratch: Scratch,
}

impl Remote {
    #[track_caller]
    fn new() -> Self {
        let scratch = Scratch::new();
        let path: PathBuf = scratch.file("disk", 4 << 20);
        let name = unique_name();
        let daemon = Daemon::start(&name, &path, 1, Manner::Serve);
        let device = TestDevice::adopt(&name);
        Self {
            on_bus: OnBus::add(&name).unwrap(),
            daemon,
            _device: device,
            _scratch: scratch,
        }
    }
}

fn a_client_of_a_stopped_daemon_holds_no_suspend_up() {
    let machine = Machine::new();
    let remote = Remote::new();
    remote.on_bus.bind(Driver::Vhost).unwrap();
    let vhost = Vhost::open(&bus::vhost_path(remote.on_bus.name()).unwrap()).unwrap();
    remote.daemon.stop();
    let caller = Caller::spawn(move || vhost.set_status(ACKNOWLEDGE).map(|()| vhost));
    caller.waits_for_a_daemon();
    let suspended = machine.suspend(Sleep::Idle, Depth::Freezer);
    remote.daemon.go_on();
    let vhost = caller.returns();
    suspended.expect("the machine is suspended");
    let vhost = vhost.expect("the status is written");
    assert_eq!(vhost.status().unwrap(), ACKNOWLEDGE);
}

/// Suspends the machine while a kernel driver, which is being bound to a device, waits for a
/// daemon. This bind may fail. But once another daemon serves the device and the device is bound
/// again, the disk must be usable.
#[track_caller]
fn driver_waits(depth: Depth) {
    let machine = Machine::new();
    let device = TestDevice::disk();
    let file = Arc::new(device.open_ready(1));
    let on_bus = OnBus::add(device.name()).unwrap();
    let name = device.name().to_owned();
    let caller = Caller::spawn(move || bus::bind(&name, Driver::Virtio));
    is_asked(&file);
    let begin = Instant::now();
    let suspended = machine.suspend(Sleep::Idle, depth);
    note(format_args!("{suspended:?} after {:?}", begin.elapsed()));
    drop(file);
    let served = Served::start(device.open_nonblocking(), 1, memory_file(1 << 20)).unwrap();
    let _ = caller.returns();
    suspended.expect("the machine is suspended");
    // The first bind may have succeeded or failed.
    let _ = on_bus.unbind(Driver::Virtio);
    on_bus.bind(Driver::Virtio).unwrap();
    soon("the disk appears", || {
        bus::disk_name(device.name()).is_some()
    });
    let disk = bus::disk_name(device.name()).unwrap();
    Block::open(&disk).unwrap().read(0, 4096).unwrap();
    drop(on_bus);
    drop(served);
}

fn binding_a_disk_holds_no_suspend_up() {
    driver_waits(Depth::Freezer);
    driver_waits(Depth::Devices);
}

fn adding_a_disk_of_a_stopped_daemon_holds_no_suspend_up() {
    let machine = Machine::new();
    let scratch = Scratch::new();
    let path = scratch.file("disk", 4 << 20);
    let name = unique_name();
    let device = TestDevice::adopt(&name);
    let daemon = Daemon::start(&name, &path, 1, Manner::Serve);
    daemon.stop();
    bus::set_autoprobe(true).unwrap();
    let adding = name.clone();
    let caller = Caller::spawn(move || OnBus::add(&adding));
    caller.waits_for_a_daemon();
    let suspended = machine.suspend(Sleep::Idle, Depth::Devices);
    daemon.go_on();
    let on_bus = caller.returns().expect("the disk is added");
    bus::set_autoprobe(false).unwrap();
    suspended.expect("the machine is suspended");
    let _ = on_bus.unbind(Driver::Virtio);
    on_bus.bind(Driver::Virtio).unwrap();
    let disk = bus::disk_name(&name).unwrap();
    Block::open(&disk).unwrap().read(0, 4096).unwrap();
    drop(on_bus);
    drop(daemon);
    drop(device);
}

/// Checks that a request with `DRIVER_OK` stays pending until a daemon answers it, even if the
/// machine tries to suspend. virtio_blk does not check whether a daemon has agreed. A daemon that
/// has not seen `DRIVER_OK` would not serve virtio_blk's first requests, and virtio_blk would wait
/// for these requests indefinitely.
fn a_driver_that_says_it_is_ready_is_waited_for_and_works() {
    let machine = Machine::new();
    let device = TestDevice::disk();
    let file = Arc::new(device.open_ready(1));
    let asked = Arc::new(AtomicBool::new(false));
    let ours = asked.clone();
    let responder = Responder::new(&file, move |request| match request.kind {
        Kind::SetStatus(status) if status & DRIVER_OK != 0 => {
            ours.store(true, Ordering::Release);
            None
        }
        _ => agree(request),
    });
    let on_bus = OnBus::add(device.name()).unwrap();
    let name = device.name().to_owned();
    let caller = Caller::spawn(move || bus::bind(&name, Driver::Virtio));
    soon("the driver says that it is ready", || {
        asked.load(Ordering::Acquire)
    });
    let limit = Path::new("/sys/power/pm_freeze_timeout");
    let before = sysfs::read(limit).unwrap();
    sysfs::write(limit, "1000").unwrap();
    let suspended = machine.suspend(Sleep::Idle, Depth::Freezer);
    sysfs::write(limit, &before).unwrap();
    fails(suspended, Errno::BUSY);
    drop(responder);
    drop(file);
    let file = device.open_nonblocking();
    let request = file.read_request().expect("the driver still says so");
    assert!(matches!(request.kind, Kind::SetStatus(status) if status & DRIVER_OK != 0));
    drop(file);
    let served = Served::start(device.open_nonblocking(), 1, memory_file(1 << 20)).unwrap();
    caller.returns().expect("the disk is bound");
    let disk = bus::disk_name(device.name()).expect("a disk");
    Block::open(&disk).unwrap().read(0, 4096).unwrap();
    drop(on_bus);
    drop(served);
}

/// Writes to a disk, suspends the machine, and reads the data back.
#[track_caller]
fn goes_on(machine: &Machine, block: &Block, sleep: Sleep, depth: Depth, byte: u8) {
    block.write(4096, &[byte; 4096]).unwrap();
    machine
        .suspend(sleep, depth)
        .unwrap_or_else(|error| panic!("{sleep:?} to {depth:?}: {error}"));
    assert_eq!(block.read(4096, 4096).unwrap()[..], [byte; 4096]);
    block.write(8192, &[byte; 4096]).unwrap();
}

fn an_idle_disk_goes_on_after_suspend() {
    let machine = Machine::new();
    let disk = LiveDisk::new(Shape::default());
    let block = disk.block();
    for (byte, sleep, depth) in [
        (1, Sleep::Idle, Depth::Freezer),
        (2, Sleep::Idle, Depth::Devices),
        (3, Sleep::Idle, Depth::Platform),
        (4, Sleep::Ram, Depth::Devices),
        (5, Sleep::Ram, Depth::Core),
    ] {
        if machine.can(sleep, depth) {
            goes_on(&machine, &block, sleep, depth, byte);
        }
    }
}

fn an_idle_disk_goes_on_after_freezing_for_hibernation() {
    let machine = Machine::new();
    if !machine.can(Sleep::Disk, Depth::Freezer) {
        skip("this kernel has no hibernation");
    }
    let disk = LiveDisk::new(Shape::default());
    goes_on(&machine, &disk.block(), Sleep::Disk, Depth::Freezer, 1);
}

fn a_disk_under_io_goes_on_after_suspend() {
    let machine = Machine::new();
    need("fio", "--version");
    let disk = LiveDisk::new(Shape::default());
    // fio waits for its requests in such a way that the kernel can freeze fio in the meantime. The
    // kernel could not freeze a process that waits in read(2), because the daemon that must answer
    // the read is already frozen.
    let mut fio = std::process::Command::new("fio")
        .args([
            "--name=io",
            "--rw=randrw",
            "--bs=4k",
            "--iodepth=16",
            "--direct=1",
        ])
        .args([
            "--ioengine=libaio",
            "--verify=crc32c",
            "--time_based",
            "--runtime=30",
        ])
        .arg(format!("--filename=/dev/{}", disk.disk()))
        .stdout(std::process::Stdio::null())
        .spawn()
        .expect("starting fio");
    let stat = format!("/sys/block/{}/stat", disk.disk());
    let done = || std::fs::read_to_string(&stat).unwrap_or_default();
    for (sleep, depth) in [
        (Sleep::Idle, Depth::Freezer),
        (Sleep::Idle, Depth::Devices),
        (Sleep::Ram, Depth::Core),
    ] {
        if !machine.can(sleep, depth) {
            continue;
        }
        let before = done();
        soon("the disk is at work", || done() != before);
        let suspended = machine.suspend(sleep, depth);
        suspended.unwrap_or_else(|error| panic!("{sleep:?} to {depth:?}: {error}"));
    }
    let before = done();
    soon("the disk is at work again", || done() != before);
    assert!(fio.wait().unwrap().success());
}
