// SPDX-License-Identifier: GPL-2.0

//! File systems: the kernel's virtiofs mounts a directory that the suite's own daemon exports.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::time::Duration;

use rustix::io::Errno;

use crate::lab::assert::data::assert_same;
use crate::lab::assert::errors::fails;
use crate::lab::assert::limit::in_time;
use crate::lab::assert::random::Random;
use crate::lab::assert::timing::{soon, stays};
use crate::lab::assert::waiting::Waiting;
use crate::lab::daemon::fs::{device_config, Asked, QUEUES, REQUEST_QUEUES};
use crate::lab::daemon::fuse::op;
use crate::lab::daemon::process::{Daemon, Manner};
use crate::lab::daemon::responder::Responder;
use crate::lab::device::bus::{self, Driver, OnBus};
use crate::lab::device::test_device::{unique_name, TestDevice};
use crate::lab::driver::block::Block;
use crate::lab::driver::exerciser::{exercise, exercise_on, Exerciser};
use crate::lab::driver::virtiofs::{need_virtiofs, LiveFs, Mount};
use crate::lab::kernel::cpu::run_on;
use crate::lab::kernel::sysfs;

tests![
    the_driver_finds_the_tag_and_the_queues,
    a_daemon_that_writes_the_tag_without_end_holds_no_driver_up,
    what_is_written_is_in_the_directory_and_read_back => 40,
    what_changes_in_the_directory_is_seen,
    a_directory_of_100_files_is_listed,
    files_are_cut_and_grow,
    errors_of_the_device_are_errors_of_the_driver,
    requests_larger_than_the_bounce_area_end,
    several_threads_on_both_queues_are_intact => 40,
    what_is_forgotten_goes_through_the_first_queue,
    rebinding_and_mounting_again_works,
    a_daemon_killed_with_a_read_begun_is_taken_over,
    several_kills_lose_nothing => 60,
    deleting_a_mounted_device_ends_and_its_users_get_errors,
    a_device_deleted_while_mounted_is_added_and_mounted_again,
    deleting_a_mounted_device_without_a_daemon_ends,
    deleting_waits_for_a_request_until_a_daemon_answers_it,
];

/// Checks that a daemon that writes the tag endlessly does not block virtiofs. virtiofs reads the
/// tag byte by byte, and reads again if the configuration space has changed meanwhile.
fn a_daemon_that_writes_the_tag_without_end_holds_no_driver_up() {
    need_virtiofs();
    let config = device_config(&unique_name());
    let device = TestDevice::new(&config);
    let file = Arc::new(device.open_ready(QUEUES));
    let _responder = Responder::ok(&file);
    let on_bus = OnBus::add(device.name()).unwrap();
    let stop = AtomicBool::new(false);
    let together = Barrier::new(5);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                together.wait();
                while !stop.load(Ordering::Relaxed) {
                    file.set_config(0, &config.space).unwrap();
                }
            });
        }
        together.wait();
        on_bus.bind(Driver::Virtio).unwrap();
        stop.store(true, Ordering::Relaxed);
    });
}

/// Makes the kernel drop all cached file data, directory entries and inodes.
#[track_caller]
fn drop_caches() {
    sysfs::write(Path::new("/proc/sys/vm/drop_caches"), "3").expect("dropping caches");
}

/// Returns random bytes.
fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut data = vec![0; len];
    Random::new(seed).fill(&mut data);
    data
}

/// Creates a file of `len` zeroes, and opens it so that access bypasses the page cache.
#[track_caller]
fn zeroes(path: &Path, len: u64) -> Block {
    let file = File::create_new(path).expect("creating a file");
    file.set_len(len).expect("its length");
    Block::open(path.to_str().expect("a path")).expect("opening a file")
}

/// Returns how many of virtiofs's instances have this tag.
fn instances(tag: &str) -> usize {
    let directory = Path::new("/sys/fs/virtiofs");
    let all = bus::children(directory, "").into_iter();
    all.filter(|instance| {
        let found = sysfs::read(&directory.join(instance).join("tag"));
        found.is_ok_and(|found| found == tag)
    })
    .count()
}

