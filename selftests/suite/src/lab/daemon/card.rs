// SPDX-License-Identifier: GPL-2.0

//! Network cards that this program serves, either in a thread of the test or in a helper process.

use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};

use rustix::process::{Pid, Signal};
use vduse::net::{Mac, Net, Shape, Tap};

use crate::lab::assert::timing::received;
use crate::lab::daemon::serving::Serving;
use crate::lab::daemon::tap::TapInterface;
use crate::lab::device::test_device::{unique_name, TestDevice};

/// Initial MAC address of a test's card.
pub const MAC: Mac = [2, 0, 0, 0, 0, 1];

/// Returns the configuration of a card with `pairs` queue pairs and without a control queue.
pub fn shape(pairs: u16) -> Shape {
    let mut shape = Shape::new(&unique_name(), MAC);
    shape.pairs = pairs;
    shape
}

/// Serves a card in a new thread, which forwards frames to and from a TAP interface.
#[track_caller]
pub fn serve(shape: &Shape, device: &TestDevice, tap: &TapInterface) -> Serving<Net<Tap>> {
    let ports = Tap::open(tap.name(), shape.pairs).expect("opening the TAP interface");
    let card = Net::new(shape.mac, ports).expect("a card");
    let server = shape.server(device.open_nonblocking(), card);
    Serving::run(server.expect("serving the card"))
}

/// Returns the number of queue pairs that virtio_net initially uses on a card with `pairs` queue
/// pairs.
pub fn pairs_at_first(pairs: u16) -> u16 {
    let cpus = std::thread::available_parallelism().expect("the CPUs");
    pairs.min(cpus.get() as u16)
}

/// A process that serves a card: the `net` example of the `vduse` library.
#[derive(Debug)]
pub struct Example {
    child: Child,
    lines: Receiver<String>,
}

impl Example {
    /// Starts the `net` example for the card `name`, and returns at once. The example creates the
    /// card if the card does not exist, and then serves the card.
    #[track_caller]
    pub fn start(name: &str, tap: &TapInterface, options: &[&str]) -> Self {
        let mut child = Command::new("/proc/self/exe")
            .args(["--helper", "net", name, tap.name()])
            .args(options)
            .stdout(Stdio::piped())
            .spawn()
            .expect("starting the example");
        let output = child.stdout.take().expect("its output");
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            use std::io::BufRead;
            let lines = std::io::BufReader::new(output).lines();
            lines
                .map_while(Result::ok)
                .all(|line| sender.send(line).is_ok());
        });
        Self { child, lines }
    }

    /// Waits until the example prints the line `wanted`.
    #[track_caller]
    pub fn says(&self, wanted: &str) {
        while received(wanted, &self.lines) != wanted {}
    }

    /// Sends a signal to the process.
    #[track_caller]
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).expect("sending a signal");
    }

    /// Kills the process and waits until it has ended.
    pub fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Example {
    fn drop(&mut self) {
        self.end();
    }
}
