// SPDX-License-Identifier: GPL-2.0

//! The daemons, and how each is started.

use std::path::Path;
use std::process::{Command, Stdio};

use vduse_selftests::differences::Driver;
use vduse_selftests::lab::assert::timing::soon;
use vduse_selftests::lab::daemon::vduse_blk::VduseBlk;
use vduse_selftests::lab::device::bus;
use vduse_selftests::lab::device::test_device::unique_name;
use vduse_selftests::lab::driver::block::Block;
use vduse_selftests::lab::guest::qsd::{tool, Qsd};

use crate::daemons::image::ImageDirectory;
use crate::null::{NullDisk, Shape};
use crate::rows::disk::{open, open_block};

/// A daemon, with the driver through which it serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Contender {
    /// qemu-storage-daemon on a driver. It uses the page cache and threads, which is what it does
    /// without options.
    Qsd(Driver),
    /// qemu-storage-daemon on a driver, with direct I/O by io_uring.
    DirectQsd(Driver),
    /// vduse-blk on our driver. A null disk is that of this benchmark, as in the other rows.
    VduseBlk,
    /// rublk on ublk, with direct I/O by io_uring.
    Rublk,
}

impl Contender {
    /// All daemons, in the order of the table's columns.
    pub const ALL: [Self; 6] = [
        Self::Qsd(Driver::C),
        Self::Qsd(Driver::Rust),
        Self::DirectQsd(Driver::C),
        Self::DirectQsd(Driver::Rust),
        Self::VduseBlk,
        Self::Rublk,
    ];

    /// Returns the title of the daemon's column.
    pub fn title(self) -> &'static str {
        match self {
            Self::Qsd(Driver::C) => "qsd, C",
            Self::Qsd(Driver::Rust) => "qsd, ours",
            Self::DirectQsd(Driver::C) => "direct qsd, C",
            Self::DirectQsd(Driver::Rust) => "direct qsd, ours",
            Self::VduseBlk => "vduse-blk",
            Self::Rublk => "rublk",
        }
    }

    /// Returns the VDUSE driver that must be loaded.
    pub fn driver(self) -> Option<Driver> {
        match self {
            Self::Qsd(driver) | Self::DirectQsd(driver) => Some(driver),
            Self::VduseBlk => Some(Driver::Rust),
            Self::Rublk => None,
        }
    }

    /// Returns whether the daemon is measured with such a disk.
    pub fn has(self, media: Media) -> bool {
        !matches!((self, media), (Self::DirectQsd(_), Media::Null))
    }
}

/// What is on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Media {
    /// The image.
    File,
    /// Nothing: the daemon completes requests without touching their data.
    Null,
}

impl Contender {
    /// Starts the daemon, passes its block device to `work`, and ends the daemon.
    #[track_caller]
    pub fn serve(
        self,
        media: Media,
        directory: &ImageDirectory,
        rublk: &Path,
        work: &mut dyn FnMut(&Block),
    ) {
        match (self, media) {
            (Self::Qsd(_) | Self::DirectQsd(_), _) => {
                let file = directory.image().display().to_string();
                let direct = match self {
                    Self::DirectQsd(_) => ",cache.direct=on,aio=io_uring",
                    _ => "",
                };
                let image = match media {
                    Media::File => format!("driver=file,node-name=d,filename={file}{direct}"),
                    Media::Null => {
                        "driver=null-co,node-name=d,read-zeroes=off,size=1073741824".to_owned()
                    }
                };
                let name = unique_name();
                let mut daemon = Qsd::start_image(&name, &directory.other("qsd"), &image);
                let on_bus = daemon.add(&name);
                on_bus.bind(bus::Driver::Virtio).expect("binding a disk");
                work(&open(&name));
                drop(on_bus);
                daemon.stop();
            }
            (Self::VduseBlk, Media::File) => {
                let name = unique_name();
                let mut daemon = VduseBlk::start(&name, &directory.image(), &["--pinned"]);
                let (on_bus, disk) = daemon.attach();
                work(&open_block(&disk));
                daemon.detach(on_bus);
            }
            (Self::VduseBlk, Media::Null) => {
                let disk = NullDisk::new(Shape::default());
                work(&open(disk.name()));
            }
            (Self::Rublk, _) => {
                let rublk = Rublk::start(rublk, media, directory);
                work(&open_block(&rublk.disk()));
            }
        }
    }
}

/// rublk, which serves a disk. It is ended on drop.
struct Rublk<'a> {
    program: &'a Path,
}

/// Returns the number of queues of a disk: one for each CPU, as vduse-blk has them.
fn default_queues() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Number of rublk's disk.
const NUMBER: &str = "7";

impl<'a> Rublk<'a> {
    #[track_caller]
    fn start(program: &'a Path, media: Media, directory: &ImageDirectory) -> Self {
        tool("modprobe", &["ublk_drv"]);
        let mut command = Command::new(program);
        command.args(["add", if media == Media::File { "loop" } else { "null" }]);
        let queues = default_queues().to_string();
        command.args(["--number", NUMBER, "--queue", &queues, "--quiet"]);
        // Requests as large as those of the other daemons.
        command.args(["--io-buf-size", "1MiB"]);
        if media == Media::File {
            command.arg("--file").arg(directory.image());
        }
        // It shows the device all the same.
        command.stdout(Stdio::null());
        let status = command.status().expect("starting rublk");
        assert!(status.success(), "rublk: {status}");
        let rublk = Self { program };
        let node = Path::new("/dev").join(rublk.disk());
        soon("rublk's disk appears", || node.exists());
        rublk
    }

    fn disk(&self) -> String {
        format!("ublkb{NUMBER}")
    }
}

impl Drop for Rublk<'_> {
    fn drop(&mut self) {
        let deleted = Command::new(self.program)
            .args(["del", "--number", NUMBER])
            .status();
        if !std::thread::panicking() {
            assert!(deleted.expect("running rublk").success(), "rublk del");
        }
    }
}
