// SPDX-License-Identifier: GPL-2.0

//! How drivers come and go: by unbinding on the vDPA bus and on the virtio bus, driver overrides,
//! loading and unloading of modules, and failing probes.

use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use vduse::eventfd::EventFd;
use vduse::request::Kind;
use vduse::server::Server;
use vduse::{blk, Device};

use crate::lab::assert::errors::fails;
use crate::lab::assert::timing::{soon, stays};
use crate::lab::daemon::disk::{memory_file, Served};
use crate::lab::daemon::process::{Daemon, Manner};
use crate::lab::daemon::responder::Responder;
use crate::lab::daemon::serving::Serving;
use crate::lab::daemon::tap::TapInterface;
use crate::lab::daemon::{card, fs};
use crate::lab::device::bus::{self, Driver, OnBus};
use crate::lab::device::test_device::{unique_name, TestDevice};
use crate::lab::device::virtio::feature;
use crate::lab::device::virtio::status::{
    ACKNOWLEDGE, DRIVER, FAILED, RESET, UP_TO_DRIVER_OK, UP_TO_FEATURES_OK,
};
use crate::lab::driver::block::{read_until_error, Block};
use crate::lab::driver::peer::Peer;
use crate::lab::driver::vhost::Vhost;
use crate::lab::driver::virtio_disk::{LiveDisk, Shape};
use crate::lab::driver::virtiofs::{self, LiveFs, Mount};
use crate::lab::kernel::{modules, sysfs};
use crate::lab::run::report::skip;
use crate::lab::run::scratch::Scratch;

tests![
    unbinding_virtio_blk_from_its_device_under_io_and_binding_again_works => 40,
    a_device_without_a_driver_is_probed_by_the_one_it_is_overridden_to,
    an_override_keeps_other_drivers_away_and_the_bound_one_in_place,
    a_driver_that_is_loaded_takes_what_is_on_the_bus,
    unloading_virtio_vdpa_under_io_takes_its_disks_away => 40,
    unloading_vhost_vdpa_is_refused_while_a_client_has_it_open,
    unloading_virtio_blk_is_refused_while_a_disk_is_open => 40,
    unloading_virtio_net_takes_its_interface_away => 60,
    unloading_virtiofs_takes_its_file_systems_away => 40,
    a_disk_that_fails_before_it_is_ready_leaves_nothing_to_interrupt,
    a_disk_that_fails_after_it_was_ready_leaves_nothing_to_interrupt,
    a_file_system_whose_tag_is_taken_fails_and_is_bound_later => 40,
    a_client_that_gives_up_leaves_nothing_to_interrupt,
    deleting_a_disk_of_a_dead_daemon_does_not_wait_for_one => 90,
    deleting_a_disk_of_a_daemon_that_was_killed_does_not_wait_for_one => 90,
    unbinding_a_disk_of_a_dead_daemon_waits_no_longer_than_msg_timeout => 40,
];

const VIRTIO: &str = "/sys/bus/virtio";
const VDPA: &str = "/sys/bus/vdpa";

/// Returns the directory and the name of the virtio device that virtio-vdpa has created for a vDPA
/// device.
#[track_caller]
fn virtio(name: &str) -> (PathBuf, String) {
    let directory = bus::virtio_directory(name).expect("a virtio device");
    let device = directory.file_name().expect("its name");
    let device = device.to_str().expect("a name").to_owned();
    (directory, device)
}

/// Binds a virtio device to a driver of the virtio bus if `what` is `bind`. Unbinds it if `what` is
/// `unbind`.
fn on_virtio_bus(driver: &str, what: &str, device: &str) -> io::Result<()> {
    let path = Path::new(VIRTIO).join("drivers").join(driver).join(what);
    sysfs::write(&path, device)
}

/// Returns the name of the driver to which a device is bound. `directory` is the device's sysfs
/// directory.
fn driver_of(directory: &Path) -> Option<String> {
    let driver = std::fs::read_link(directory.join("driver")).ok()?;
    Some(driver.file_name()?.to_str()?.to_owned())
}

