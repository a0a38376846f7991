// SPDX-License-Identifier: GPL-2.0

//! Allocations that fail, on every path, one after the other: the error is right, nothing is left
//! half made, nothing leaks.
//!
//! A failed operation is repeated, and then succeeds. Each path is run several times, and leaves
//! nothing. Where a path goes through much of the kernel, only allocations below the driver's own
//! code on the stack fail.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{mpsc, Arc, Mutex};
use std::time::Duration;

use rustix::event::{poll, PollFd, PollFlags};
use rustix::io::Errno;
use vduse::eventfd::EventFd;
use vduse::request::{Answer, Kind};
use vduse::{Control, Device, Mapping};
use vduse_uapi::{IovaInfo, IovaUmem};

use crate::environment;
use crate::lab::assert::counts::times_leave_nothing;
use crate::lab::assert::errors::fails_at;
use crate::lab::daemon::answered::agree;
use crate::lab::daemon::disk::{memory_file, Served};
use crate::lab::daemon::regions::first_byte;
use crate::lab::daemon::responder::Responder;
use crate::lab::device::bus::{self, Driver, OnBus};
use crate::lab::device::spaces;
use crate::lab::device::test_device::{disk_config, TestDevice};
use crate::lab::device::virtio::status::{ACKNOWLEDGE, RESET};
use crate::lab::driver::vhost::{self, access, Vhost};
use crate::lab::driver::virtio_disk::{LiveDisk, Shape};
use crate::lab::kernel::fault_injection::{Below, Fault, Injection, Tally};
use crate::lab::kernel::file_mapping::FileMapping;
use crate::lab::kernel::loading::{self, LoadAgain};
use crate::lab::kernel::memlock::{pinned_kib, unlimited_memlock};
use crate::lab::kernel::memory::{page_of, PAGE};
use crate::lab::kernel::probe::Prober;
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
    binding_to_vhost_fails_cleanly => 120,
    opening_through_vhost_fails_cleanly => 120,
    mapping_through_vhost_fails_cleanly_and_unmapping_succeeds => 120,
    moving_a_group_fails_cleanly => 120,
    requests_fail_cleanly => 120,
    finding_a_mapping_fails_cleanly => 60,
    binding_to_virtio_fails_cleanly => 240,
    deleting_a_disk_succeeds => 240,
    reading_and_writing_a_disk_succeeds => 240,
    mapping_the_domains_file_fails_cleanly => 120,
    registering_memory_fails_cleanly => 120,
    closing_with_memory_registered_succeeds => 120,
    copies_from_and_to_a_daemon_fail_cleanly => 60,
];

/// How often each path is run.
const TIMES: i64 = 4;

/// How often a slow path is run.
const FEW: i64 = 1;

/// The errors of a call that lacks memory.
const NO_MEMORY: &[Errno] = &[Errno::NOMEM];

/// The errors of a call that lacks memory, possibly for its request to the daemon, which then looks
/// as if the daemon had not answered.
const UNTOLD: &[Errno] = &[Errno::NOMEM, Errno::IO];

/// No errors, for a call that must not fail.
const NEVER: &[Errno] = &[];

/// Runs paths several times, which must leave nothing, and reports what the faults caused.
///
/// There must be at least one fault.
#[track_caller]
fn several<const N: usize>(times: i64, paths: [&str; N], mut go: impl FnMut() -> [Tally; N]) {
    let mut tallies = [Tally::default(); N];
    times_leave_nothing(times, || tallies = go());
    for (tally, path) in tallies.iter().zip(paths) {
        tally.note(path);
    }
    assert!(tallies.iter().any(|tally| tally.faults > 0));
}

/// Opens the module's file, which is assumed not to be compressed.
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

/// Loading without the module's own KUnit tests, which take 10 s each time.
///
/// On drop, KUnit runs all tests again.
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
    // Faults are injected into this thread.
    let load = || Ok(rustix::system::finit_module(&file, c"", 0)?);
    loading::unload();
    // Each load takes a second. A load that fails gets one allocation further than the one before,
    // which shows that the one before left nothing in its way. kmemleak finds the rest.
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
                // The device is complete.
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
                // The device is unchanged.
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
                // The device is not open any more.
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

