// SPDX-License-Identifier: GPL-2.0

//! Disks that our own daemon, `vduse-blk`, serves.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::Signal;

use crate::lab::assert::data::assert_same;
use crate::lab::assert::random::Random;
use crate::lab::assert::timing::soon;
use crate::lab::assert::waiting::Waiting;
use crate::lab::daemon::vduse_blk::{open, program, VduseBlk};
use crate::lab::device::bus::{self, Driver, OnBus};
use crate::lab::device::test_device::{unique_name, TestDevice};
use crate::lab::driver::bare_disk::open_vhost;
use crate::lab::driver::block::{sectors, SECTOR};
use crate::lab::driver::exerciser::{exercise, Exerciser};
use crate::lab::driver::ring::HandDriver;
use crate::lab::guest::qsd::tool;
use crate::lab::kernel::sysfs;
use crate::lab::run::report::need;
use crate::lab::run::scratch::Scratch;

tests![
    data_is_intact_with_and_without_the_page_cache,
    an_image_on_a_file_system_and_a_block_device_are_served_directly => 60,
    fio_verifies_mixed_sizes_on_two_queues => 90,
    a_file_system_survives_killed_daemons => 120,
    discarded_and_zeroed_sectors_are_zero,
    a_resize_is_seen,
    the_driver_sees_the_serial_number_and_the_limits,
    a_read_only_disk_rejects_writes,
    a_killed_daemon_is_taken_over_under_io => 60,
    a_killed_daemon_with_pinned_memory_is_taken_over_under_io => 60,
    a_daemon_that_was_told_to_end_leaves_its_disk_to_a_successor,
    a_request_beyond_the_end_is_an_error,
    buffers_at_any_address_are_read_to,
    a_suspended_disk_goes_on_after_it_was_resumed,
    a_pinned_disk_goes_from_the_kernel_to_a_client_of_vhost,
    what_cannot_be_served_is_said,
    the_daemon_is_ready_for_a_shortage_of_memory,
    a_daemon_that_may_not_lock_memory_says_so,
];

/// Runs two exercisers on a disk for some time. Returns what they have written, checked by reading.
#[track_caller]
fn exercise_disk(disk: &str, image: Option<&Path>, steps: u64) {
    let block = open(disk);
    let mut exercisers: Vec<Exerciser> = (0..2)
        .map(|n| Exerciser::new(&block, n << 20, 1 << 20, 128 << 10, n + 1))
        .collect();
    exercise(&mut exercisers, |all| all.go_on(steps));
    for exerciser in &exercisers {
        exerciser.check_disk();
        if let Some(image) = image {
            exerciser.check_file(&File::open(image).unwrap());
        }
    }
    block.flush().unwrap();
}

fn data_is_intact_with_and_without_the_page_cache() {
    for options in [
        &["--buffered"][..],
        &[],
        &["--pinned"],
        &["--buffered", "--pinned"],
    ] {
        let scratch = Scratch::new();
        let image = scratch.file("image", 4 << 20);
        let name = unique_name();
        let mut daemon = VduseBlk::start(&name, &image, options);
        let (on_bus, disk) = daemon.attach();
        if options.contains(&"--pinned") {
            // The bounce area is in memory of the daemon, from the first request on.
            open(&disk).read(0, 4096).unwrap();
            soon("the memory is pinned", || daemon.pinned() >= 64 << 10);
        }
        exercise_disk(&disk, Some(&image), 200);
        daemon.detach(on_bus);
        // No log is left of a device that is gone.
        assert!(!scratch.path("image.log").exists());
    }
}

/// A loop device on a file, detached on drop.
struct Loop(String);

impl Loop {
    #[track_caller]
    fn new(file: &Path) -> Self {
        tool("modprobe", &["loop"]);
        let output = Command::new("losetup")
            .args(["--find", "--show"])
            .arg(file)
            .output()
            .expect("losetup");
        let device = String::from_utf8(output.stdout).expect("text");
        assert!(output.status.success(), "losetup failed");
        Self(device.trim().to_owned())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.0]).status();
    }
}