fn the_driver_finds_the_tag_and_the_queues() {
    let fs = LiveFs::new();
    let directory = bus::virtio_directory(fs.device.name()).expect("a virtio device");
    let driver = fs::read_link(directory.join("driver")).unwrap();
    assert!(driver.ends_with("virtiofs"), "{driver:?}");
    assert_eq!(instances(fs.device.name()), 1);
    for queue in 0..u32::from(QUEUES) {
        let info = fs.served.0.device().vq_info(queue).unwrap();
        // virtiofs uses no more request queues than the machine can have CPUs. Virtqueue 0 is not a
        // request queue.
        let wanted = queue < 2 || std::thread::available_parallelism().unwrap().get() > 1;
        assert!(!wanted || info.ready == 1, "{queue}");
    }
    // virtiofs sends no request before the mount.
    assert_eq!(fs.log().count(|_| true), 0);
    drop(fs.mount());
    assert_eq!(
        (fs.log().asked(op::INIT), fs.log().asked(op::DESTROY)),
        (1, 1)
    );
}

fn what_is_written_is_in_the_directory_and_read_back() {
    const LEN: usize = 8 << 20;
    let fs = LiveFs::new();
    let mount = fs.mount();
    let data = noise(LEN, 1);
    let mut file = File::create_new(mount.path("data")).unwrap();
    file.write_all(&data).unwrap();
    file.sync_all().unwrap();
    assert_same(
        &fs::read(fs.behind("data")).unwrap(),
        &data,
        "the directory",
    );
    drop(file);

    drop_caches();
    fs.log().clear();
    assert_same(&fs::read(mount.path("data")).unwrap(), &data, "the mount");
    // The data came from the daemon, at most 256 KiB in each request.
    assert!(fs.log().asked(op::READ) >= 32, "{:?}", fs.log());
    assert_eq!(mount.path("data").metadata().unwrap().len(), LEN as u64);
    let (ours, theirs) = (
        rustix::fs::statvfs(fs.directory()).unwrap(),
        rustix::fs::statvfs(mount.path("")).unwrap(),
    );
    assert_eq!(
        (ours.f_blocks, ours.f_bsize),
        (theirs.f_blocks, theirs.f_bsize)
    );
}

fn what_changes_in_the_directory_is_seen() {
    let fs = LiveFs::new();
    fs::write(fs.behind("data"), "before").unwrap();
    let mount = fs.mount();
    assert_eq!(fs::read(mount.path("data")).unwrap(), b"before");
    fs::write(fs.behind("data"), "after!").unwrap();
    fs::write(fs.behind("more"), "more").unwrap();
    drop_caches();
    assert_eq!(fs::read(mount.path("data")).unwrap(), b"after!");
    assert_eq!(fs::read(mount.path("more")).unwrap(), b"more");
}

fn a_directory_of_100_files_is_listed() {
    let fs = LiveFs::new();
    let mount = fs.mount();
    // The names are so long that the daemon needs several answers to list all of them.
    let name = |n: u64| format!("{n:0100}");
    for n in 0..100 {
        // Half of the files are created in the exported directory, and the others through the
        // mount.
        let path = if n < 50 {
            fs.behind(&name(n))
        } else {
            mount.path(&name(n))
        };
        fs::write(path, noise(n as usize, n)).unwrap();
    }
    let mut found: Vec<_> = fs::read_dir(mount.path(""))
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let len = entry.metadata().unwrap().len();
            (entry.file_name().into_string().unwrap(), len)
        })
        .collect();
    found.sort();
    assert_eq!(found.len(), 100);
    for (n, found) in (0..).zip(found) {
        assert_eq!(found, (name(n), n));
    }
    assert!(fs.log().asked(op::READDIR) > 2);
    assert_eq!(fs::read(mount.path(&name(7))).unwrap(), noise(7, 7));
    assert_eq!(fs::read(fs.behind(&name(97))).unwrap(), noise(97, 97));
}