/// A device that is not on the bus yet, and whose daemon answers.
struct Stage {
    daemon: Option<(Responder, Arc<Device>)>,
    device: TestDevice,
}

impl Stage {
    /// Creates a device of version 0.
    #[track_caller]
    fn disk() -> Self {
        Self::new(TestDevice::disk(), &[0])
    }

    /// Creates a device of version 1.
    #[track_caller]
    fn of_groups(queues: &[u32], groups: u32, spaces: u32) -> Self {
        let config = spaces::config(queues.len() as u16, groups, spaces);
        Self::new(spaces::create(&config).expect("creating"), queues)
    }

    #[track_caller]
    fn new(device: TestDevice, queues: &[u32]) -> Self {
        let mut stage = Self {
            daemon: None,
            device,
        };
        stage.begin();
        for (index, &group) in (0..).zip(queues) {
            spaces::set_up(stage.file(), index, group).expect("setting a queue up");
        }
        stage
    }

    #[track_caller]
    fn begin(&mut self) {
        let file = Arc::new(self.device.open_nonblocking());
        self.daemon = Some((Responder::new(&file, agree), file));
    }

    /// Returns the daemon's side of the device.
    fn file(&self) -> &Device {
        &self.daemon.as_ref().expect("a daemon").1
    }

    fn name(&self) -> &str {
        self.device.name()
    }

    /// Starts another daemon, which fixes the device, if the device has broken because a request to
    /// the daemon could not be allocated.
    #[track_caller]
    fn mend(&mut self) {
        if let Err(error) = self.file().features() {
            assert_eq!(Errno::from_io_error(&error), Some(Errno::PERM));
            self.daemon = None;
            self.begin();
        }
    }

    /// Returns the requests so far, and forgets them.
    fn take_kinds(&self) -> Vec<Kind> {
        self.daemon.as_ref().expect("a daemon").0.take_kinds()
    }
}

/// Adds devices, a new one each time: a device keeps what is allocated when it is first added.
#[track_caller]
fn adding(path: &str, injection: &Injection, make: impl Fn() -> Stage) -> Tally {
    let vdpa = bus::vdpa();
    injection.each(path, |fault| {
        let stage = make();
        let add = || vdpa.add(stage.name(), "vduse");
        if fault.hit(NO_MEMORY, add).is_none() {
            assert!(!bus::directory(stage.name()).exists(), "{fault}");
            fault.again(add);
        }
        assert!(bus::directory(stage.name()).exists(), "{fault}");
        vdpa.delete(stage.name()).expect("deleting");
        drop(stage.daemon);
        stage.device.destroy().expect("destroying");
    })
}

fn adding_a_device_fails_cleanly() {
    let injection = Injection::of_allocations(Below::Driver);
    let paths = ["adding a device of version 0", "of version 1"];
    several(FEW, paths, || {
        [
            adding(paths[0], &injection, Stage::disk),
            adding(paths[1], &injection, || Stage::of_groups(&[0, 1, 1], 2, 3)),
        ]
    });
}

fn deleting_a_device_succeeds() {
    let injection = Injection::of_allocations(Below::Driver);
    let vdpa = bus::vdpa();
    let paths = ["deleting a device", "deleting one bound to vhost"];
    several(FEW, paths, || {
        [false, true].map(|bound| {
            let mut stage = Stage::disk();
            injection.each("deleting", |fault| {
                vdpa.add(stage.name(), "vduse").expect("adding");
                if bound {
                    bus::bind(stage.name(), Driver::Vhost).expect("binding");
                }
                fault.hit(NEVER, || vdpa.delete(stage.name()));
                assert!(!bus::directory(stage.name()).exists(), "{fault}");
                stage.mend();
            })
        })
    });
}

fn binding_to_vhost_fails_cleanly() {
    let injection = Injection::of_allocations(Below::Anything);
    let stage = Stage::disk();
    let on_bus = OnBus::add(stage.name()).unwrap();
    let bind = || on_bus.bind(Driver::Vhost);
    let unbind = |()| on_bus.unbind(Driver::Vhost).expect("unbinding");
    several(FEW, ["binding to vhost"], || {
        [injection.survived("binding to vhost", NO_MEMORY, bind, unbind)]
    });
}

