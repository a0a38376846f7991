// SPDX-License-Identifier: GPL-2.0

//! QEMU guests that run the stock kernel and use a vhost-vDPA device as their disk. QEMU and the
//! guest kernel are unmodified.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use vduse::blk::{self, Disk};
use vduse::server::Server;

use crate::lab::assert::data::assert_same;
use crate::lab::assert::random::Random;
use crate::lab::assert::timing::{soon, within};
use crate::lab::daemon::disk::Served;
use crate::lab::device::bus::{self, Driver, OnBus};
use crate::lab::device::test_device::{unique_name, TestDevice};
use crate::lab::driver::block::Block;
use crate::lab::guest::qemu::{Guest, Setup};
use crate::lab::guest::qsd::{tool, Qsd};
use crate::lab::run::scratch::Scratch;

tests![
    a_disk_of_qemu_storage_daemon_is_mounted_and_written => 600,
    a_guest_killed_while_it_writes_leaves_the_disk_to_the_next_driver => 600,
];

/// The size of the disks, in bytes.
const BYTES: u64 = 16 << 20;

/// Puts the daemon's disk on the bus and binds it to vhost-vdpa.
#[track_caller]
fn attach(qsd: &mut Qsd, name: &str) -> OnBus {
    let on_bus = qsd.add(name);
    on_bus.bind(Driver::Vhost).expect("binding");
    on_bus
}

/// Boots a guest with the vhost-vdpa device `name`, which may have any virtio device type.
#[track_caller]
fn boot_with(setup: Setup, name: &str) -> Guest {
    let node = bus::vhost_path(name).expect("a node");
    let device = format!("vhost-vdpa-device-pci,vhostdev={}", node.display());
    setup.arguments(["-device", &device]).boot()
}

/// Returns the MD5 sums of all files in a directory, as md5sum prints them.
#[track_caller]
fn sums(directory: &Path) -> String {
    let output = Command::new("sh")
        .args(["-c", "md5sum *"])
        .current_dir(directory)
        .output()
        .expect("md5sum");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("names of files")
}

/// Creates a directory with files of various sizes.
#[track_caller]
fn files(directory: PathBuf) -> PathBuf {
    fs::create_dir(&directory).unwrap();
    for (number, bytes) in (1..).zip([0, 1, 511, 4096, 65_537, 1 << 20]) {
        let mut data = vec![0; bytes];
        Random::new(number).fill(&mut data);
        fs::write(directory.join(format!("file{number}")), data).unwrap();
    }
    directory
}

fn a_disk_of_qemu_storage_daemon_is_mounted_and_written() {
    let setup = Setup::new();
    let scratch = Scratch::new();
    let image = scratch.file("image", BYTES);
    let image_path = image.to_str().unwrap();
    let known = files(scratch.path("known"));
    let expected = sums(&known);
    // mkfs.ext4 creates a file system that contains these files, without mounting it.
    let root = known.to_str().unwrap();
    tool("mkfs.ext4", &["-q", "-F", "-d", root, image_path]);

    let name = unique_name();
    let mut qsd = Qsd::start(&name, &image);
    let on_bus = attach(&mut qsd, &name);
    let mut guest = boot_with(setup, &name);
    guest.ok("modprobe virtio_blk");
    let sectors = guest.ok("cat /sys/block/vda/size");
    assert_eq!(sectors.trim(), (BYTES / 512).to_string());
    guest.ok("mount -t ext4 /dev/vda /mnt");
    guest.ok("cd /mnt");
    assert_eq!(guest.ok("md5sum file*"), expected);
    // The test later verifies these changes on the host: known data in another order, a file with
    // known contents, a file with unknown contents, a deleted file, and a moved file.
    guest.ok("cat file6 file5 file3 >together");
    guest.ok("seq 1 20000 >numbers");
    guest.ok("head -c 300000 /dev/urandom >random");
    guest.ok("rm file4");
    guest.ok("mkdir sub && mv file2 sub/moved");
    guest.ok("sync");
    let written = guest.ok("md5sum file* together numbers random sub/moved");
    guest.ok("cd /");
    guest.ok("umount /mnt");
    guest.power_off();
    on_bus.delete().expect("deleting");
    qsd.stop();

    // The host checks the image file directly, without the driver.
    tool("e2fsck", &["-f", "-n", image_path]);
    let found = scratch.path("found");
    fs::create_dir(&found).unwrap();
    let dump = format!("rdump / {}", found.display());
    tool("debugfs", &["-R", &dump, image_path]);
    let read = |name: &str| fs::read(found.join(name)).expect(name);
    let known_file = |name: &str| fs::read(known.join(name)).expect(name);
    let together = ["file6", "file5", "file3"].map(known_file).concat();
    assert_same(&read("together"), &together, "files put together");
    let numbers: Vec<String> = (1..=20_000).map(|n| n.to_string()).collect();
    let numbers = numbers.join("\n") + "\n";
    assert_same(&read("numbers"), numbers.as_bytes(), "numbers");
    assert_same(&read("sub/moved"), &known_file("file2"), "a moved file");
    assert_eq!(read("random").len(), 300_000);
    assert!(!found.join("file4").exists() && !found.join("file2").exists());
    let check = scratch.path("sums");
    fs::write(&check, written).unwrap();
    let line = format!("cd {} && md5sum -c {}", found.display(), check.display());
    tool("sh", &["-c", &line]);
    drop(guest);
}