/// Asserts that a daemon cannot interrupt any driver.
#[track_caller]
fn interrupts_nobody(file: &Device) {
    fails(file.inject_vq_irq(0), Errno::INVAL);
    fails(file.inject_config_irq(), Errno::INVAL);
}

/// Modules that are loaded again on drop, for the tests that follow.
struct Loaded(&'static [&'static str]);

impl Drop for Loaded {
    fn drop(&mut self) {
        for module in self.0 {
            let _ = modules::tool("modprobe", &[module]);
        }
    }
}

/// A guard that enables automatic binding on the vDPA bus until the guard is dropped.
struct Autoprobe;

impl Autoprobe {
    #[track_caller]
    fn on() -> Self {
        bus::set_autoprobe(true).expect("switching automatic binding on");
        Self
    }
}

impl Drop for Autoprobe {
    fn drop(&mut self) {
        let _ = bus::set_autoprobe(false);
    }
}

#[track_caller]
fn works(disk: &LiveDisk) {
    let block = disk.block();
    block.write(4096, &[0xab; 4096]).unwrap();
    assert_eq!(block.read(4096, 4096).unwrap()[..], [0xab; 4096]);
}

fn unbinding_virtio_blk_from_its_device_under_io_and_binding_again_works() {
    let disk = LiveDisk::new(Shape::default());
    let (directory, device) = virtio(disk.name());
    for _ in 0..3 {
        let readers = read_until_error(&disk.disk());
        readers.go_on(1);
        on_virtio_bus("virtio_blk", "unbind", &device).unwrap();
        readers.join();
        // After the reset, virtio's core has set `ACKNOWLEDGE` again.
        assert_eq!(
            sysfs::read(&directory.join("status")).unwrap(),
            "0x00000001"
        );
        interrupts_nobody(disk.vduse());
        on_virtio_bus("virtio_blk", "bind", &device).unwrap();
        works(&disk);
    }
}

/// Sets a device's driver override: from then on, the vDPA bus may bind the device only to
/// `driver`.
#[track_caller]
fn set_override(name: &str, driver: &str) {
    let path = bus::directory(name).join("driver_override");
    sysfs::write(&path, driver).expect("overriding the driver");
}

#[track_caller]
fn probe(name: &str) -> io::Result<()> {
    let _autoprobe = Autoprobe::on();
    sysfs::write(&Path::new(VDPA).join("drivers_probe"), name)
}

fn a_device_without_a_driver_is_probed_by_the_one_it_is_overridden_to() {
    let disk = LiveDisk::new(Shape::default());
    let directory = bus::directory(disk.name());
    disk.on_bus.unbind(Driver::Virtio).unwrap();
    for _ in 0..2 {
        set_override(disk.name(), "vhost_vdpa");
        probe(disk.name()).unwrap();
        assert_eq!(driver_of(&directory).as_deref(), Some("vhost_vdpa"));
        drop(Vhost::open(&bus::vhost_path(disk.name()).unwrap()).unwrap());
        disk.on_bus.unbind(Driver::Vhost).unwrap();
        set_override(disk.name(), "virtio_vdpa");
        probe(disk.name()).unwrap();
        assert_eq!(driver_of(&directory).as_deref(), Some("virtio_vdpa"));
        works(&disk);
        disk.on_bus.unbind(Driver::Virtio).unwrap();
    }
    interrupts_nobody(disk.vduse());
}

fn an_override_keeps_other_drivers_away_and_the_bound_one_in_place() {
    let disk = LiveDisk::new(Shape::default());
    set_override(disk.name(), "vhost_vdpa");
    works(&disk);
    disk.on_bus.unbind(Driver::Virtio).unwrap();
    fails(disk.on_bus.bind(Driver::Virtio), Errno::NODEV);
    disk.on_bus.bind(Driver::Vhost).unwrap();
    disk.on_bus.unbind(Driver::Vhost).unwrap();
    set_override(disk.name(), "\n");
    disk.on_bus.bind(Driver::Virtio).unwrap();
    works(&disk);
}

