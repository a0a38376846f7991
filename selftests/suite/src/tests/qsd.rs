// SPDX-License-Identifier: GPL-2.0

//! Disks that an unmodified qemu-storage-daemon serves and the kernel's virtio_blk drives.

use std::path::Path;

use crate::lab::assert::data::assert_same;
use crate::lab::assert::random::Random;
use crate::lab::assert::timing::soon;
use crate::lab::assert::waiting::Waiting;
use crate::lab::daemon::interrupt_on_drop::InterruptOnDrop;
use crate::lab::device::bus::{self, Driver, OnBus};
use crate::lab::device::test_device::{unique_name, TestDevice};
use crate::lab::driver::block::{sectors, Block};
use crate::lab::driver::exerciser::{exercise, Exerciser};
use crate::lab::driver::ring;
use crate::lab::guest::qsd::{tool, Qsd};
use crate::lab::run::report::need;
use crate::lab::run::scratch::Scratch;

tests![
    files_survive_three_detach_attach_and_daemon_restart_cycles => 120,
    fio_verifies_mixed_sizes_at_depth_16 => 90,
    a_live_resize_is_seen => 30,
    a_killed_daemon_is_taken_over => 60,
    a_daemon_killed_before_it_interrupts_is_taken_over => 60,
];

/// Starts the daemon, puts its disk on the bus, and binds the disk to virtio_blk.
#[track_caller]
fn attach(name: &str, image: &Path) -> (OnBus, Qsd, String) {
    attach_to(Qsd::start(name, image), name)
}

#[track_caller]
fn attach_to(mut qsd: Qsd, name: &str) -> (OnBus, Qsd, String) {
    let on_bus = qsd.add(name);
    on_bus.bind(Driver::Virtio).expect("binding");
    let disk = bus::disk_name(name).expect("a disk");
    (on_bus, qsd, disk)
}

/// Detaches the disk and ends the daemon.
#[track_caller]
fn detach(on_bus: OnBus, qsd: Qsd) {
    on_bus.delete().expect("deleting");
    qsd.stop();
}

/// Returns the contents of a file, 1 MiB of random bytes that depend on `number`.
fn contents(number: u64) -> Vec<u8> {
    let mut data = vec![0; 1 << 20];
    Random::new(number + 1).fill(&mut data);
    data
}

fn files_survive_three_detach_attach_and_daemon_restart_cycles() {
    const FILES: u64 = 60;
    need("mkfs.ext4", "-V");
    let scratch = Scratch::new();
    let image = scratch.file("image", 128 << 20);
    let directory = scratch.path("mounted");
    std::fs::create_dir(&directory).unwrap();
    let mount_point = directory.to_str().unwrap().to_owned();
    let name = unique_name();

    let (on_bus, qsd, disk) = attach(&name, &image);
    let node = format!("/dev/{disk}");
    tool("mkfs.ext4", &["-q", "-F", "-E", "nodiscard", &node]);
    tool("mount", &[&node, &mount_point]);
    let mounted = Mounted(mount_point.clone());
    for number in 0..FILES {
        std::fs::write(directory.join(number.to_string()), contents(number)).unwrap();
    }
    drop(mounted);
    detach(on_bus, qsd);

    for _ in 0..3 {
        let (on_bus, qsd, disk) = attach(&name, &image);
        tool("mount", &[&format!("/dev/{disk}"), &mount_point]);
        let mounted = Mounted(mount_point.clone());
        for number in 0..FILES {
            let found = std::fs::read(directory.join(number.to_string())).unwrap();
            assert_same(&found, &contents(number), &format!("file {number}"));
        }
        drop(mounted);
        detach(on_bus, qsd);
    }
}

/// A file system that is unmounted on drop.
struct Mounted(String);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = crate::lab::kernel::modules::tool("umount", &[&self.0]);
    }
}

fn fio_verifies_mixed_sizes_at_depth_16() {
    need("fio", "--version");
    let scratch = Scratch::new();
    let image = scratch.file("image", 32 << 20);
    let name = unique_name();
    let (on_bus, qsd, disk) = attach(&name, &image);
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
            "--size=24m",
            "--verify=crc32c",
            "--verify_fatal=1",
            "--do_verify=1",
            "--randseed=1",
        ],
    );
    detach(on_bus, qsd);
}

fn a_live_resize_is_seen() {
    let scratch = Scratch::new();
    let image = scratch.file("image", 16 << 20);
    let name = unique_name();
    let (on_bus, qsd, disk) = attach(&name, &image);
    for mebibytes in [32u64, 24] {
        qsd.resize(mebibytes << 20);
        soon("the new size is seen", || {
            sectors(&disk) == Some((mebibytes << 20) / 512)
        });
        let block = Block::open(&disk).unwrap();
        block.write((mebibytes << 20) - 4096, &[9; 4096]).unwrap();
    }
    detach(on_bus, qsd);
}

fn a_killed_daemon_is_taken_over() {
    let scratch = Scratch::new();
    let image = scratch.file("image", 4 << 20);
    let name = unique_name();
    let device = TestDevice::adopt(&name);
    // Slow requests are still in flight when the daemon is killed.
    let (on_bus, mut qsd, disk) = attach_to(Qsd::start_slow(&name, &image), &name);
    let block = Block::open(&disk).unwrap();
    let mut exercisers: Vec<Exerciser> = (0..2)
        .map(|n| Exerciser::new(&block, n << 20, 1 << 20, 64 << 10, n + 1))
        .collect();
    exercise(&mut exercisers, |all| {
        for _ in 0..2 {
            all.go_on(5);
            qsd.kill();
            qsd.start_again();
        }
        all.go_on(5);
    });
    for exerciser in &exercisers {
        exerciser.check_disk();
    }
    drop(exercisers);
    drop(block);
    detach(on_bus, qsd);
    drop(device);
}

/// Checks that a new daemon can take over from a daemon that completed a request but was killed
/// before it injected the interrupt. The new daemon cannot see that the interrupt is missing. It
/// therefore interrupts each virtqueue that it takes over, as libvduse has done from the beginning.
fn a_daemon_killed_before_it_interrupts_is_taken_over() {
    let scratch = Scratch::new();
    let image = scratch.file("image", 4 << 20);
    let name = unique_name();
    let device = TestDevice::adopt(&name);
    let (on_bus, qsd, disk) = attach(&name, &image);
    let interrupt = InterruptOnDrop {
        name: name.clone(),
        queues: 2,
    };
    // This variable is declared after `interrupt`, so that the daemon is dropped first.
    let mut qsd = qsd;
    let block = Block::open(&disk).unwrap();
    block.write(4096, &[0xab; 4096]).unwrap();
    qsd.kill();
    qsd.start_again_blockable();
    // The new daemon serves requests, so it has taken over the device.
    assert_same(&block.read(4096, 4096).unwrap(), &[0xab; 4096], "the disk");

    qsd.irq_blocker().block();
    let reading = Waiting::new(move || block.read(4096, 4096));
    soon("the daemon is about to interrupt", || {
        qsd.irq_blocker().has_blocked()
    });
    qsd.kill();
    for queue in 0..2 {
        let (available, used) = ring::counters(&name, queue);
        assert_eq!(available, used, "virtqueue {queue}");
    }
    reading.assert_waits();
    qsd.start_again();
    assert_same(&reading.result().unwrap(), &[0xab; 4096], "what was read");
    detach(on_bus, qsd);
    drop(interrupt);
    drop(device);
}
