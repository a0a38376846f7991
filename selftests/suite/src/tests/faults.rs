// SPDX-License-Identifier: GPL-2.0

//! Injected faults on the code paths of the module, of its devices, and of daemons.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::event::{poll, PollFd, PollFlags};
use rustix::io::Errno;
use vduse::eventfd::EventFd;
use vduse::request::Answer;
use vduse::{Control, Device};
use vduse_uapi::IovaInfo;

use crate::environment;
use crate::lab::assert::fault_paths::{several, FEW, NEVER, NO_MEMORY, TIMES};
use crate::lab::daemon::answered::agree;
use crate::lab::daemon::replaceable::{Driven, ReplaceableDaemon};
use crate::lab::daemon::responder::Responder;
use crate::lab::device::bus::{self, Driver, OnBus};
use crate::lab::device::spaces;
use crate::lab::device::test_device::{disk_config, TestDevice};
use crate::lab::driver::vhost::{access, Vhost};
use crate::lab::kernel::fault_injection::{Below, Injection, Tally};
use crate::lab::kernel::loading::{self, LoadAgain};
use crate::lab::kernel::memory::page_of;
use crate::lab::kernel::sysfs;

tests![
    loading_the_module_fails_cleanly => 120,
    creating_a_device_fails_cleanly => 120,
    creating_groups_and_spaces_fails_cleanly => 120,
    destroying_a_device_fails_cleanly => 120,
    opening_fails_cleanly_and_closing_succeeds => 120,
    calls_of_a_daemon_fail_cleanly => 60,
    adding_a_device_fails_cleanly => 120,
    deleting_a_device_succeeds => 120,
    copies_from_and_to_a_daemon_fail_cleanly => 60,
];

/// Opens the module's file, which must not be compressed.
#[track_caller]
fn module_file() -> File {
    let path = std::env::var(environment::MODULE).unwrap_or_else(|_| {
        let output = std::process::Command::new("modinfo")
            .args(["-n", "vduse"])
            .output()
            .expect("modinfo");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    });
    File::open(path).expect("opening the module")
}

/// A guard that keeps KUnit from running the module's own tests, which take 10 s, when the module
/// is loaded.
///
/// Once the guard is dropped, loading the module runs the tests again.
struct WithoutKunit;

impl WithoutKunit {
    const FILTER: &str = "/sys/module/kunit/parameters/filter_glob";

    #[track_caller]
    fn new() -> Self {
        if Path::new(Self::FILTER).exists() {
            sysfs::write(Path::new(Self::FILTER), "none").expect("choosing tests");
        }
        Self
    }
}

impl Drop for WithoutKunit {
    fn drop(&mut self) {
        let _ = sysfs::write(Path::new(Self::FILTER), "*");
    }
}

fn loading_the_module_fails_cleanly() {
    let _without = WithoutKunit::new();
    let again = LoadAgain;
    let injection = Injection::of_allocations(Below::Initcall);
    let file = module_file();
    // This thread loads the module itself, because faults are injected into this thread only.
    let load = || Ok(rustix::system::finit_module(&file, c"", 0)?);
    loading::unload();
    // Each load takes a second, so the test loads the module only once per fault and does not count
    // leaked objects. kmemleak finds leaks instead. The test does not repeat a load that failed:
    // the next failing load gets one allocation further, which shows that the earlier load left
    // nothing behind that gets in the way.
    let tally = injection.each("loading the module", |fault| {
        if fault.hit(NO_MEMORY, load).is_some() {
            loading::unload();
        }
        assert!(!sysfs::directory("control").exists(), "{fault}");
        assert!(!Path::new("/sys/devices/vduse").exists(), "{fault}");
    });
    tally.note("loading the module");
    assert!(tally.failures > 0);
    drop(again);
    Control::open().unwrap();
}

fn creating(times: i64, path: &str, control: &Control, config: &vduse::DeviceConfig) {
    let injection = Injection::of_allocations(Below::Anything);
    several(times, [path], || {
        let tally = injection.each(path, |fault| {
            let made = fault.hit(NO_MEMORY, || control.create(config));
            if made.is_none() {
                assert!(!sysfs::directory(&config.name).exists(), "{fault}");
                assert!(!Device::path(&config.name).exists(), "{fault}");
                fault.again(|| control.create(config));
                // The second attempt has created a complete device.
                Device::open(&config.name).expect("opening it");
                sysfs::read(&sysfs::affinity(&config.name, config.queues - 1)).expect("reading");
            }
            control.destroy(&config.name).expect("destroying it");
        });
        [tally]
    });
}