fn opening_through_vhost_fails_cleanly() {
    let injection = Injection::of_allocations(Below::Anything);
    let mut stage = Stage::disk();
    let on_bus = OnBus::add(stage.name()).unwrap();
    on_bus.bind(Driver::Vhost).unwrap();
    let path = bus::vhost_path(stage.name()).unwrap();
    let paths = ["opening through vhost", "closing"];
    several(FEW, paths, || {
        [
            injection.each(paths[0], |fault| {
                let opened = fault.hit(UNTOLD, || Vhost::open(&path));
                stage.mend();
                if opened.is_none() {
                    fault.again(|| Vhost::open(&path));
                }
            }),
            injection.each(paths[1], |fault| {
                let opened = Vhost::open(&path).expect("opening");
                opened.set_owner().expect("owning");
                opened.set_backend_features().expect("backend features");
                opened
                    .map(0x10_0000, &page_of(1), access::RW)
                    .expect("mapping");
                fault.hit(NEVER, || {
                    drop(opened);
                    Ok(())
                });
                stage.mend();
                // No mapping is left.
                fails_at(
                    stage.file().iotlb_fd(0, u64::MAX),
                    Errno::INVAL,
                    fault.number(),
                );
            }),
        ]
    });
    drop(on_bus);
}

/// A device of version 1, bound to vhost.
struct Driven {
    vhost: Vhost,
    _on_bus: OnBus,
    stage: Stage,
}

impl Driven {
    #[track_caller]
    fn new(spaces: u32) -> Self {
        let stage = Stage::of_groups(&[0], 1, spaces);
        let on_bus = OnBus::add(stage.name()).expect("adding");
        on_bus.bind(Driver::Vhost).expect("binding");
        Self {
            vhost: vhost::open(&stage.device),
            _on_bus: on_bus,
            stage,
        }
    }

    /// Starts another daemon, which fixes the device, if the device has broken.
    ///
    /// The new daemon has begun to answer when this returns: while vhost waits for an answer to a
    /// map, no thread of this process can be started, as the process's memory is locked.
    #[track_caller]
    fn mend(&mut self) {
        self.stage.mend();
        self.vhost.queue_base(0).expect("an answer");
    }

    /// Returns the first byte of what is mapped at `iova` in address space 1.
    fn byte(&self, iova: u64) -> io::Result<u8> {
        first_byte(self.stage.file(), 1, iova)
    }
}

fn mapping_through_vhost_fails_cleanly_and_unmapping_succeeds() {
    const HERE: u64 = 0x10_0000;
    const THERE: u64 = 0x20_0000;
    // vhost returns EFAULT for everything that goes wrong with a message.
    const REFUSED: &[Errno] = &[Errno::FAULT];
    let injection = Injection::of_allocations(Below::Driver);
    let page = page_of(1);
    let other = page_of(2);
    let paths = ["mapping through vhost", "unmapping"];
    several(TIMES, paths, || {
        let mut driven = Driven::new(3);
        driven
            .vhost
            .map_in(1, THERE, &other, access::RW)
            .expect("mapping");
        // The other mapping stays.
        let check = |driven: &Driven, fault: &Fault<'_>| {
            assert_eq!(driven.byte(THERE).expect("another page"), 2, "{fault}");
        };
        let mapped = injection.each(paths[0], |fault| {
            let map = |driven: &Driven| driven.vhost.map_in(1, HERE, &page, access::RW);
            let done = fault.hit(REFUSED, || map(&driven));
            driven.mend();
            check(&driven, fault);
            if done.is_none() {
                fails_at(driven.byte(HERE), Errno::INVAL, fault.number());
                fault.again(|| map(&driven));
            }
            assert_eq!(driven.byte(HERE).expect("a page"), 1, "{fault}");
            driven.vhost.unmap_in(1, HERE, PAGE).expect("unmapping");
        });
        let unmapped = injection.each(paths[1], |fault| {
            driven
                .vhost
                .map_in(1, HERE, &page, access::RW)
                .expect("mapping");
            // vhost ignores the result: the page belongs to the client again in any case.
            fault.hit(NEVER, || driven.vhost.unmap_in(1, HERE, PAGE));
            driven.mend();
            fails_at(driven.byte(HERE), Errno::INVAL, fault.number());
            check(&driven, fault);
        });
        [mapped, unmapped]
    });
}