fn a_driver_that_is_loaded_takes_what_is_on_the_bus() {
    let disk = LiveDisk::new(Shape::default());
    disk.on_bus.unbind(Driver::Virtio).unwrap();
    let loaded = Loaded(&["virtio_vdpa"]);
    modules::tool("rmmod", &["virtio_vdpa"]).unwrap();
    let autoprobe = Autoprobe::on();
    drop(loaded);
    drop(autoprobe);
    let driver = driver_of(&bus::directory(disk.name()));
    assert_eq!(driver.as_deref(), Some("virtio_vdpa"));
    works(&disk);
}

fn unloading_virtio_vdpa_under_io_takes_its_disks_away() {
    let disks = [
        LiveDisk::new(Shape::default()),
        LiveDisk::new(Shape::default()),
    ];
    for _ in 0..3 {
        let loaded = Loaded(&["virtio_vdpa"]);
        let readers = disks.each_ref().map(|disk| read_until_error(&disk.disk()));
        readers.iter().for_each(|readers| readers.go_on(1));
        modules::tool("rmmod", &["virtio_vdpa"]).unwrap();
        for readers in readers {
            readers.join();
        }
        for disk in &disks {
            assert_eq!(driver_of(&bus::directory(disk.name())), None);
            assert_eq!(bus::virtio_directory(disk.name()), None);
            interrupts_nobody(disk.vduse());
        }
        drop(loaded);
        for disk in &disks {
            disk.on_bus.bind(Driver::Virtio).unwrap();
            works(disk);
        }
    }
}

fn unloading_vhost_vdpa_is_refused_while_a_client_has_it_open() {
    let disk = LiveDisk::new(Shape::default());
    disk.on_bus.unbind(Driver::Virtio).unwrap();
    disk.on_bus.bind(Driver::Vhost).unwrap();
    let node = bus::vhost_path(disk.name()).unwrap();
    let vhost = Vhost::open(&node).unwrap();
    let _loaded = Loaded(&["vhost_vdpa"]);
    modules::tool("rmmod", &["vhost_vdpa"]).expect_err("the module was unloaded");
    assert_eq!(vhost.status().unwrap(), RESET);
    drop(vhost);
    // The kernel defers the final release of a file, so unloading may fail at first.
    soon("vhost_vdpa is unloaded", || {
        modules::tool("rmmod", &["vhost_vdpa"]).is_ok()
    });
    assert!(!node.exists());
    assert_eq!(driver_of(&bus::directory(disk.name())), None);
    interrupts_nobody(disk.vduse());
    disk.on_bus.bind(Driver::Virtio).unwrap();
    works(&disk);
}

/// Skips the test if a module has users other than the test. For example, virtio_blk may drive the
/// test machine's own disks. `own` is the number of references to the module that the test itself
/// causes.
fn need_unused(module: &str, own: i64) {
    match modules::references(module) {
        None => skip(format!("{module} is no module here")),
        Some(references) if references > own => skip(format!("{module} has other users here")),
        Some(_) => {}
    }
}

fn unloading_virtio_blk_is_refused_while_a_disk_is_open() {
    need_unused("virtio_blk", 0);
    let disk = LiveDisk::new(Shape::default());
    let readers = read_until_error(&disk.disk());
    let _loaded = Loaded(&["virtio_blk"]);
    modules::tool("rmmod", &["virtio_blk"]).expect_err("the module was unloaded");
    disk.on_bus.unbind(Driver::Virtio).unwrap();
    readers.join();
    disk.on_bus.bind(Driver::Virtio).unwrap();
    works(&disk);
    soon("virtio_blk is unloaded", || {
        modules::tool("rmmod", &["virtio_blk"]).is_ok()
    });
    assert_eq!(bus::disk_name(disk.name()), None);
    assert_eq!(bus::virtio_status(disk.name()), Some(ACKNOWLEDGE));
    interrupts_nobody(disk.vduse());
    modules::tool("modprobe", &["virtio_blk"]).unwrap();
    works(&disk);
}