fn files_are_cut_and_grow() {
    let fs = LiveFs::new();
    let mount = fs.mount();
    let path = mount.path("data");
    let data = noise(100_000, 3);
    fs::write(&path, &data).unwrap();
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .unwrap();
    file.set_len(10_001).unwrap();
    assert_same(
        &fs::read(fs.behind("data")).unwrap(),
        &data[..10_001],
        "cut",
    );
    file.set_len(20_000).unwrap();
    let mut grown = data[..10_001].to_vec();
    grown.resize(20_000, 0);
    let mut found = Vec::new();
    file.read_to_end(&mut found).unwrap();
    assert_same(&found, &grown, "grown");
    file.rewind().unwrap();
    file.write_all(b"start").unwrap();
    grown[..5].copy_from_slice(b"start");
    assert_same(
        &fs::read(fs.behind("data")).unwrap(),
        &grown,
        "the directory",
    );
    // Opening the file again for writing truncates it to nothing.
    fs::write(&path, "short").unwrap();
    assert_eq!(fs::read(fs.behind("data")).unwrap(), b"short");
}

fn errors_of_the_device_are_errors_of_the_driver() {
    let fs = LiveFs::new();
    let mount = fs.mount();
    fails(File::open(mount.path("nothing")), Errno::NOENT);
    fs::write(mount.path("data"), "data").unwrap();
    fails(File::create_new(mount.path("data")), Errno::EXIST);
    // The daemon does not support these operations.
    fails(fs::remove_file(mount.path("data")), Errno::NOSYS);
    fails(fs::create_dir(mount.path("directory")), Errno::NOSYS);
    // This error comes from the exported directory's own file system.
    fs::create_dir(fs.behind("directory")).unwrap();
    fails(File::open(mount.path("directory")), Errno::ISDIR);
    fails(
        Mount::new("a tag that no device has").map(drop),
        Errno::INVAL,
    );
}

fn requests_larger_than_the_bounce_area_end() {
    // Each address space has 256 KiB of the default bounce area. That is also the amount that
    // virtiofs tries to transfer in one request.
    let fs = LiveFs::with_spaces(256);
    let mount = fs.mount();
    let data = noise(1 << 20, 13);
    let file = zeroes(&mount.path("file"), data.len() as u64);
    file.write(0, &data).unwrap();
    assert_same(
        &fs::read(fs.behind("file")).unwrap(),
        &data,
        "the file behind",
    );
    assert_same(&file.read(0, data.len()).unwrap(), &data, "the file");
}

fn several_threads_on_both_queues_are_intact() {
    const LEN: u64 = 1 << 20;
    let fs = LiveFs::new();
    let mount = fs.mount();
    let names: Vec<String> = (0..4).map(|n| format!("data{n}")).collect();
    let blocks: Vec<Block> = names
        .iter()
        .map(|name| zeroes(&mount.path(name), LEN))
        .collect();
    let mut exercisers: Vec<Exerciser> = (1..)
        .zip(&blocks)
        .map(|(seed, block)| Exerciser::new(block, 0, LEN, 512 << 10, seed))
        .collect();
    let cpus = std::thread::available_parallelism().unwrap().get();
    let is_used = |queue: u16| {
        let data = |opcode| matches!(opcode, op::READ | op::WRITE);
        let requests = |asked: Asked| asked.queue == queue && data(asked.opcode);
        fs.log().count(requests) > 10
    };
    // virtiofs uses a different request queue on each CPU.
    exercise_on(
        &mut exercisers,
        |number| run_on(number % 2),
        |all| {
            std::thread::sleep(Duration::from_secs(3));
            all.go_on(10);
            soon("each queue is used", || {
                (1..=REQUEST_QUEUES).take(cpus).all(is_used)
            });
        },
    );
    for (exerciser, name) in exercisers.iter().zip(&names) {
        exerciser.check_disk();
        exerciser.check_file(&File::open(fs.behind(name)).unwrap());
    }
}

fn what_is_forgotten_goes_through_the_first_queue() {
    let fs = LiveFs::new();
    let mount = fs.mount();
    for n in 0..300 {
        // Forgetting all of these files takes more requests than the virtqueue has room for.
        fs::write(mount.path(&format!("{n}")), "").unwrap();
    }
    fs.log().clear();
    drop_caches();
    soon("300 files are forgotten", || {
        fs.log().asked(op::FORGET) >= 300
    });
    assert_eq!(
        fs.log()
            .count(|asked| (asked.queue == 0) != (asked.opcode == op::FORGET)),
        0
    );
    assert_eq!(fs::read(mount.path("299")).unwrap(), b"");
}