fn moving_a_group_fails_cleanly() {
    /// What is allocated for an address space stays, so each fault has an address space of its own.
    const SPACES: u32 = 64;
    let injection = Injection::of_allocations(Below::Driver);
    several(FEW, ["moving a group"], || {
        let mut driven = Driven::new(SPACES);
        let tally = injection.each("moving a group", |fault| {
            let asid = fault.number();
            let go = |driven: &Driven| driven.vhost.set_group_asid(0, asid);
            let done = fault.hit(UNTOLD, || go(&driven));
            driven.mend();
            let asked = |driven: &Driven| {
                let is_it = |kind: &Kind| matches!(kind, Kind::SetGroupAsid { .. });
                driven.stage.take_kinds().iter().any(is_it)
            };
            if done.is_none() {
                assert!(!asked(&driven), "{fault}");
                fault.again(|| go(&driven));
                assert!(asked(&driven), "{fault}");
            }
            asked(&driven);
        });
        [tally]
    });
}

fn requests_fail_cleanly() {
    let injection = Injection::of_allocations(Below::Driver);
    let paths = [
        "setting the status",
        "resetting",
        "asking for a queue's state",
    ];
    several(TIMES, paths, || {
        let mut driven = Driven::new(2);
        // A daemon that cannot be told is cut off: its device breaks. A status then stays, and only
        // a reset takes effect.
        let told = |driven: &mut Driven, kind: &Kind, fault: &Fault<'_>| {
            let told = driven.stage.take_kinds().contains(kind);
            let broken = driven.stage.file().features().is_err();
            assert_eq!(told, !broken, "{fault}");
            driven.mend();
            told
        };
        let mut untold = [0; 3];
        let mut tell = |path: usize, status: u8| {
            injection.each(paths[path], |fault| {
                driven
                    .vhost
                    .set_status(ACKNOWLEDGE - status)
                    .expect("setting the status");
                driven.stage.take_kinds();
                // vhost ignores the failure of a status, but reports the failure of a reset.
                let errors = if status == RESET { UNTOLD } else { NEVER };
                let done = fault.hit(errors, || driven.vhost.set_status(status));
                let now = driven.vhost.status().expect("reading the status");
                if told(&mut driven, &Kind::SetStatus(status), fault) {
                    assert!(done.is_some(), "{fault}");
                    assert_eq!(now, status, "{fault}");
                } else {
                    untold[path] += 1;
                    // A reset takes effect even if the daemon is not told.
                    assert_eq!(now, 0, "{fault}");
                    fault.again(|| driven.vhost.set_status(status));
                    assert_eq!(
                        driven.vhost.status().expect("reading it"),
                        status,
                        "{fault}"
                    );
                    assert!(
                        told(&mut driven, &Kind::SetStatus(status), fault),
                        "{fault}"
                    );
                }
            })
        };
        let set = tell(0, ACKNOWLEDGE);
        let reset = tell(1, 0);
        let asked = injection.each(paths[2], |fault| {
            driven.stage.take_kinds();
            let ask = |driven: &Driven| driven.vhost.queue_base(0);
            let done = fault.hit(UNTOLD, || ask(&driven));
            let was_told = told(&mut driven, &Kind::GetVqState { index: 0 }, fault);
            assert_eq!(done.is_some(), was_told, "{fault}");
            if done.is_none() {
                untold[2] += 1;
                assert_eq!(fault.again(|| ask(&driven)), 0, "{fault}");
            }
        });
        let tallies = [set, reset, asked];
        // Only the driver's one allocation counts; the others are the kernel's own, which has
        // fallbacks.
        assert!(untold.iter().all(|&faults| faults == 1), "{untold:?}");
        tallies
    });
}