/// A file system that is mounted, unmounted on drop.
struct Mounted(PathBuf);

impl Mounted {
    #[track_caller]
    fn new(device: &str, at: PathBuf) -> Self {
        std::fs::create_dir(&at).unwrap();
        tool("mount", &[device, at.to_str().unwrap()]);
        Self(at)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

/// Direct I/O on these goes straight to and from the bounce area, unlike on a file in memory.
fn an_image_on_a_file_system_and_a_block_device_are_served_directly() {
    need("mkfs.ext4", "-V");
    need("losetup", "--version");
    let scratch = Scratch::new();
    let device = Loop::new(&scratch.file("device", 64 << 20));
    {
        let name = unique_name();
        let mut daemon = VduseBlk::start(&name, Path::new(&device.0), &[]);
        let (on_bus, disk) = daemon.attach();
        exercise_disk(&disk, None, 100);
        daemon.detach(on_bus);
    }
    tool("mkfs.ext4", &["-q", "-F", &device.0]);
    let mounted = Mounted::new(&device.0, scratch.path("mounted"));
    for options in [&[][..], &["--pinned"]] {
        let image = mounted.0.join(format!("image{}", options.len()));
        File::create(&image).unwrap().set_len(8 << 20).unwrap();
        let mut daemon = VduseBlk::start(&unique_name(), &image, options);
        let (on_bus, disk) = daemon.attach();
        exercise_disk(&disk, Some(&image), 100);
        daemon.detach(on_bus);
    }
}

fn fio_verifies_mixed_sizes_on_two_queues() {
    need("fio", "--version");
    let scratch = Scratch::new();
    let image = scratch.file("image", 32 << 20);
    let mut daemon = VduseBlk::start(&unique_name(), &image, &["--queues", "2"]);
    let (on_bus, disk) = daemon.attach();
    tool(
        "fio",
        &[
            "--name=verify",
            &format!("--filename=/dev/{disk}"),
            "--rw=randwrite",
            "--bsrange=512-256k",
            "--blockalign=512",
            "--iodepth=16",
            "--ioengine=libaio",
            "--direct=1",
            "--numjobs=2",
            "--offset_increment=16m",
            "--size=12m",
            "--verify=crc32c",
            "--verify_fatal=1",
            "--do_verify=1",
            "--randseed=1",
        ],
    );
    daemon.detach(on_bus);
}

/// Creates, overwrites, renames, cuts and deletes files on a disk while its daemon is killed again
/// and again. Then the file system must be whole, and have what was written.
fn a_file_system_survives_killed_daemons() {
    const FILES: u64 = 40;
    need("mkfs.ext4", "-V");
    let scratch = Scratch::new();
    let image = scratch.file("image", 64 << 20);
    let name = unique_name();
    let device = TestDevice::adopt(&name);
    let mut daemon = VduseBlk::start(&name, &image, &["--queues", "2"]);
    let (on_bus, disk) = daemon.attach();
    let node = format!("/dev/{disk}");
    tool("mkfs.ext4", &["-q", "-F", &node]);
    let mut random = Random::new(7);
    let mut expected: HashMap<u64, Vec<u8>> = HashMap::new();
    for round in 0..4 {
        let mounted = Mounted::new(&node, scratch.path(&format!("mounted{round}")));
        let path = |file: u64| mounted.0.join(file.to_string());
        for (&file, data) in &expected {
            assert_same(
                &std::fs::read(path(file)).unwrap(),
                data,
                &format!("file {file}"),
            );
        }
        for step in 0..150 {
            let (file, other) = (random.below(FILES), random.below(FILES));
            match random.below(6) {
                0 if expected.remove(&file).is_some() => std::fs::remove_file(path(file)).unwrap(),
                1 if file != other && expected.contains_key(&file) => {
                    std::fs::rename(path(file), path(other)).unwrap();
                    let data = expected.remove(&file).unwrap();
                    expected.insert(other, data);
                }
                2 if expected.contains_key(&file) => {
                    let data = expected.get_mut(&file).unwrap();
                    data.truncate(data.len() / 2);
                    let open = OpenOptions::new().write(true).open(path(file)).unwrap();
                    open.set_len(data.len() as u64).unwrap();
                }
                _ => {
                    let mut data = vec![0; 1 + random.below(200_000) as usize];
                    random.fill(&mut data);
                    let mut open = File::create(path(file)).unwrap();
                    open.write_all(&data).unwrap();
                    if random.below(4) == 0 {
                        open.sync_all().unwrap();
                    }
                    expected.insert(file, data);
                }
            }
            if step % 50 == 49 {
                // The file system writes back meanwhile.
                let syncing = std::thread::spawn(rustix::fs::sync);
                daemon.kill();
                daemon.start_again();
                syncing.join().unwrap();
            }
        }
        drop(mounted);
        tool("e2fsck", &["-f", "-n", &node]);
    }
    assert!(!expected.is_empty());
    daemon.detach(on_bus);
    drop(device);
}

fn discarded_and_zeroed_sectors_are_zero() {
    need("blkdiscard", "--version");
    let scratch = Scratch::new();
    let image = scratch.file("image", 4 << 20);
    let mut daemon = VduseBlk::start(&unique_name(), &image, &[]);
    let (on_bus, disk) = daemon.attach();
    let node = format!("/dev/{disk}");
    let block = open(&disk);
    let mut expected = vec![0; 4 << 20];
    Random::new(1).fill(&mut expected);
    let blocks = || std::fs::metadata(&image).unwrap().blocks();
    for (options, is_hole) in [(&[][..], true), (&["--zeroout"], false)] {
        block.write(0, &expected).unwrap();
        let before = blocks();
        let range = ["--offset", "1048576", "--length", "1048576"];
        let arguments: Vec<&str> = options
            .iter()
            .copied()
            .chain(range)
            .chain([&*node])
            .collect();
        tool("blkdiscard", &arguments);
        let mut found = vec![0xee; 4 << 20];
        File::open(&image)
            .unwrap()
            .read_exact_at(&mut found, 0)
            .unwrap();
        let mut zeroed = expected.clone();
        zeroed[1 << 20..2 << 20].fill(0);
        assert_same(&found, &zeroed, "the image");
        let freed = before - blocks();
        assert_eq!(
            freed >= (1 << 20) / 512,
            is_hole,
            "{options:?}: {freed} blocks"
        );
    }
    daemon.detach(on_bus);
}

fn a_resize_is_seen() {
    let scratch = Scratch::new();
    let image = scratch.file("image", 16 << 20);
    let mut daemon = VduseBlk::start(&unique_name(), &image, &[]);
    let (on_bus, disk) = daemon.attach();
    let file = OpenOptions::new().write(true).open(&image).unwrap();
    for mebibytes in [32u64, 24] {
        file.set_len(mebibytes << 20).unwrap();
        daemon.signal(Signal::HUP);
        soon("the new size is seen", || {
            sectors(&disk) == Some((mebibytes << 20) / SECTOR)
        });
        let block = open(&disk);
        block.write((mebibytes << 20) - 4096, &[9; 4096]).unwrap();
    }
    // The file has become shorter, and the driver does not know yet.
    file.set_len(1 << 20).unwrap();
    let block = open(&disk);
    assert!(block.read(2 << 20, 4096).is_err());
    assert!(block.read(0, 4096).is_ok());
    daemon.detach(on_bus);
}

fn the_driver_sees_the_serial_number_and_the_limits() {
    let scratch = Scratch::new();
    let image = scratch.file("image", (1 << 20) + 100);
    let serial = "a serial number that is too long";
    let options = ["--serial", serial, "--queues", "3", "--queue-size", "32"];
    let mut daemon = VduseBlk::start(&unique_name(), &image, &options);
    let (on_bus, disk) = daemon.attach();
    let attribute = |name: &str| {
        let path = Path::new("/sys/block").join(&disk).join(name);
        sysfs::read(&path).expect("an attribute")
    };
    assert_eq!(attribute("serial").trim_end(), &serial[..20]);
    assert_eq!(sectors(&disk), Some((1 << 20) / SECTOR));
    assert_eq!(attribute("queue/max_segments").trim(), "30");
    assert_eq!(attribute("queue/optimal_io_size").trim(), "65536");
    assert_eq!(
        attribute("queue/discard_max_hw_bytes").trim(),
        (64u64 << 20).to_string()
    );
    assert_eq!(
        std::fs::read_dir(format!("/sys/block/{disk}/mq"))
            .unwrap()
            .count(),
        {
            // The driver uses no more queues than there are CPUs.
            std::thread::available_parallelism().unwrap().get().min(3)
        }
    );
    daemon.detach(on_bus);
}

fn a_read_only_disk_rejects_writes() {
    let scratch = Scratch::new();
    let image = scratch.file("image", 1 << 20);
    let mut daemon = VduseBlk::start(&unique_name(), &image, &["--read-only"]);
    let on_bus = daemon.add();
    on_bus.bind(Driver::Virtio).expect("binding");
    let name = on_bus.name().to_owned();
    soon("the disk appears", || bus::disk_name(&name).is_some());
    let disk = bus::disk_name(&name).expect("a disk");
    let path = Path::new("/sys/block").join(&disk);
    assert_eq!(sysfs::read(&path.join("ro")).unwrap().trim(), "1");
    assert_eq!(
        sysfs::read(&path.join("queue/discard_max_hw_bytes"))
            .unwrap()
            .trim(),
        "0"
    );
    let mut first = [1; 512];
    let node = File::open(format!("/dev/{disk}")).unwrap();
    node.read_exact_at(&mut first, 0).unwrap();
    assert_eq!(first, [0; 512]);
    drop(node);
    daemon.detach(on_bus);
}

fn a_killed_daemon_is_taken_over_under_io() {
    takes_over(&["--queues", "2"]);
}

/// The requests in flight are in memory of the daemon that is killed.
fn a_killed_daemon_with_pinned_memory_is_taken_over_under_io() {
    takes_over(&["--queues", "2", "--pinned"]);
}

#[track_caller]
fn takes_over(options: &[&str]) {
    let scratch = Scratch::new();
    let image = scratch.file("image", 4 << 20);
    let name = unique_name();
    let device = TestDevice::adopt(&name);
    let mut daemon = VduseBlk::start(&name, &image, options);
    let (on_bus, disk) = daemon.attach();
    let block = open(&disk);
    let mut exercisers: Vec<Exerciser> = (0..4)
        .map(|n| Exerciser::new(&block, n << 20, 1 << 20, 64 << 10, n + 1))
        .collect();
    exercise(&mut exercisers, |all| {
        for _ in 0..20 {
            all.go_on(3);
            daemon.kill();
            daemon.start_again();
        }
        all.go_on(5);
    });
    for exerciser in &exercisers {
        exerciser.check_disk();
        exerciser.check_file(&File::open(&image).unwrap());
    }
    drop(exercisers);
    drop(block);
    daemon.detach(on_bus);
    drop(device);
}

fn a_daemon_that_was_told_to_end_leaves_its_disk_to_a_successor() {
    let scratch = Scratch::new();
    let image = scratch.file("image", 1 << 20);
    let name = unique_name();
    let device = TestDevice::adopt(&name);
    let mut daemon = VduseBlk::start(&name, &image, &[]);
    let (on_bus, disk) = daemon.attach();
    let block = open(&disk);
    block.write(0, &[7; 4096]).unwrap();
    assert!(daemon.stop().success());
    let reading = Waiting::new(move || block.read(0, 4096));
    reading.assert_waits();
    // The successor finds a larger image.
    let file = OpenOptions::new().write(true).open(&image).unwrap();
    file.set_len(2 << 20).unwrap();
    daemon.start_again();
    assert_same(&reading.result().unwrap(), &[7; 4096], "what was read");
    soon("the new size is seen", || {
        sectors(&disk) == Some((2 << 20) / SECTOR)
    });
    daemon.detach(on_bus);
    drop(device);
}

/// Starts the daemon for a disk of 1 MiB whose sectors have their number as contents, and passes a
/// driver of its first virtqueue to `test`.
#[track_caller]
fn with_hand_driver(options: &[&str], test: impl FnOnce(&mut HandDriver)) {
    with_hand_driver_after(options, |_, _| (), test);
}

/// Variant of [`with_hand_driver`] that first passes the daemon and the device to `before`.
#[track_caller]
fn with_hand_driver_after(
    options: &[&str],
    before: impl FnOnce(&VduseBlk, &OnBus),
    test: impl FnOnce(&mut HandDriver),
) {
    const IOVA: u64 = 0x10_0000;
    let scratch = Scratch::new();
    let image = scratch.path("image");
    let contents: Vec<u8> = (0..2048u32)
        .flat_map(|sector| [sector as u8; 512])
        .collect();
    std::fs::write(&image, contents).unwrap();
    let mut daemon = VduseBlk::start(&unique_name(), &image, options);
    let on_bus = daemon.add();
    before(&daemon, &on_bus);
    on_bus.bind(Driver::Vhost).expect("binding");
    let mut driver = HandDriver::prepare(open_vhost(on_bus.name()), IOVA);
    driver.set_queue_up();
    driver.start();
    test(&mut driver);
    drop(driver);
    daemon.detach(on_bus);
}

fn a_request_beyond_the_end_is_an_error() {
    const IO_ERROR: u8 = 1;
    with_hand_driver(&["--queues", "1"], |driver| {
        assert_same(&driver.read(2047), &[255; 512], "the last sector");
        for sector in [2048, u64::MAX / 512, u64::MAX] {
            driver.submit_read(sector);
            assert_eq!(driver.finish_read().1, IO_ERROR, "sector {sector}");
        }
        assert_same(&driver.read(3), &[3; 512], "sector 3");
    });
}

fn buffers_at_any_address_are_read_to() {
    const OTHER: u64 = 0x20_0000;
    for options in [&["--queues", "1"][..], &["--queues", "1", "--buffered"]] {
        with_hand_driver(options, |driver| {
            let memory = crate::lab::kernel::memory::file(0x2000);
            let memory =
                vduse::Mapping::of_file(memory.as_fd(), 0, 0x2000, vduse_uapi::ACCESS_RW).unwrap();
            driver.vhost.map(OTHER, &memory, 3).expect("mapping");
            for offset in [0, 1, 0xfff, 0x1e00] {
                assert_eq!(driver.read_to(5, OTHER + offset), Some(0));
                let mut found = vec![0; 512];
                let bytes = memory.slice(offset as usize, 512).unwrap();
                bytes.copy_to(&mut found);
                assert_same(&found, &[5; 512], &format!("at {offset:#x}"));
                bytes.copy_from(&[0xee; 512]);
            }
        });
    }
}

fn a_suspended_disk_goes_on_after_it_was_resumed() {
    with_hand_driver(&["--queues", "1"], |driver| {
        for sector in 0..3 {
            assert_same(&driver.read(sector), &[sector as u8; 512], "before");
            driver.vhost.suspend().expect("suspending");
            let used = driver.used_index();
            driver.submit_read(sector + 10);
            std::thread::sleep(std::time::Duration::from_millis(100));
            assert_eq!(driver.used_index(), used);
            driver.vhost.resume().expect("resuming");
            let (data, status) = driver.finish_read();
            assert_eq!(status, 0);
            assert_same(&data, &[sector as u8 + 10; 512], "after");
        }
    });
}

/// The bounce area is at the IOVAs of the client's memory, and must not be taken for it.
fn a_pinned_disk_goes_from_the_kernel_to_a_client_of_vhost() {
    let use_by_kernel = |daemon: &VduseBlk, on_bus: &OnBus| {
        on_bus.bind(Driver::Virtio).expect("binding");
        let name = on_bus.name();
        soon("the disk appears", || bus::disk_name(name).is_some());
        let block = open(&bus::disk_name(name).expect("a disk"));
        assert_same(&block.read(512, 512).unwrap(), &[1; 512], "sector 1");
        soon("the memory is pinned", || daemon.pinned() >= 64 << 10);
        assert_same(&block.read(1024, 512).unwrap(), &[2; 512], "sector 2");
        drop(block);
        on_bus.unbind(Driver::Virtio).expect("unbinding");
    };
    with_hand_driver_after(&["--queues", "1", "--pinned"], use_by_kernel, |driver| {
        assert_same(&driver.read(7), &[7; 512], "sector 7");
    });
}

/// Runs the program, which must fail with an exit status of `status`. Returns what it says.
#[track_caller]
fn fails(arguments: &[&str], status: i32) -> String {
    let output = Command::new(program()).args(arguments).output();
    let output = output.expect("running vduse-blk");
    assert_eq!(output.status.code(), Some(status), "{arguments:?}");
    String::from_utf8(output.stderr).expect("text")
}

fn what_cannot_be_served_is_said() {
    let scratch = Scratch::new();
    let image = scratch.file("image", 1 << 20);
    let path = image.to_str().unwrap();
    assert!(fails(&["--name", "d", "--fast", path], 2).contains("--fast"));
    assert!(fails(&[path], 2).contains("--name"));
    let missing = scratch.path("missing");
    let missing = missing.to_str().unwrap();
    assert!(fails(&["--name", "d", missing], 1).contains(missing));
    assert!(fails(&["--name", "d", "/dev/null"], 1).contains("neither"));

    let name = unique_name();
    let mut daemon = VduseBlk::start(&name, &image, &["--queues", "2"]);
    let (on_bus, _) = daemon.attach();
    assert!(fails(&["--name", "other", path], 1).contains("another program uses it"));
    assert!(fails(&["--name", "other", "--read-only", path], 1).contains("another program"));
    let second = scratch.file("second", 1 << 20);
    let second = second.to_str().unwrap();
    let log = scratch.path("log");
    let log = log.to_str().unwrap();
    let busy = fails(&["--name", &name, "--log", log, second], 1);
    assert!(busy.contains("taking over"), "{busy}");
    assert!(daemon.stop().success());
    let three = ["--name", &name, "--log", log, "--queues", "3", path];
    assert!(fails(&three, 1).contains("2 virtqueues"));
    let log = scratch.path("image.log");
    let saved = scratch.path("saved");
    std::fs::rename(&log, &saved).unwrap();
    let without = ["--name", &name, "--log", log.to_str().unwrap(), path];
    assert!(fails(&without, 1).contains("--log names it"));
    let image_as_log = ["--name", &name, "--log", second, path];
    assert!(fails(&image_as_log, 1).contains("no log"));
    let small = ["--name", &name, "--queue-size", "128", path];
    assert!(fails(&small, 1).contains("256 entries"));
    std::fs::rename(&saved, &log).unwrap();
    daemon.start_again();
    daemon.detach(on_bus);
}

/// The flag of tasks for which the kernel allocates without I/O.
const PF_MEMALLOC_NOIO: u64 = 1 << 19;

/// The flag of tasks that are not slowed down because of the dirty pages of others.
const PF_LOCAL_THROTTLE: u64 = 1 << 20;

fn the_daemon_is_ready_for_a_shortage_of_memory() {
    let scratch = Scratch::new();
    let image = scratch.file("image", 4 << 20);
    let options = ["--queues", "2", "--buffered", "--for-swap"];
    let mut daemon = VduseBlk::start(&unique_name(), &image, &options);
    let (on_bus, disk) = daemon.attach();
    exercise_disk(&disk, Some(&image), 50);
    // A thread's flags are the seventh field after its name.
    let flags = |stat: &str| -> u64 {
        let fields = stat.rsplit(") ").next().expect("fields");
        let flags = fields.split_whitespace().nth(6).expect("flags");
        flags.parse().expect("a number")
    };
    let process = daemon.directory();
    let mut names = Vec::new();
    for thread in std::fs::read_dir(process.join("task")).unwrap() {
        let stat = std::fs::read_to_string(thread.unwrap().path().join("stat")).unwrap();
        let wanted = PF_MEMALLOC_NOIO | PF_LOCAL_THROTTLE;
        assert_eq!(flags(&stat) & wanted, wanted, "{stat}");
        names.push(stat);
    }
    // io_uring's own threads, which execute requests on a file in memory, are among them.
    for name in ["(vduse-blk)", "(vq0)", "(vq1)", "(iou-wrk-"] {
        assert!(names.iter().any(|stat| stat.contains(name)), "no {name}");
    }
    let score = std::fs::read_to_string(process.join("oom_score_adj")).unwrap();
    assert_eq!(score.trim(), "-1000");
    // All of the program's memory is locked. Its stacks and the reserves of its heap are, once touched.
    let text = std::fs::read_to_string(process.join("smaps")).unwrap();
    let mut mapping = "";
    let mut locked = 0;
    for line in text.lines() {
        let size = |line: &str| -> u64 {
            let number = line.split_whitespace().nth(1).expect("a size");
            number.parse().expect("a number")
        };
        if line
            .split_whitespace()
            .next()
            .is_some_and(|word| word.contains('-'))
        {
            mapping = line;
        } else if line.starts_with("Anonymous:") && size(line) > 0 {
            locked = size(line);
        } else if line.starts_with("VmFlags:") {
            let is_special = ["[v", "/dev/", "anon_inode"]
                .iter()
                .any(|name| mapping.contains(name));
            assert!(
                line.contains(" lo") || is_special || locked == 0,
                "{mapping}: {line}"
            );
            locked = 0;
        }
    }
    daemon.detach(on_bus);
}

/// Runs the program without the privileges that it needs while memory is short.
fn unprivileged(arguments: &[&str]) -> Command {
    let mut command = Command::new("prlimit");
    command.args(["--memlock=65536:65536", "setpriv"]);
    command.args(["--bounding-set=-sys_resource,-ipc_lock", "--inh-caps=-all"]);
    command.arg("--").arg(program()).args(arguments);
    command
}

fn a_daemon_that_may_not_lock_memory_says_so() {
    need("setpriv", "--version");
    let scratch = Scratch::new();
    let image = scratch.file("image", 1 << 20);
    let (path, log) = (image.to_str().unwrap(), scratch.path("log"));
    let name = unique_name();
    let arguments = ["--name", &name, "--log", log.to_str().unwrap(), path];
    let output = unprivileged(&[&["--for-swap"][..], &arguments].concat()).output();
    let output = output.expect("running vduse-blk");
    let said = String::from_utf8(output.stderr).expect("text");
    assert_eq!(output.status.code(), Some(1), "{said}");
    for part in [
        "locking memory: the limit is 64 KiB: needs CAP_IPC_LOCK",
        "becoming an I/O flusher: ",
        "needs CAP_SYS_RESOURCE",
        "being spared by the OOM killer: ",
    ] {
        assert!(said.contains(part), "{said}");
    }

    // Without the option, it serves the disk.
    let mut child = unprivileged(&arguments)
        .stderr(Stdio::piped())
        .spawn()
        .expect("starting vduse-blk");
    let mut line = String::new();
    let said = child.stderr.take().expect("a pipe");
    BufReader::new(said).read_line(&mut line).expect("a line");
    assert!(line.contains("do not swap to this disk: "), "{line}");
    let device = TestDevice::adopt(&name);
    let on_bus = OnBus::add_soon(&name);
    on_bus.bind(Driver::Virtio).expect("binding");
    soon("the disk appears", || bus::disk_name(&name).is_some());
    open(&bus::disk_name(&name).expect("a disk"))
        .read(0, 4096)
        .expect("reading");
    on_bus.delete().expect("deleting");
    let _ = child.kill();
    let _ = child.wait();
    drop(device);
}
