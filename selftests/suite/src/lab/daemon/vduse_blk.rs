// SPDX-License-Identifier: GPL-2.0

//! Our own disk daemon, `vduse-blk`, as a process.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};

use rustix::process::{kill_process, Pid, Signal};

use crate::lab::assert::timing::soon;
use crate::lab::device::bus::{self, Driver, OnBus};
use crate::lab::driver::block::Block;

/// Returns the path of the program, which is beside that of the tests.
pub fn program() -> PathBuf {
    let ours = std::env::current_exe().expect("the path of this program");
    ours.with_file_name("vduse-blk")
}

/// A process that serves a disk. It is killed on drop.
#[derive(Debug)]
pub struct VduseBlk {
    name: String,
    image: PathBuf,
    options: Vec<String>,
    child: Child,
}

impl VduseBlk {
    /// Starts the program for the disk `name`, whose data is in `image`. `options` are further
    /// options. The log of requests in flight is beside the image, or in `/dev/shm` if the image is not in
    /// memory.
    #[track_caller]
    pub fn start(name: &str, image: &Path, options: &[&str]) -> Self {
        let options: Vec<String> = options.iter().map(|&option| option.to_owned()).collect();
        let child = spawn(name, image, &options);
        Self {
            name: name.to_owned(),
            image: image.to_owned(),
            options,
            child,
        }
    }

    /// Starts the program again after it has ended.
    #[track_caller]
    pub fn start_again(&mut self) {
        self.child = spawn(&self.name, &self.image, &self.options);
    }

    /// Returns the directory of the process in `/proc`.
    pub fn directory(&self) -> PathBuf {
        Path::new("/proc").join(self.child.id().to_string())
    }

    /// Puts the disk on the bus, and binds it to virtio-vdpa. Returns the device on the bus, and the
    /// name of the block device.
    #[track_caller]
    pub fn attach(&mut self) -> (OnBus, String) {
        let on_bus = self.add();
        on_bus.bind(Driver::Virtio).expect("binding");
        soon("the disk appears", || bus::disk_name(&self.name).is_some());
        (on_bus, bus::disk_name(&self.name).expect("a disk"))
    }

    /// Puts the disk on the bus, as soon as the program has set it up.
    #[track_caller]
    pub fn add(&mut self) -> OnBus {
        let mut on_bus = None;
        soon("the device is added", || {
            if let Ok(Some(status)) = self.child.try_wait() {
                panic!("vduse-blk ended: {status}");
            }
            on_bus = OnBus::add(&self.name).ok();
            on_bus.is_some()
        });
        on_bus.expect("added just now")
    }

    /// Returns how much memory of the program is pinned, in KiB.
    #[track_caller]
    pub fn pinned(&self) -> u64 {
        let path = self.directory().join("status");
        let status = std::fs::read_to_string(path).expect("a process");
        let pinned = status.lines().find_map(|line| line.strip_prefix("VmPin:"));
        let number = pinned.and_then(|pinned| pinned.split_whitespace().next());
        number.expect("VmPin").parse().expect("a number")
    }

    /// Sends a signal.
    #[track_caller]
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id() as i32).expect("a process");
        kill_process(pid, signal).expect("a signal");
    }

    /// Kills the program and waits until it has ended.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Asks the program to end. Returns its exit status.
    #[track_caller]
    pub fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        let mut status = None;
        soon("vduse-blk ends", || {
            status = self.child.try_wait().expect("a process");
            status.is_some()
        });
        status.expect("ended just now")
    }

    /// Takes the disk off the bus and ends the program, which destroys the device.
    #[track_caller]
    pub fn detach(mut self, on_bus: OnBus) {
        on_bus.delete().expect("deleting");
        assert!(self.stop().success());
        assert!(!vduse::Device::path(&self.name).exists());
    }
}

impl Drop for VduseBlk {
    fn drop(&mut self) {
        self.kill();
    }
}

#[track_caller]
fn spawn(name: &str, image: &Path, options: &[String]) -> Child {
    let log = match image.parent() {
        // Beside the image, if that is in a test's directory itself.
        Some(directory) if directory.parent() == Some(Path::new("/dev/shm")) => {
            let mut log = image.as_os_str().to_owned();
            log.push(".log");
            log.into()
        }
        _ => Path::new("/dev/shm").join(format!("{name}.log")),
    };
    Command::new(program())
        .args(["--name", name, "--log"])
        .arg(log)
        .args(options)
        .arg(image)
        .spawn()
        .expect("starting vduse-blk")
}

/// Opens a disk by the name of its block device.
#[track_caller]
pub fn open(disk: &str) -> Block {
    Block::open(disk).expect("opening the disk")
}