fn finding_a_mapping_fails_cleanly() {
    let injection = Injection::of_allocations(Below::Anything);
    let driven = Driven::new(2);
    driven.vhost.map_in(1, 0, &page_of(1), access::RW).unwrap();
    let file = driven.stage.file();
    let info = IovaInfo {
        asid: 1,
        ..Default::default()
    };
    // The descriptor table grows, which takes memory, at powers of two.
    raise_descriptor_limit();
    let mut others: Vec<File> = Vec::new();
    let open = || File::open("/dev/null").expect("opening a file");
    let lowest_free = || open().as_raw_fd();
    let found = injection.each("GET_FD", |fault| {
        let size = 64 << (fault.number() - 1);
        while others.last().is_none_or(|last| last.as_raw_fd() < size - 1) {
            others.push(open());
        }
        let find = || file.iotlb_fd2(1, 0, 0);
        if fault.hit(NO_MEMORY, find).is_none() {
            assert_eq!(lowest_free(), size, "{fault}");
            fault.again(find);
        }
        assert_eq!(lowest_free(), size, "{fault}");
    });
    found.note("GET_FD");
    let told = injection.survived("GET_INFO", NO_MEMORY, || file.iotlb_info(info), drop);
    told.note("GET_INFO");
    assert!(found.failures > 0);
}

/// Raises this process's limit of open files as far as the kernel allows.
#[track_caller]
fn raise_descriptor_limit() {
    use rustix::process::{setrlimit, Resource, Rlimit};
    let most = Some(1 << 20);
    let limit = Rlimit {
        current: most,
        maximum: most,
    };
    setrlimit(Resource::Nofile, limit).expect("setting RLIMIT_NOFILE");
}

/// A disk that is served.
struct Disk {
    served: Mutex<Option<Served>>,
    file: Arc<File>,
    device: TestDevice,
}

impl Disk {
    #[track_caller]
    fn new() -> Self {
        let device = TestDevice::disk();
        let file = memory_file(1 << 20);
        let served = Served::start(device.open_nonblocking(), 1, file.clone()).expect("serving");
        Self {
            served: Mutex::new(Some(served)),
            file,
            device,
        }
    }

    /// Starts another daemon, which fixes the device, if the device has broken.
    #[track_caller]
    fn mend(&self) {
        let mut served = self.served.lock().expect("the daemon");
        let broken = |served: &Served| served.device().features().is_err();
        if served.as_ref().is_some_and(broken) {
            *served = None;
            let device = self.device.open_nonblocking();
            *served = Some(Served::start(device, 1, self.file.clone()).expect("serving"));
        }
    }

    /// Runs an operation that waits for the disk, and starts the next daemon if the device breaks
    /// meanwhile.
    fn mended<T>(&self, operation: impl FnOnce() -> T) -> T {
        let (end, ended) = mpsc::channel::<()>();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let moment = Duration::from_millis(5);
                while ended.recv_timeout(moment) == Err(mpsc::RecvTimeoutError::Timeout) {
                    self.mend();
                }
            });
            let result = operation();
            drop(end);
            result
        })
    }

    /// Reads from the disk, which must be bound to virtio.
    #[track_caller]
    fn reads(&self) {
        let disk = bus::disk_name(self.device.name()).expect("a disk");
        let block = crate::lab::driver::block::Block::open(&disk).expect("opening the disk");
        block.read(0, 4096).expect("reading");
    }
}

fn binding_to_virtio_fails_cleanly() {
    let injection = Injection::of_allocations(Below::Driver);
    several(FEW, ["binding to virtio"], || {
        let disk = Disk::new();
        let on_bus = OnBus::add(disk.device.name()).expect("adding");
        let bind = || on_bus.bind(Driver::Virtio);
        let unbind = || on_bus.unbind(Driver::Virtio).expect("unbinding");
        let tally = injection.each("binding to virtio", |fault| {
            // The virtio device may exist without its driver.
            let bound = disk.mended(|| fault.hit(UNTOLD, bind));
            disk.mend();
            if bound.is_some() {
                unbind();
            }
            bind().expect("binding");
            disk.reads();
            unbind();
        });
        drop(on_bus);
        [tally]
    });
}