fn unloading_virtio_net_takes_its_interface_away() {
    modules::tool("modprobe", &["virtio_net"]).unwrap();
    need_unused("virtio_net", 0);
    let tap = TapInterface::new(1);
    let shape = card::shape(1);
    let device = TestDevice::new(&shape.config());
    let served = card::serve(&shape, &device, &tap);
    let _loaded = Loaded(&["virtio_net"]);
    {
        let peer = Peer::new(device.name());
        peer.ping_both_ways(64);
        let (directory, _) = virtio(device.name());
        modules::tool("rmmod", &["virtio_net"]).unwrap();
        assert_eq!(driver_of(&directory), None);
        assert_eq!(
            sysfs::read(&directory.join("status")).unwrap(),
            "0x00000001"
        );
        interrupts_nobody(served.device());
        // virtio_net binds to the test's card again, and possibly to other cards of this machine.
        modules::tool("modprobe", &["virtio_net"]).unwrap();
        soon("the interface is there again", || {
            bus::interface(device.name()).is_some()
        });
    }
    let peer = Peer::new(device.name());
    peer.ping_both_ways(64);
}

fn unloading_virtiofs_takes_its_file_systems_away() {
    virtiofs::need_virtiofs();
    need_unused("virtiofs", 0);
    let live = LiveFs::new();
    std::fs::write(live.behind("file"), "there").unwrap();
    let _loaded = Loaded(&["virtiofs"]);
    {
        let mount = live.mount();
        assert_eq!(std::fs::read(mount.path("file")).unwrap(), b"there");
        modules::tool("rmmod", &["virtiofs"]).expect_err("the module was unloaded");
    }
    soon("virtiofs is unloaded", || {
        modules::tool("rmmod", &["virtiofs"]).is_ok()
    });
    assert_eq!(bus::virtio_status(live.device.name()), Some(ACKNOWLEDGE));
    interrupts_nobody(live.served.0.device());
    modules::tool("modprobe", &["virtiofs"]).unwrap();
    let mount = live.mount();
    assert_eq!(std::fs::read(mount.path("file")).unwrap(), b"there");
}

/// Binds a device to virtio-vdpa. The driver's probe must fail and leave the device status at
/// `status`. Returns the requests that the daemon received.
#[track_caller]
fn fails_to_bind(file: &Arc<Device>, name: &str, status: u8) -> (OnBus, Vec<Kind>) {
    let responder = Responder::ok(file);
    let on_bus = OnBus::add(name).unwrap();
    on_bus.bind(Driver::Virtio).unwrap();
    let (directory, _) = virtio(name);
    assert_eq!(driver_of(&directory), None);
    assert_eq!(bus::virtio_status(name), Some(status));
    (on_bus, responder.take_kinds())
}

fn a_disk_that_fails_before_it_is_ready_leaves_nothing_to_interrupt() {
    let mut config = blk::device_config(&unique_name(), 1 << 20, 1);
    // Sets an invalid block size.
    config.space[20..24].copy_from_slice(&3u32.to_le_bytes());
    let device = TestDevice::new(&config);
    let file = Arc::new(device.open_ready(1));
    let (on_bus, told) = fails_to_bind(&file, device.name(), UP_TO_FEATURES_OK | FAILED);
    let told_all = [
        RESET,
        ACKNOWLEDGE,
        ACKNOWLEDGE | DRIVER,
        UP_TO_FEATURES_OK,
        UP_TO_FEATURES_OK | FAILED,
    ]
    .map(Kind::SetStatus);
    assert_eq!(told, told_all);
    interrupts_nobody(&file);
    // No virtio driver drives the disk, so unbinding virtio-vdpa sends no reset to the daemon.
    let responder = Responder::ok(&file);
    on_bus.unbind(Driver::Virtio).unwrap();
    interrupts_nobody(&file);
    assert_eq!(responder.take_kinds(), []);
    drop(on_bus);
    drop(responder);
}