fn creating_a_device_fails_cleanly() {
    let control = Control::open().unwrap();
    creating(FEW, "creating, version 0", &control, &disk_config());
}

fn creating_groups_and_spaces_fails_cleanly() {
    let control = Control::open_v1().unwrap();
    creating(
        FEW,
        "creating, version 1",
        &control,
        &spaces::config(3, 3, 4),
    );
}

fn destroying_a_device_fails_cleanly() {
    let injection = Injection::of_allocations(Below::Anything);
    let control = Control::open().unwrap();
    let config = disk_config();
    several(TIMES, ["destroying"], || {
        let tally = injection.each("destroying", |fault| {
            control.create(&config).expect("creating");
            let destroy = || control.destroy(&config.name);
            if fault.hit(NO_MEMORY, destroy).is_none() {
                // The failed attempt to destroy the device has left it unchanged.
                let device = Device::open(&config.name).expect("opening it");
                device.vq_setup(0, 256).expect("setting a queue up");
                drop(device);
                fault.again(destroy);
            }
            assert!(!sysfs::directory(&config.name).exists(), "{fault}");
        });
        [tally]
    });
}

fn opening_fails_cleanly_and_closing_succeeds() {
    let injection = Injection::of_allocations(Below::Anything);
    let device = TestDevice::disk();
    let paths = ["opening the control device", "opening", "closing"];
    several(TIMES, paths, || {
        let open = || Device::open(device.name());
        [
            injection.survived(paths[0], NO_MEMORY, Control::open, drop),
            injection.survived(paths[1], NO_MEMORY, open, drop),
            injection.each(paths[2], |fault| {
                let opened = open().expect("opening");
                fault.hit(NEVER, || {
                    drop(opened);
                    Ok(())
                });
                // A device can be open only once. So if it can be opened now, `drop` has closed it.
                drop(fault.again(open));
            }),
        ]
    });
}

fn calls_of_a_daemon_fail_cleanly() {
    let injection = Injection::of_allocations(Below::Anything);
    let device = TestDevice::disk();
    let file = device.open_nonblocking();
    let kick = EventFd::new().unwrap();
    let paths = [
        "VQ_SETUP",
        "VQ_SETUP_KICKFD",
        "VQ_GET_INFO",
        "DEV_SET_CONFIG",
        "DEV_GET_FEATURES",
    ];
    several(TIMES, paths, || {
        let survived = |path, operation: &dyn Fn() -> io::Result<()>| {
            injection.survived(path, NO_MEMORY, operation, drop)
        };
        [
            survived(paths[0], &|| file.vq_setup(0, 64)),
            survived(paths[1], &|| file.set_kick(0, kick.as_fd())),
            survived(paths[2], &|| file.vq_info(0).map(drop)),
            survived(paths[3], &|| file.set_config(0, &[0; 8])),
            survived(paths[4], &|| file.features().map(drop)),
        ]
    });
}

/// Adds a device to the bus with each fault in turn. Uses a new device for each fault, because a
/// device keeps the memory that is allocated when the device is first added.
#[track_caller]
fn adding(path: &str, injection: &Injection, make: impl Fn() -> ReplaceableDaemon) -> Tally {
    let vdpa = bus::vdpa();
    injection.each(path, |fault| {
        let daemon = make();
        let add = || vdpa.add(daemon.name(), "vduse");
        if fault.hit(NO_MEMORY, add).is_none() {
            assert!(!bus::directory(daemon.name()).exists(), "{fault}");
            fault.again(add);
        }
        assert!(bus::directory(daemon.name()).exists(), "{fault}");
        vdpa.delete(daemon.name()).expect("deleting");
        drop(daemon.running);
        daemon.device.destroy().expect("destroying");
    })
}

fn adding_a_device_fails_cleanly() {
    let injection = Injection::of_allocations(Below::Driver);
    let paths = ["adding a device of version 0", "of version 1"];
    several(FEW, paths, || {
        [
            adding(paths[0], &injection, ReplaceableDaemon::disk),
            adding(paths[1], &injection, || {
                ReplaceableDaemon::of_groups(&[0, 1, 1], 2, 3)
            }),
        ]
    });
}