fn deleting_a_disk_succeeds() {
    let injection = Injection::of_allocations(Below::Driver);
    several(FEW, ["deleting a disk"], || {
        let disk = Disk::new();
        let tally = injection.each("deleting a disk", |fault| {
            let on_bus = OnBus::add(disk.device.name()).expect("adding");
            on_bus.bind(Driver::Virtio).expect("binding");
            disk.reads();
            disk.mended(|| fault.hit(NEVER, || on_bus.delete()));
            disk.mend();
            assert!(!bus::directory(disk.device.name()).exists(), "{fault}");
        });
        [tally]
    });
}

fn reading_and_writing_a_disk_succeeds() {
    const LEN: usize = 32 << 10;
    let injection = Injection::of_allocations(Below::Driver);
    // Each fault has a disk of its own. With so many disks, object counts vary from run to run, so
    // leaks are left to kmemleak.
    for (path, write) in [("reading", false), ("writing", true)] {
        let tally = injection.each(path, |fault| {
            // A disk keeps the pages that it has once used.
            let disk = LiveDisk::new(Shape::default());
            // With a scheduler, requests would not be started by the thread that makes them.
            let scheduler = Path::new("/sys/block")
                .join(disk.disk())
                .join("queue/scheduler");
            sysfs::write(&scheduler, "none").expect("choosing no scheduler");
            let block = disk.block();
            // The block layer retries.
            if write {
                fault.hit(NEVER, || block.write(0, &[7; LEN]));
            } else {
                disk.file
                    .write_all_at(&[7; LEN], 0)
                    .expect("writing to the file");
                let found = fault.hit(NEVER, || block.read(0, LEN)).expect("a read");
                assert!(found.iter().all(|&byte| byte == 7), "{fault}");
            }
            let found = block.read(0, LEN).expect("reading");
            assert!(found.iter().all(|&byte| byte == 7), "{fault}");
        });
        tally.note(path);
        assert!(tally.faults > 0);
    }
}

fn mapping_the_domains_file_fails_cleanly() {
    let injection = Injection::of_allocations(Below::Anything);
    let disk = LiveDisk::new(Shape::default());
    disk.block().read(0, 4096).unwrap();
    // The rings are above the bounce area.
    let region = disk.vduse().iotlb_fd(64 << 20, u64::MAX).unwrap();
    let map = || FileMapping::new(region.file.as_fd(), region.offset, PAGE as usize, true);
    let paths = ["mapping the domain's file", "a page of it"];
    several(TIMES, paths, || {
        [
            injection.survived(paths[0], NO_MEMORY, map, drop),
            injection.each(paths[1], |fault| {
                let mapping = map().expect("mapping");
                let prober = Prober::new();
                // The kernel does the access, and returns an error if there is no memory for a page
                // table.
                let look = || prober.read(mapping.address(), 64).map(drop);
                if fault.hit(&[Errno::NOMEM, Errno::FAULT], look).is_none() {
                    fault.again(look);
                }
            }),
        ]
    });
}

/// The size of a bounce area, in bytes.
const AREA: u64 = 1 << 20;

/// Returns a disk with a small bounce area in its first address space, and memory for that area.
#[track_caller]
fn disk_and_memory(spaces: u32) -> (LiveDisk, Mapping, IovaUmem) {
    unlimited_memlock();
    let disk = LiveDisk::new(Shape {
        bounce: AREA * u64::from(spaces.max(1)),
        spaces,
        ..Default::default()
    });
    disk.block().write(0, &[7; 4096]).expect("writing");
    let memory = Mapping::anonymous(AREA as usize).expect("memory");
    // Populates all pages.
    let bytes = memory.bytes();
    for at in (0..AREA as usize).step_by(PAGE as usize) {
        vm_memory::Bytes::write_slice(&bytes, &[1], at).expect("writing to memory");
    }
    let umem = IovaUmem {
        uaddr: memory.address() as u64,
        size: AREA,
        ..Default::default()
    };
    (disk, memory, umem)
}

