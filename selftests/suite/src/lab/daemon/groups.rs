// SPDX-License-Identifier: GPL-2.0

//! A disk that a separate process serves and that has one virtqueue in each group.
//!
//! While vhost-vdpa maps memory of a client, it holds the mmap lock of the client's process and
//! waits for the daemon. If the daemon ran in the same process and mapped memory, the daemon would
//! wait for that lock, and both would hang.

use std::io;
use std::process::{Child, Command, Stdio};

use vduse::blk::Disk;
use vduse::server::Server;
use vduse::{Control, Device};

use crate::lab::assert::timing::soon;
use crate::lab::daemon::disk::memory_file;
use crate::lab::daemon::{regions, served_groups};
use crate::lab::device::spaces;

/// IOVA at which an address space may have a page whose first byte is the number of that address
/// space.
pub const MARK: u64 = 0x4000_0000;

/// A process that serves a disk with virtqueue groups.
#[derive(Debug)]
pub struct GroupsDaemon {
    child: Child,
}

impl GroupsDaemon {
    /// Starts a process that creates and serves a disk with API version 1 and one virtqueue in each
    /// group. Returns when the process serves the disk. Each byte of sector n is n + 1.
    ///
    /// The process repeatedly checks the page at [`MARK`] in each address space. It exits if the
    /// page is mapped and its first byte is not the number of the address space.
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
            // The process changes its name once all of its virtqueues are set up.
            std::fs::read_to_string(format!("/proc/{}/comm", child.id()))
                .is_ok_and(|comm| comm.trim() == READY)
        });
        Self { child }
    }

    /// Asserts that the process still runs. The process ends if it finds a wrong page.
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

/// Name that the process takes once it serves its disk.
const READY: &str = "vduse-groups";

/// Runs the helper process `groups NAME GROUPS SPACES`.
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
    served_groups::fill(&file);
    let queues: Vec<_> = (0..groups).map(|group| (256, group.into())).collect();
    let device = Device::open_nonblocking(name)?;
    let mut server = Server::with_groups(device, &queues, spaces, Disk::new(file))?;
    let device = server.handle().device().clone();
    let _ = std::thread::spawn(move || loop {
        for asid in 0..spaces {
            match regions::first_byte(&device, asid, MARK) {
                Ok(byte) if u32::from(byte) != asid => {
                    eprintln!("address space {asid} has the page of {byte}");
                    std::process::exit(1);
                }
                // The byte is right, or no page is mapped: the test maps the page only for short
                // times.
                _ => {}
            }
        }
        std::thread::sleep(std::time::Duration::from_millis(2));
    });
    std::fs::write("/proc/self/comm", READY)?;
    server.run()
}