fn deleting_a_device_succeeds() {
    let injection = Injection::of_allocations(Below::Driver);
    let vdpa = bus::vdpa();
    let paths = ["deleting a device", "deleting one bound to vhost"];
    several(FEW, paths, || {
        [false, true].map(|bound| {
            let mut daemon = ReplaceableDaemon::disk();
            injection.each("deleting", |fault| {
                vdpa.add(daemon.name(), "vduse").expect("adding");
                if bound {
                    bus::bind(daemon.name(), Driver::Vhost).expect("binding");
                }
                fault.hit(NEVER, || vdpa.delete(daemon.name()));
                assert!(!bus::directory(daemon.name()).exists(), "{fault}");
                daemon.replace_if_broken();
            })
        })
    });
}

fn copies_from_and_to_a_daemon_fail_cleanly() {
    const FAULT: &[Errno] = &[Errno::FAULT];
    let injection = Injection::of_copies();
    let control = Control::open_v1().unwrap();
    let config = spaces::config(1, 1, 2);
    let created = injection.each("CREATE_DEV", |fault| {
        if fault.hit(FAULT, || control.create(&config)).is_none() {
            assert!(!sysfs::directory(&config.name).exists(), "{fault}");
            fault.again(|| control.create(&config));
        }
        control.destroy(&config.name).expect("destroying");
    });
    created.note("CREATE_DEV");
    let driven = Driven::new(2);
    driven.vhost.map_in(1, 0, &page_of(1), access::RW).unwrap();
    let file = driven.daemon.file();
    let kick = EventFd::new().unwrap();
    let info = IovaInfo {
        asid: 1,
        ..Default::default()
    };
    let descriptors = || {
        std::fs::read_dir("/proc/self/fd")
            .expect("descriptors")
            .count()
    };
    let before = descriptors();
    let calls: [(&str, &dyn Fn() -> io::Result<()>); 6] = [
        ("VQ_SETUP_KICKFD", &|| file.set_kick(0, kick.as_fd())),
        ("VQ_GET_INFO", &|| file.vq_info(0).map(drop)),
        ("DEV_GET_FEATURES", &|| file.features().map(drop)),
        ("DEV_SET_CONFIG", &|| file.set_config(0, &[0; 8])),
        ("IOTLB_GET_FD2", &|| file.iotlb_fd2(1, 0, 0).map(drop)),
        ("IOTLB_GET_INFO", &|| file.iotlb_info(info).map(drop)),
    ];
    for (call, operation) in calls {
        let tally = injection.survived(call, FAULT, operation, drop);
        tally.note(call);
        assert_eq!(tally.failures, tally.faults, "{call}");
        assert!(tally.faults > 0, "{call}");
        assert_eq!(descriptors(), before, "{call}");
    }
    reading_and_answering(&injection);
}

/// Checks that a request stays pending if the driver cannot copy the request to the daemon, or
/// cannot copy the answer from the daemon.
#[track_caller]
fn reading_and_answering(injection: &Injection) {
    let mut daemon = ReplaceableDaemon::disk();
    let on_bus = OnBus::add(daemon.name()).expect("adding");
    on_bus.bind(Driver::Vhost).expect("binding");
    let path = bus::vhost_path(daemon.name()).expect("a node");
    let (responder, file) = daemon.running.take().expect("a daemon");
    drop(responder);
    let paths = ["reading a request", "answering it"];
    let mut read = Tally::default();
    let answered = injection.each(paths[1], |fault| {
        let opened = std::thread::scope(|scope| {
            // Opening the vhost-vdpa node resets the device.
            let opening = scope.spawn(|| Vhost::open(&path));
            let mut fds = [PollFd::new(&file, PollFlags::IN)];
            poll(&mut fds, None).expect("waiting for a request");
            let mut request = None;
            read = injection.each(paths[0], |fault| {
                request = fault.hit(&[Errno::FAULT], || file.read_request());
            });
            let request = request.expect("a request");
            let answer = || file.answer(&request, Answer::Ok);
            // If the driver cannot copy an answer in full, it rejects the answer as too short.
            if fault.hit(&[Errno::INVAL], answer).is_none() {
                fault.again(answer);
            }
            opening.join().expect("a thread").expect("opening")
        });
        // Closing the vhost-vdpa node resets the device again, so a daemon must answer.
        let _responder = Responder::new(&file, agree);
        drop(opened);
    });
    read.note(paths[0]);
    answered.note(paths[1]);
    assert!(read.failures > 0 && answered.failures > 0);
}
