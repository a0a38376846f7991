// SPDX-License-Identifier: GPL-2.0

//! A disk or a file system that a separate process serves. A test can kill the process.

use std::fs::OpenOptions;
use std::io;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::Arc;

use rustix::process::{kill_process, Pid, Signal};
use vduse::blk::Disk;
use vduse::server::{Backend, Server};
use vduse::virtqueue::Chain;
use vduse::{Control, Device, DeviceConfig};

use crate::lab::assert::timing::soon;
use crate::lab::daemon::fs;
use crate::lab::daemon::irq_blocker::{self, IrqBlocker};

/// A process that serves a device.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    irq_blocker: Option<IrqBlocker>,
}

/// How the process handles requests in the virtqueues.
#[derive(Clone, Copy, Debug)]
pub enum Manner {
    /// The process serves all requests.
    Serve,
    /// The process serves this number of requests and then stalls in the next one.
    StallAfter(u64),
}

impl Daemon {
    /// Starts a process that serves the device `name`, and creates the device if it does not exist.
    /// Returns when the process serves the device. The device is a disk if `file` is a file, and a
    /// file system if `file` is a directory.
    #[track_caller]
    pub fn start(name: &str, file: &Path, queues: u16, manner: Manner) -> Self {
        Self::start_by(name, file, queues, manner, false)
    }

    /// Variant of [`start`](Self::start) with an [`IrqBlocker`] for the process.
    #[track_caller]
    pub fn start_blockable(name: &str, file: &Path, queues: u16) -> Self {
        Self::start_by(name, file, queues, Manner::Serve, true)
    }

    #[track_caller]
    fn start_by(name: &str, file: &Path, queues: u16, manner: Manner, blockable: bool) -> Self {
        let ready = file.with_extension("ready");
        let _ = std::fs::remove_file(&ready);
        let stall = match manner {
            Manner::Serve => u64::MAX,
            Manner::StallAfter(requests) => requests,
        };
        let mut command = Command::new("/proc/self/exe");
        command
            .args(["--helper", "daemon", name])
            .arg(file)
            .args([queues.to_string(), stall.to_string()])
            .arg(&ready);
        if blockable {
            irq_blocker::install(&mut command);
        }
        let child = command.spawn().expect("starting a daemon");
        let irq_blocker = blockable.then(|| IrqBlocker::of(&child));
        let mut daemon = Self { child, irq_blocker };
        soon("the daemon serves", || {
            if let Ok(Some(status)) = daemon.child.try_wait() {
                panic!("the daemon ended: {status}");
            }
            ready.exists()
        });
        daemon
    }

    /// Returns the IRQ blocker of a process that [`start_blockable`](Self::start_blockable) has
    /// started.
    #[track_caller]
    pub fn irq_blocker(&self) -> &IrqBlocker {
        self.irq_blocker.as_ref().expect("an IRQ blocker")
    }

    /// Kills the process and waits until it has ended.
    pub fn kill(mut self) {
        self.end();
    }

    /// Sends `SIGSTOP` to the process and waits until the process is stopped.
    #[track_caller]
    pub fn stop(&self) {
        self.signal(Signal::STOP);
        let stat = format!("/proc/{}/stat", self.child.id());
        soon("the daemon is stopped", || {
            std::fs::read_to_string(&stat).is_ok_and(|stat| stat.contains(") T "))
        });
    }

    /// Continues a process after [`stop`](Self::stop).
    #[track_caller]
    pub fn go_on(&self) {
        self.signal(Signal::CONT);
    }

    #[track_caller]
    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id() as i32).expect("a process");
        kill_process(pid, signal).expect("a signal to the daemon");
    }

    /// Returns whether the process has stalled (see [`Manner::StallAfter`]). `file` is the file or
    /// directory with which the process was started.
    pub fn has_stalled(&self, file: &Path) -> bool {
        file.with_extension("stalled").exists()
    }

    fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.end();
    }
}

/// A backend that serves a number of requests and then stalls.
struct Stalling<B> {
    backend: B,
    left: u64,
    mark: std::path::PathBuf,
}

impl<B: Backend> Backend for Stalling<B> {
    fn serve(&mut self, queue: u16, chain: &Chain) -> u32 {
        if self.left == 0 {
            let _ = std::fs::write(&self.mark, "");
            loop {
                std::thread::park();
            }
        }
        self.left -= 1;
        self.backend.serve(queue, chain)
    }
}

/// Runs the helper process `daemon NAME FILE QUEUES STALL READY`.
pub fn run(arguments: &[String]) -> io::Result<()> {
    let [name, path, queues, stall, ready] = arguments else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let path = Path::new(path);
    let queues: u16 = queues.parse().map_err(io::Error::other)?;
    let stall = stall.parse().map_err(io::Error::other)?;
    let ready = Path::new(ready);
    if path.is_dir() {
        let config = fs::device_config(name);
        return serve(&config, path, stall, ready, fs::Files::new(path));
    }
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let bytes = file.metadata()?.len();
    let config = vduse::blk::device_config(name, bytes, queues);
    serve(&config, path, stall, ready, Disk::new(Arc::new(file)))
}

/// Creates the device if it does not exist, then serves it.
fn serve<B: Backend>(
    config: &DeviceConfig,
    path: &Path,
    stall: u64,
    ready: &Path,
    backend: B,
) -> io::Result<()> {
    let mark = path.with_extension("stalled");
    let _ = std::fs::remove_file(&mark);
    let control = Control::open()?;
    control.offer_all()?;
    match control.create(config) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        result => result?,
    }
    let backend = Stalling {
        backend,
        left: stall,
        mark,
    };
    let device = Device::open_nonblocking(&config.name)?;
    let sizes = vec![256; config.queues as usize];
    let mut server = Server::new(device, &sizes, backend)?;
    std::fs::write(ready, "")?;
    server.run()
}
