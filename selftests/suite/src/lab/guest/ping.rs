// SPDX-License-Identifier: GPL-2.0

//! A `ping` process that runs until the test stops it.

use std::process::{Child, Command, Stdio};

/// A `ping` process that runs until the test stops it.
#[derive(Debug)]
pub struct Pinger {
    child: Child,
}

/// Number of pings per second.
const PINGS: f64 = 5.0;

impl Pinger {
    /// Starts to ping an address.
    #[track_caller]
    pub fn start(address: &str) -> Self {
        let interval = (1.0 / PINGS).to_string();
        let child = Command::new("ping")
            .args(["-n", "-i", &interval, "-W", "2", address])
            .stdout(Stdio::piped())
            .spawn()
            .expect("starting ping");
        Self { child }
    }

    /// Stops the process. Returns the times of the pings that got an answer, in seconds since the
    /// first ping.
    #[track_caller]
    pub fn stop(mut self) -> Vec<f64> {
        use rustix::process::{kill_process, Pid, Signal};
        kill_process(Pid::from_child(&self.child), Signal::INT).expect("ending ping");
        let mut text = String::new();
        if let Some(mut output) = self.child.stdout.take() {
            std::io::Read::read_to_string(&mut output, &mut text).expect("reading ping's output");
        }
        let number = |line: &str| {
            let (_, rest) = line.split_once("icmp_seq=")?;
            let number: u32 = rest.split(' ').next()?.parse().ok()?;
            line.contains("time=").then(|| f64::from(number) / PINGS)
        };
        text.lines().filter_map(number).collect()
    }
}

impl Drop for Pinger {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
