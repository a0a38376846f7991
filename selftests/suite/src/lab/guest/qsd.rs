// SPDX-License-Identifier: GPL-2.0

//! The distribution's qemu-storage-daemon, which serves a disk.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use rustix::process::{kill_process, Pid, Signal};
use serde_json::json;
use vduse::Control;

use crate::lab::assert::limit::Limit;
use crate::lab::assert::timing::soon;
use crate::lab::daemon::irq_blocker::{self, IrqBlocker};
use crate::lab::device::bus::{self, OnBus};
use crate::lab::guest::qmp::Qmp;
use crate::lab::kernel::modules;
use crate::lab::run::report::need;

const PROGRAM: &str = "qemu-storage-daemon";

/// Virtqueue size of the disk. QEMU's vhost-vdpa device uses this size regardless of the maximum
/// size that the disk reports.
const QUEUE_SIZE: u16 = 1024;

/// A qemu-storage-daemon process.
#[derive(Debug)]
pub struct Qsd {
    name: String,
    child: Child,
    arguments: Vec<OsString>,
    socket: PathBuf,
    irq_blocker: Option<IrqBlocker>,
}

impl Qsd {
    /// Starts a qemu-storage-daemon that serves a file as a disk with two virtqueues. Skips the
    /// test if the program is not installed.
    #[track_caller]
    pub fn start(name: &str, file: &Path) -> Self {
        let image = format!("driver=file,node-name=d,filename={}", file.display());
        Self::start_with(name, file, &["--blockdev", &image])
    }

    /// Variant of [`start`](Self::start) with another block device: `image` is the value of the
    /// option `--blockdev`, which must define the node `d`. `file` need not exist; the program's
    /// socket is beside it.
    #[track_caller]
    pub fn start_image(name: &str, file: &Path, image: &str) -> Self {
        Self::start_with(name, file, &["--blockdev", image])
    }

    /// Variant of [`start`](Self::start) that serves at most 50 requests per second, so that some
    /// requests are always in progress.
    #[track_caller]
    pub fn start_slow(name: &str, file: &Path) -> Self {
        let image = format!("driver=file,node-name=f,filename={}", file.display());
        let arguments = [
            "--object",
            "throttle-group,id=slow,x-iops-total=50",
            "--blockdev",
            &image,
            "--blockdev",
            "driver=throttle,node-name=d,throttle-group=slow,file=f",
        ];
        Self::start_with(name, file, &arguments)
    }

    #[track_caller]
    fn start_with(name: &str, file: &Path, image: &[&str]) -> Self {
        need(PROGRAM, "--version");
        let socket = file.with_extension("socket");
        let export = format!(
            "type=vduse-blk,id=e,node-name=d,name={name},num-queues=2,queue-size={QUEUE_SIZE},writable=on"
        );
        let chardev = format!("socket,id=c,path={},server=on,wait=off", socket.display());
        let rest = [
            "--export",
            &export,
            "--chardev",
            &chardev,
            "--monitor",
            "chardev=c",
        ];
        let arguments: Vec<_> = image.iter().chain(&rest).map(OsString::from).collect();
        Self {
            name: name.to_owned(),
            child: spawn(&mut command(&arguments)),
            arguments,
            socket,
            irq_blocker: None,
        }
    }

    /// Starts the program again after it has ended.
    #[track_caller]
    pub fn start_again(&mut self) {
        let _ = std::fs::remove_file(&self.socket);
        self.child = spawn(&mut command(&self.arguments));
        self.irq_blocker = None;
    }

    /// Variant of [`start_again`](Self::start_again) with an [`IrqBlocker`] for the program.
    #[track_caller]
    pub fn start_again_blockable(&mut self) {
        let _ = std::fs::remove_file(&self.socket);
        let mut command = command(&self.arguments);
        irq_blocker::install(&mut command);
        self.child = spawn(&mut command);
        self.irq_blocker = Some(IrqBlocker::of(&self.child));
    }

    /// Returns the IRQ blocker of a program that
    /// [`start_again_blockable`](Self::start_again_blockable) has started.
    #[track_caller]
    pub fn irq_blocker(&self) -> &IrqBlocker {
        self.irq_blocker.as_ref().expect("an IRQ blocker")
    }

    /// Waits until the program has created the device and set it up, then puts the device on the
    /// bus.
    #[track_caller]
    pub fn add(&mut self, name: &str) -> OnBus {
        let mut on_bus = None;
        soon("the device is added", || {
            if let Ok(Some(status)) = self.child.try_wait() {
                panic!("{PROGRAM} ended: {status}");
            }
            // If the device is already on the bus, the program has taken over an existing device
            // instead of creating one. The wait then fails at its time limit.
            if bus::vdpa().device(name).is_err() {
                on_bus = OnBus::add(name).ok();
            }
            on_bus.is_some()
        });
        on_bus.expect("added just now")
    }

    /// Changes the size of the disk to `bytes` bytes.
    #[track_caller]
    pub fn resize(&self, bytes: u64) {
        Qmp::connect(&self.socket)
            .execute("block_resize", json!({ "node-name": "d", "size": bytes }));
    }

    /// Terminates the program and ensures that the device is destroyed. Up to QEMU 10, the program
    /// itself destroys the device.
    #[track_caller]
    pub fn stop(mut self) {
        let pid = Pid::from_raw(self.child.id() as i32).expect("a process");
        let mut limit = Limit::new(Duration::from_secs(10));
        while !matches!(self.child.try_wait(), Ok(Some(_))) {
            let stacks = || crate::process::stacks(self.child.id());
            assert!(!limit.is_over(), "it does not end:\n{}", stacks());
            // Sends the signal repeatedly, because one signal may have no effect: the signal
            // handler only sets a flag, and the main loop may have checked the flag just before it
            // went to sleep.
            kill_process(pid, Signal::TERM).expect("ending the daemon");
            std::thread::sleep(Duration::from_millis(100));
        }
        if leaves_its_device() {
            let control = Control::open().expect("opening the control device");
            // io_uring may release the device's file only after the process has ended.
            soon("the device is destroyed", || {
                control.destroy(&self.name).is_ok()
            });
        }
    }

    /// Kills the program and waits until it has ended.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Qsd {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Returns whether the device still exists after the program has ended. Since QEMU 11, io_uring
/// still has a reference to the device's file after the program has closed the file. The program's
/// attempt to destroy the device then fails with `EBUSY`.
fn leaves_its_device() -> bool {
    let output = Command::new(PROGRAM).arg("--version").output();
    let text = String::from_utf8(output.expect("asking for its version").stdout).expect("text");
    let major = text
        .split(|c: char| !c.is_ascii_digit())
        .find(|word| !word.is_empty());
    major.expect("a number").parse::<u32>().expect("a number") >= 11
}

fn command(arguments: &[OsString]) -> Command {
    let mut command = Command::new(PROGRAM);
    command.args(arguments);
    command
}

#[track_caller]
fn spawn(command: &mut Command) -> Child {
    command.spawn().expect("starting qemu-storage-daemon")
}

/// Runs a program. Panics if the program fails.
#[track_caller]
pub fn tool(program: &str, arguments: &[&str]) {
    if let Err(why) = modules::tool(program, arguments) {
        panic!("{why}");
    }
}
