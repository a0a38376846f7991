// SPDX-License-Identifier: GPL-2.0

//! The lock of all network configuration (RTNL), and for how long others hold it.

use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::lab::assert::limit::Pace;
use crate::lab::kernel::raw;
use crate::lab::run::report::note;

/// The ioctls that read and write an interface's flags. The latter takes the lock.
const SIOCGIFFLAGS: u32 = 0x8913;
const SIOCSIFFLAGS: u32 = 0x8914;

/// Time that taking and releasing the lock may take if nobody holds it.
const FREE: Duration = Duration::from_millis(5);

/// How long a command waits for its answer at most: the default of the module's parameter.
pub const LIMIT: Duration = Duration::from_secs(1);

/// What an idle machine needs in addition, at most.
pub const SLACK: Duration = Duration::from_millis(500);

/// For how long the lock was held by others.
#[derive(Clone, Copy, Debug, Default)]
pub struct Held {
    /// The longest time.
    pub longest: Duration,
    /// All times together.
    pub total: Duration,
}

impl Held {
    /// Asserts that the lock was held no longer than these times, which are stretched on a slow
    /// machine, and reports for how long it was.
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

/// A thread that takes the lock again and again.
#[derive(Debug)]
pub struct Watch {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Held>>,
}

impl Watch {
    /// Begins to watch.
    #[track_caller]
    pub fn start() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let ours = stop.clone();
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        // `struct ifreq`: the name in 16 bytes, then the flags.
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

    /// Ends, and returns what was seen.
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