fn rebinding_and_mounting_again_works() {
    let fs = LiveFs::new();
    for round in 1..=5 {
        let mount = fs.mount();
        for before in 1..round {
            let found = fs::read(mount.path(&format!("{before}"))).unwrap();
            assert_same(&found, &noise(50_000, before), "a file of before");
        }
        fs::write(mount.path(&format!("{round}")), noise(50_000, round)).unwrap();
        drop(mount);
        assert_eq!(fs.log().asked(op::DESTROY), round as usize);
        // After each even round, the test mounts the file system again without rebinding the
        // device.
        if round % 2 == 0 {
            continue;
        }
        fs.on_bus.unbind(Driver::Virtio).unwrap();
        fails(Mount::new(fs.device.name()).map(drop), Errno::INVAL);
        fs.on_bus.bind(Driver::Virtio).unwrap();
    }
}

/// A file system whose daemon is a separate process.
type Remote = LiveFs<Option<Daemon>>;

fn start(name: &str, directory: &Path, manner: Manner) -> Daemon {
    Daemon::start(name, directory, QUEUES, manner)
}

impl Remote {
    #[track_caller]
    fn remote() -> Self {
        Self::serve(0, |device, directory| {
            Some(start(device.name(), directory, Manner::Serve))
        })
    }

    fn kill(&mut self) {
        if let Some(daemon) = self.served.take() {
            daemon.kill();
        }
    }

    /// Starts a new daemon in place of the killed one.
    #[track_caller]
    fn start(&mut self, manner: Manner) {
        self.served = Some(start(self.device.name(), &self.directory(), manner));
    }

    /// Waits until the daemon stalls while it handles a request.
    #[track_caller]
    fn stalls(&self) {
        let directory = self.directory();
        let daemon = self.served.as_ref().expect("a daemon");
        soon("the daemon stands still", || daemon.has_stalled(&directory));
    }
}

/// Creates a file of 64 KiB of random bytes, and opens the file through the mount. Returns the open
/// file and the bytes.
#[track_caller]
fn open_noise<S>(fs: &LiveFs<S>, mount: &Mount) -> (Block, Vec<u8>) {
    let data = noise(64 << 10, 5);
    fs::write(fs.behind("data"), &data).expect("writing to the directory");
    let path: PathBuf = mount.path("data");
    let block = Block::open(path.to_str().expect("a path")).expect("opening it");
    (block, data)
}

fn a_daemon_killed_with_a_read_begun_is_taken_over() {
    let mut fs = Remote::remote();
    let mount = fs.mount();
    let (block, data) = open_noise(&fs, &mount);
    fs.kill();
    fs.start(Manner::StallAfter(0));
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| block.read(0, 64 << 10).unwrap());
        fs.stalls();
        fs.kill();
        stays("the read is not answered", || !reader.is_finished());
        fs.start(Manner::Serve);
        assert_same(&reader.join().unwrap(), &data, "what was read");
    });
    // The third daemon must find both a file that only the first daemon has reported to virtiofs,
    // and a new file.
    assert_same(&block.read(4096, 4096).unwrap(), &data[4096..8192], "more");
    fs::write(mount.path("new"), "new").unwrap();
    assert_eq!(fs::read(fs.behind("new")).unwrap(), b"new");
}

fn several_kills_lose_nothing() {
    const LEN: u64 = 1 << 20;
    let mut fs = Remote::remote();
    let mount = fs.mount();
    let names = ["a", "b"];
    let blocks = names.map(|name| zeroes(&mount.path(name), LEN));
    let mut exercisers: Vec<Exerciser> = (1..)
        .zip(&blocks)
        .map(|(seed, block)| Exerciser::new(block, 0, LEN, 64 << 10, seed))
        .collect();
    exercise(&mut exercisers, |all| {
        for round in 0..8 {
            // The moment of the kill differs in each round.
            std::thread::sleep(Duration::from_millis(37 * round));
            all.go_on(5);
            fs.kill();
            fs.start(Manner::Serve);
        }
        all.go_on(5);
    });
    for (exerciser, name) in exercisers.iter().zip(names) {
        exerciser.check_disk();
        exerciser.check_file(&File::open(fs.behind(name)).unwrap());
    }
}