fn registering_memory_fails_cleanly() {
    let injection = Injection::of_allocations(Below::Anything);
    let paths = [
        "registering memory, version 0",
        "deregistering it",
        "registering memory, version 1",
        "deregistering it",
    ];
    several(FEW, paths, || {
        let mut tallies = Vec::new();
        // A device keeps addresses for later, as long as it exists.
        for spaces in [0, 2] {
            let (disk, _memory, umem) = &disk_and_memory(spaces);
            let file = disk.vduse();
            // SAFETY: All access to the memory is volatile, and the memory stays until it is
            // deregistered.
            let register = || unsafe { file.register_umem(umem) };
            let deregister = || file.deregister_umem(umem);
            // Meanwhile, the daemon that serves the disk does not know of the memory.
            let works = |fault: &Fault<'_>| {
                let found = disk.block().read(0, 4096).expect("reading");
                assert!(found.iter().all(|&byte| byte == 7), "{fault}");
            };
            tallies.push(injection.each(paths[0], |fault| {
                if fault.hit(NO_MEMORY, register).is_none() {
                    assert_eq!(pinned_kib(), 0, "{fault}");
                    works(fault);
                    fault.again(register);
                }
                assert_eq!(pinned_kib(), AREA >> 10, "{fault}");
                deregister().expect("deregistering");
            }));
            tallies.push(injection.each(paths[1], |fault| {
                register().expect("registering");
                if fault.hit(NO_MEMORY, deregister).is_none() {
                    assert_eq!(pinned_kib(), AREA >> 10, "{fault}");
                    fault.again(deregister);
                }
                assert_eq!(pinned_kib(), 0, "{fault}");
                works(fault);
            }));
        }
        tallies.try_into().expect("four of them")
    });
}

fn closing_with_memory_registered_succeeds() {
    let injection = Injection::of_allocations(Below::Anything);
    let (disk, _memory, umem) = disk_and_memory(0);
    let LiveDisk {
        on_bus,
        served,
        device,
        file: data,
        ..
    } = disk;
    served.stop();
    several(TIMES, ["closing with memory registered"], || {
        let tally = injection.each("closing", |fault| {
            let file = device.open_nonblocking();
            // SAFETY: All access to the memory is volatile, and the memory stays until the file is
            // closed.
            unsafe { file.register_umem(&umem) }.expect("registering");
            fault.hit(NEVER, || {
                drop(file);
                Ok(())
            });
            assert_eq!(pinned_kib(), 0, "{fault}");
        });
        [tally]
    });
    let served = Served::start(device.open_nonblocking(), 1, data).unwrap();
    drop(on_bus);
    drop(served);
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
    let file = driven.stage.file();
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

/// Checks that a request stays pending if it cannot be copied to the daemon, or its answer from the
/// daemon.
#[track_caller]
fn reading_and_answering(injection: &Injection) {
    let mut stage = Stage::disk();
    let on_bus = OnBus::add(stage.name()).expect("adding");
    on_bus.bind(Driver::Vhost).expect("binding");
    let path = bus::vhost_path(stage.name()).expect("a node");
    let (responder, file) = stage.daemon.take().expect("a daemon");
    drop(responder);
    let paths = ["reading a request", "answering it"];
    let mut read = Tally::default();
    let answered = injection.each(paths[1], |fault| {
        let opened = std::thread::scope(|scope| {
            // Opening resets the device.
            let opening = scope.spawn(|| Vhost::open(&path));
            let mut fds = [PollFd::new(&file, PollFlags::IN)];
            poll(&mut fds, None).expect("waiting for a request");
            let mut request = None;
            read = injection.each(paths[0], |fault| {
                request = fault.hit(&[Errno::FAULT], || file.read_request());
            });
            let request = request.expect("a request");
            let answer = || file.answer(&request, Answer::Ok);
            // An answer that is not copied in full is too short to be one.
            if fault.hit(&[Errno::INVAL], answer).is_none() {
                fault.again(answer);
            }
            opening.join().expect("a thread").expect("opening")
        });
        // Closing resets the device again, which a daemon must answer.
        let _responder = Responder::new(&file, agree);
        drop(opened);
    });
    read.note(paths[0]);
    answered.note(paths[1]);
    assert!(read.failures > 0 && answered.failures > 0);
}