fn a_disk_that_fails_after_it_was_ready_leaves_nothing_to_interrupt() {
    let mut config = blk::device_config(&unique_name(), 1 << 20, 2);
    // The disk of the `vduse` library does not support zone reports, so virtio_blk's probe fails.
    config.features |= feature::BLK_ZONED;
    config.space.resize(96, 0);
    // Sets the size of a zone and the maximum size of an append, both in sectors, and the write
    // granularity in bytes. The zones are host-managed.
    config.space[72..76].copy_from_slice(&256u32.to_le_bytes());
    config.space[84..88].copy_from_slice(&64u32.to_le_bytes());
    config.space[88..92].copy_from_slice(&512u32.to_le_bytes());
    config.space[92] = 1;
    let device = TestDevice::new(&config);
    let served = Served::start(device.open_nonblocking(), 2, memory_file(1 << 20)).unwrap();
    let on_bus = OnBus::add(device.name()).unwrap();
    on_bus.bind(Driver::Virtio).unwrap();
    let (directory, _) = virtio(device.name());
    assert_eq!(driver_of(&directory), None);
    assert_eq!(
        bus::virtio_status(device.name()),
        Some(UP_TO_DRIVER_OK | FAILED)
    );
    let interrupts = || {
        // The VDUSE driver may accept or refuse these injections, but must not call the callbacks
        // of a driver that has failed or was unbound.
        let _ = served.device().inject_vq_irq(0);
        let _ = served.device().inject_vq_irq(1);
        let _ = served.device().inject_config_irq();
    };
    interrupts();
    on_bus.unbind(Driver::Virtio).unwrap();
    // Unbinding has freed the virtio device. A callback of virtio-vdpa would now access the freed
    // memory.
    interrupts();
    on_bus.bind(Driver::Vhost).unwrap();
    let vhost = Vhost::open(&bus::vhost_path(device.name()).unwrap()).unwrap();
    assert_eq!(vhost.status().unwrap(), RESET);
    interrupts_nobody(served.device());
    drop(vhost);
    drop(on_bus);
    drop(served);
}

fn a_file_system_whose_tag_is_taken_fails_and_is_bound_later() {
    let first = LiveFs::new();
    let mut config = fs::device_config(&unique_name());
    // Gives the new file system the tag of the first one.
    let tag = first.device.name().to_owned();
    config.space[..36].fill(0);
    config.space[..tag.len()].copy_from_slice(tag.as_bytes());
    let device = TestDevice::new(&config);
    let file = Arc::new(device.open_ready(fs::QUEUES));
    // virtiofs sets `DRIVER_OK`, then finds that another file system has the tag, and resets the
    // device.
    let (on_bus, told) = fails_to_bind(&file, device.name(), FAILED);
    let told_all = [
        RESET,
        ACKNOWLEDGE,
        ACKNOWLEDGE | DRIVER,
        UP_TO_FEATURES_OK,
        UP_TO_DRIVER_OK,
        RESET,
        FAILED,
    ]
    .map(Kind::SetStatus);
    assert_eq!(told, told_all);
    interrupts_nobody(&file);
    drop(first);
    let scratch = Scratch::new();
    std::fs::create_dir(scratch.path("files")).unwrap();
    std::fs::write(scratch.path("files/file"), "there").unwrap();
    drop(file);
    let files = fs::Files::new(&scratch.path("files"));
    let sizes = [256; fs::QUEUES as usize];
    let server = Server::new(device.open_nonblocking(), &sizes, files).unwrap();
    let served = Serving::run(server);
    let (_, name) = virtio(device.name());
    on_virtio_bus("virtiofs", "bind", &name).unwrap();
    let mount = Mount::new(&tag).unwrap();
    assert_eq!(std::fs::read(mount.path("file")).unwrap(), b"there");
    drop(mount);
    drop(on_bus);
    drop(served);
}

