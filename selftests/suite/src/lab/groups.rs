// SPDX-License-Identifier: GPL-2.0

//! A disk with a virtqueue for each group, served by a process of its own.
//!
//! vhost maps memory of a process with that process's memory locked, and waits for the daemon
//! meanwhile: a daemon of the same process that maps something itself would wait for vhost.

use std::io;
use std::process::{Child, Command, Stdio};

use vduse::blk::Disk;
use vduse::server::Server;
use vduse::{Control, Device};

use crate::lab::disk::memory_file;
use crate::lab::expect::soon;
use crate::lab::spaces;

/// The address of the page by which a watched address space is told apart.
pub const MARK: u64 = 0x4000_0000;

/// A process that serves a disk.
#[derive(Debug)]
pub struct GroupsDaemon {
    child: Child,
}

impl GroupsDaemon {
    /// Starts a process that serves a device of version 1 with a queue for each group, and waits
    /// until it does. Sector n is full of n + 1.
    ///
    /// All the time, the process looks at the page at [`MARK`] in each address space, and ends if
    /// that is not full of the address space's number.
    #[track_caller]
    pub fn start(name: &str, groups: u16, spaces: u32) -> Self {
        let mut child = Command::new("/proc/self/exe")
            .args(["--helper", "groups", name])
            .args([groups.to_string(), spaces.to_string()])
            .stdin(Stdio::piped())
            .spawn()
            .expect("starting a daemon");
        soon("the daemon serves", || {
            if let Ok(Some(status)) = child.try_wait() {
                panic!("the daemon ended: {status}");
            }
            // All of its queues are set up when it has written its name.
            std::fs::read_to_string(format!("/proc/{}/comm", child.id()))
                .is_ok_and(|comm| comm.trim() == READY)
        });
        Self { child }
    }

    /// Asserts that it is still there, content with what it saw.
    #[track_caller]
    pub fn check(&mut self) {
        let status = self.child.try_wait().expect("asking for the daemon");
        assert!(status.is_none(), "the daemon ended: {status:?}");
    }
}

impl Drop for GroupsDaemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a process is called that serves its device.
const READY: &str = "vduse-groups";

/// The process: `groups NAME GROUPS SPACES`.
pub fn run(arguments: &[String]) -> io::Result<()> {
    let [name, groups, spaces] = arguments else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let groups: u16 = groups.parse().map_err(io::Error::other)?;
    let spaces: u32 = spaces.parse().map_err(io::Error::other)?;
    let mut config = spaces::config(groups, groups.into(), spaces);
    config.name.clone_from(name);
    Control::open_v1()?.create(&config)?;
    let file = memory_file(1 << 20);
    spaces::fill(&file);
    let queues: Vec<_> = (0..groups).map(|group| (256, group.into())).collect();
    let device = Device::open_nonblocking(name)?;
    let mut server = Server::with_groups(device, &queues, spaces, Disk::new(file))?;
    let device = server.handle().device().clone();
    let _ = std::thread::spawn(move || loop {
        for asid in 0..spaces {
            match spaces::first_byte(&device, asid, MARK) {
                Ok(byte) if u32::from(byte) != asid => {
                    eprintln!("address space {asid} has the page of {byte}");
                    std::process::exit(1);
                }
                // Mostly it is just not mapped.
                _ => {}
            }
        }
        std::thread::sleep(std::time::Duration::from_millis(2));
    });
    std::fs::write("/proc/self/comm", READY)?;
    server.run()
}