fn a_guest_killed_while_it_writes_leaves_the_disk_to_the_next_driver() {
    let scratch = Scratch::new();
    let image = scratch.file("image", BYTES);
    // The test does not use qemu-storage-daemon, which aborts when a device is reset while requests
    // are in flight (`vduse_queue_disable`).
    let device = TestDevice::new(&blk::device_config(&unique_name(), BYTES, 1));
    let name = device.name().to_owned();
    let file = Arc::new(
        OpenOptions::new()
            .read(true)
            .write(true)
            .open(&image)
            .unwrap(),
    );
    // QEMU's generic vhost-vdpa device needs a virtqueue of 1024 descriptors.
    let server = Server::new(device.open_nonblocking(), &[1024], Disk::new(file.clone()));
    let served = Served::run(server.expect("serving the disk"));
    let on_bus = OnBus::add(&name).expect("adding");
    on_bus.bind(Driver::Vhost).expect("binding");
    let mut guest = boot_with(Setup::new(), &name);
    guest.ok("modprobe virtio_blk");
    // Several processes write at once. They bypass the page cache, so that each write becomes a
    // request.
    guest.ok("tr '\\0' w </dev/zero | head -c 1048576 >/tmp/data");
    guest.ok("for at in 0 4 8 12; do while :; do \
         dd if=/tmp/data of=/dev/vda bs=64k seek=$((at * 16)) oflag=direct conv=notrunc; \
         done >/dev/null 2>&1 & done");
    let first = |at: u64| {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at)
            .expect("reading the image");
        byte[0]
    };
    within(Duration::from_secs(120), "all of them write", || {
        [0, 4, 8, 12].iter().all(|at| first(at << 20) == b'w')
    });
    let status = guest.qmp().execute("query-status", json!({}));
    assert_eq!(status["status"], "running", "{status}");
    guest.kill();

    on_bus.unbind(Driver::Vhost).expect("unbinding");
    on_bus.bind(Driver::Virtio).expect("binding");
    soon("a disk", || bus::disk_name(&name).is_some());
    let block = Block::open(&bus::disk_name(&name).unwrap()).expect("opening the disk");
    let step = 1 << 20;
    for at in (0..BYTES).step_by(step) {
        let mut expected = vec![0; step];
        file.read_exact_at(&mut expected, at).unwrap();
        let found = block.read(at, step).expect("reading the disk");
        assert_same(&found, &expected, &format!("from {at} on"));
    }
    assert_eq!(first(15 << 20), 0);
    block.write(15 << 20, &[1; 4096]).expect("writing");
    block.flush().expect("flushing");
    assert_eq!(first(15 << 20), 1);
    drop(block);
    on_bus.delete().expect("deleting");
    served.stop();
    drop(device);
    drop(guest);
}