/// Asserts that a mounted file system whose device is gone can no longer be used.
#[track_caller]
fn is_gone(mount: &Mount, block: &Block) {
    fails(block.read(0, 4096).map(drop), Errno::NOTCONN);
    fails(block.write(0, &[1; 4096]), Errno::NOTCONN);
    fails(File::open(mount.path("never-seen")), Errno::NOTCONN);
    let statistics = rustix::fs::statvfs(mount.path(""));
    fails(statistics.map(drop).map_err(Into::into), Errno::NOTCONN);
}

fn deleting_a_mounted_device_ends_and_its_users_get_errors() {
    let fs = LiveFs::new();
    let mount = fs.mount();
    let (block, data) = open_noise(&fs, &mount);
    let counts = [(); 4].map(|()| AtomicU64::new(0));
    std::thread::scope(|scope| {
        let users: Vec<_> = (0..)
            .zip(&counts)
            .map(|(n, count)| {
                let (block, data) = (&block, &data);
                scope.spawn(move || loop {
                    match block.read(n * 4096, 4096) {
                        Ok(found) => {
                            let at = n as usize * 4096;
                            assert_same(&found, &data[at..at + 4096], "what was read");
                            count.fetch_add(1, Ordering::Relaxed);
                        }
                        Err(error) => break Errno::from_io_error(&error),
                    }
                })
            })
            .collect();
        soon("all of them read", || {
            counts
                .iter()
                .all(|count| count.load(Ordering::Relaxed) >= 10)
        });
        bus::vdpa().delete(fs.device.name()).unwrap();
        for user in users {
            assert_eq!(user.join().unwrap(), Some(Errno::NOTCONN));
        }
    });
    is_gone(&mount, &block);
    drop((block, mount));
    assert_eq!(fs.log().asked(op::DESTROY), 0);
}

fn a_device_deleted_while_mounted_is_added_and_mounted_again() {
    let fs = LiveFs::new();
    let mount = fs.mount();
    let (block, data) = open_noise(&fs, &mount);
    bus::vdpa().delete(fs.device.name()).unwrap();
    // Once the device is added again, it has a new file system. The new file system is independent
    // of the old one, which is still mounted.
    let again = OnBus::add(fs.device.name()).unwrap();
    again.bind(Driver::Virtio).unwrap();
    let mounted_again = fs.mount();
    let found = fs::read(mounted_again.path("data")).unwrap();
    assert_same(&found, &data, "mounted again");
    is_gone(&mount, &block);
    drop((block, mount));
    assert_eq!(fs.log().asked(op::DESTROY), 0);
    drop(mounted_again);
    assert_eq!(fs.log().asked(op::DESTROY), 1);
    again.delete().unwrap();
}

fn deleting_a_mounted_device_without_a_daemon_ends() {
    let mut fs = Remote::remote();
    let mount = fs.mount();
    let (block, _) = open_noise(&fs, &mount);
    let timeout = sysfs::attribute(fs.device.name(), "msg_timeout");
    sysfs::write(&timeout, "2").unwrap();
    fs.kill();
    in_time(Duration::from_secs(10), "deleting", || {
        bus::vdpa().delete(fs.device.name()).unwrap();
    });
    is_gone(&mount, &block);
}

/// Checks that deleting the device waits until a new daemon has answered virtiofs's pending
/// request. virtiofs waits without a time limit, and a new daemon can take over the device
/// meanwhile.
fn deleting_waits_for_a_request_until_a_daemon_answers_it() {
    let mut fs = Remote::remote();
    let mount = fs.mount();
    let (block, data) = open_noise(&fs, &mount);
    let name = fs.device.name().to_owned();
    fs.kill();
    fs.start(Manner::StallAfter(0));
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| block.read(0, 64 << 10));
        fs.stalls();
        fs.kill();
        let deleting = Waiting::new({
            let name = name.clone();
            move || bus::vdpa().delete(&name)
        });
        soon("the driver lets it go", || instances(&name) == 0);
        deleting.assert_waits();
        fails(block.read(0, 4096).map(drop), Errno::NOTCONN);
        fs.start(Manner::Serve);
        deleting.result().unwrap();
        assert_same(&reader.join().unwrap().unwrap(), &data, "what was read");
    });
    is_gone(&mount, &block);
}