fn a_client_that_gives_up_leaves_nothing_to_interrupt() {
    let device = TestDevice::disk();
    let file = Arc::new(device.open_ready(1));
    let on_bus = OnBus::add(device.name()).unwrap();
    on_bus.bind(Driver::Vhost).unwrap();
    let responder = Responder::ok(&file);
    let vhost = Vhost::open(&bus::vhost_path(device.name()).unwrap()).unwrap();
    vhost.set_owner().unwrap();
    let [call, config] = [(); 2].map(|()| EventFd::new().unwrap());
    vhost.set_call(0, Some(call.as_fd())).unwrap();
    vhost.set_config_call(config.as_fd()).unwrap();
    vhost.enable_queue(0).unwrap();
    vhost.set_status(UP_TO_DRIVER_OK).unwrap();
    file.inject_vq_irq(0).unwrap();
    soon("the interrupt arrives", || call.take().unwrap() == 1);
    vhost.set_status(UP_TO_DRIVER_OK | FAILED).unwrap();
    let _ = file.inject_vq_irq(0);
    let _ = file.inject_config_irq();
    // Without a reset, a failed driver does not become ready when it writes `DRIVER_OK` again.
    vhost.set_status(UP_TO_DRIVER_OK | FAILED).unwrap();
    let _ = file.inject_vq_irq(0);
    let _ = file.inject_config_irq();
    stays("nobody is interrupted", || {
        call.take().unwrap() + config.take().unwrap() == 0
    });
    drop(vhost);
    interrupts_nobody(&file);
    drop(on_bus);
    drop(responder);
}

/// The time limit for the removal of a device whose daemon is gone. It is shorter than
/// `msg_timeout`, which is 30 seconds.
const AT_ONCE: Duration = Duration::from_secs(15);

fn deleting_a_disk_of_a_dead_daemon_does_not_wait_for_one() {
    let LiveDisk {
        on_bus,
        served,
        device,
        ..
    } = LiveDisk::new(Shape::default());
    served.stop();
    let begin = Instant::now();
    on_bus.delete().unwrap();
    let took = begin.elapsed();
    device.destroy().unwrap();
    assert!(took < AT_ONCE, "{took:?}");
}

fn deleting_a_disk_of_a_daemon_that_was_killed_does_not_wait_for_one() {
    let scratch = Scratch::new();
    let path = scratch.file("disk", 4 << 20);
    let name = unique_name();
    let daemon = Daemon::start(&name, &path, 1, Manner::Serve);
    let device = TestDevice::adopt(&name);
    let timeout = sysfs::attribute(&name, "msg_timeout");
    let on_bus = OnBus::add(&name).unwrap();
    on_bus.bind(Driver::Virtio).unwrap();
    // virtio_blk has already read the partition table, so the disk is idle.
    assert!(bus::disk_name(&name).is_some());
    daemon.kill();
    // If `msg_timeout` is 0, requests have no timeout.
    sysfs::write(&timeout, "0").unwrap();
    let deleting = std::thread::spawn(move || on_bus.delete());
    let begin = Instant::now();
    while !deleting.is_finished() && begin.elapsed() < AT_ONCE {
        std::thread::sleep(Duration::from_millis(10));
    }
    let done = deleting.is_finished();
    let next = (!done).then(|| Daemon::start(&name, &path, 1, Manner::Serve));
    deleting.join().unwrap().unwrap();
    drop(next);
    drop(device);
    assert!(done, "it waited for a daemon");
}

fn unbinding_a_disk_of_a_dead_daemon_waits_no_longer_than_msg_timeout() {
    let LiveDisk {
        on_bus,
        served,
        device,
        ..
    } = LiveDisk::new(Shape::default());
    served.stop();
    let timeout = sysfs::attribute(device.name(), "msg_timeout");
    sysfs::write(&timeout, "2").unwrap();
    let begin = Instant::now();
    on_bus.unbind(Driver::Virtio).unwrap();
    assert!(begin.elapsed() < AT_ONCE);
    // With the next daemon, the next driver finds the device in its initial state.
    let next = Served::start(device.open_nonblocking(), 1, memory_file(4 << 20)).unwrap();
    interrupts_nobody(next.device());
    on_bus.bind(Driver::Virtio).unwrap();
    let disk = bus::disk_name(device.name()).expect("a disk");
    Block::open(&disk).unwrap().read(0, 4096).unwrap();
    drop(on_bus);
    drop(next);
}
