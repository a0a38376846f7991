// SPDX-License-Identifier: GPL-2.0

//! Measurement of how long other threads hold RTNL, the kernel's lock for network configuration.

use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::lab::assert::limit::Pace;
use crate::lab::kernel::raw;
use crate::lab::run::report::note;

/// Ioctls that read and write an interface's flags. The second ioctl takes RTNL.
const SIOCGIFFLAGS: u32 = 0x8913;
const SIOCSIFFLAGS: u32 = 0x8914;

/// Maximum time for taking and releasing RTNL when nothing else holds it.
const FREE: Duration = Duration::from_millis(5);

/// Default of the module parameter `control_timeout_ms`, which is the maximum time that virtio_net
/// waits for the daemon to carry out a command.
pub const LIMIT: Duration = Duration::from_secs(1);

/// Maximum time for which RTNL may be held in addition to [`LIMIT`], if the machine is idle.
pub const SLACK: Duration = Duration::from_millis(500);

/// The times for which other threads held RTNL.
#[derive(Clone, Copy, Debug, Default)]
pub struct Held {
    /// The longest single time.
    pub longest: Duration,
    /// The sum of all times.
    pub total: Duration,
}

impl Held {
    /// Asserts that other threads held RTNL no longer than `longest` at a time, and no longer than
    /// `total` altogether. Both limits are extended on a slow machine. Prints the measured times.
    #[track_caller]
    pub fn assert(self, what: &str, longest: Duration, total: Duration) {
        note(format!(
            "{what}: RTNL was held by others for {:?} at most, {:?} in all",
            self.longest, self.total
        ));
        let pace = Pace::measured();
        assert!(self.longest <= pace.stretch(longest), "{self:?}");
        assert!(self.total <= pace.stretch(total), "{self:?}");
    }
}

/// A thread that takes RTNL repeatedly and measures how long that takes.
#[derive(Debug)]
pub struct Watch {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Held>>,
}

impl Watch {
    /// Starts the thread.
    #[track_caller]
    pub fn start() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let ours = stop.clone();
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        // `struct ifreq` has the interface's name in 16 bytes, then the flags.
        let mut request = [0; 40];
        request[..2].copy_from_slice(b"lo");
        raw::call(&socket, SIOCGIFFLAGS, &mut request).expect("reading flags");
        let thread = std::thread::spawn(move || {
            let mut held = Held::default();
            while !ours.load(Ordering::Relaxed) {
                let begin = Instant::now();
                raw::call(&socket, SIOCSIFFLAGS, &mut request).expect("writing flags");
                let took = begin.elapsed();
                held.longest = held.longest.max(took);
                if took > FREE {
                    held.total += took;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            held
        });
        Self {
            stop,
            thread: Some(thread),
        }
    }

    /// Ends the thread. Returns the measured times.
    #[track_caller]
    pub fn end(mut self) -> Held {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().expect("a running thread");
        thread.join().expect("the thread that takes the lock")
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
