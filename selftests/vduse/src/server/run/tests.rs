// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Tests of the server. Commands are given through a `Handle`. Each command gets an answer, even if the
//! server is stopped, fails, panics or is dropped. A request takes no memory. In these tests, a socket
//! takes the place of the device.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use super::*;
use crate::blk::Disk;
use crate::virtqueue::testing::{Buffer, Driver};
use crate::{sys, uapi};

/// Longest time that a test waits. A command that is never answered fails the test.
const PATIENCE: Duration = Duration::from_secs(10);

/// A backend that calls a function when the driver resets the device.
struct OnReset<F>(F);

impl<F: FnMut()> Backend for OnReset<F> {
    fn serve(&mut self, _queue: u16, _chain: &Chain) -> u32 {
        0
    }

    fn reset(&mut self) {
        (self.0)();
    }
}

/// Returns a server without virtqueues, whose device is one end of a socket. Also returns the other
/// end, at which the test acts as the kernel.
fn server<F: FnMut()>(on_reset: F) -> (Server<OnReset<F>>, UnixStream) {
    let (device, kernel) = UnixStream::pair().unwrap();
    let device = Device::of_file(OwnedFd::from(device).into());
    let server = Server {
        session: Session::without_queues(device),
        backend: OnReset(on_reset),
        waits: Vec::new(),
        chain: Chain::new(),
        lists: Lists::default(),
    };
    (server, kernel)
}

/// Gives the server a command (`register_umem`) from a new thread. Returns the receiver of the
/// command's result.
fn command(handle: &Handle) -> Receiver<io::Result<()>> {
    let handle = handle.clone();
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || sender.send(handle.register_umem()));
    receiver
}

/// Does the same as [`command`], and waits until the command is in the server's queue.
fn queued_command(handle: &Handle) -> Receiver<io::Result<()>> {
    let result = command(handle);
    while handle.control.pending() == 0 {
        thread::sleep(Duration::from_millis(1));
    }
    result
}

#[track_caller]
fn fails_with(result: &Receiver<io::Result<()>>, kind: io::ErrorKind) {
    let result = result.recv_timeout(PATIENCE);
    let result = result.expect("the command has no answer");
    assert_eq!(result.unwrap_err().kind(), kind);
}

#[track_caller]
fn is_rejected(result: &Receiver<io::Result<()>>) {
    fails_with(result, io::ErrorKind::BrokenPipe);
}

/// Sends the server a request to reset the device.
fn reset(mut kernel: &UnixStream) {
    let request = uapi::DevRequest {
        kind: uapi::SET_STATUS,
        ..Default::default()
    };
    kernel.write_all(sys::bytes_of(&request)).unwrap();
}

#[test]
fn a_command_before_the_loop_is_executed_by_it() {
    let (mut server, _kernel) = server(|| {});
    let handle = server.handle();
    let result = queued_command(&handle);
    let thread = thread::spawn(move || server.run());
    // The server executes the command. The command's ioctl fails, because the device is a socket.
    let result = result.recv_timeout(PATIENCE).unwrap();
    let enotty = rustix::io::Errno::NOTTY.raw_os_error();
    assert_eq!(result.unwrap_err().raw_os_error(), Some(enotty));
    handle.stop();
    thread.join().unwrap().unwrap();
}

#[test]
fn a_command_is_rejected_after_the_server_was_stopped() {
    let (mut server, _kernel) = server(|| {});
    let handle = server.handle();
    handle.stop();
    let before = queued_command(&handle);
    server.run().unwrap();
    is_rejected(&before);
    is_rejected(&command(&handle));
}

#[test]
fn a_command_is_rejected_after_an_error() {
    let (mut server, kernel) = server(|| {});
    let handle = server.handle();
    let before = queued_command(&handle);
    // Closes the kernel's end of the socket. The server then stops with an error, as it does when
    // the kernel marks the device as broken.
    drop(kernel);
    server.run().unwrap_err();
    is_rejected(&before);
    is_rejected(&command(&handle));
}

#[test]
fn a_command_is_rejected_after_a_panic() {
    let (sender, handles) = mpsc::channel::<Handle>();
    let (results, before) = mpsc::channel();
    let (mut server, kernel) = server(move || {
        results
            .send(queued_command(&handles.recv().unwrap()))
            .unwrap();
        panic!("the backend panics while a command is queued");
    });
    let handle = server.handle();
    sender.send(handle.clone()).unwrap();
    reset(&kernel);
    catch_unwind(AssertUnwindSafe(|| server.run())).unwrap_err();
    is_rejected(&before.recv().unwrap());
    is_rejected(&command(&handle));
}

#[test]
fn a_command_is_rejected_when_the_server_is_dropped() {
    let (server, _kernel) = server(|| {});
    let handle = server.handle();
    let before = queued_command(&handle);
    server.into_backend();
    is_rejected(&before);
    is_rejected(&command(&handle));
}

#[test]
fn a_server_that_runs_again_executes_commands_again() {
    let (mut server, kernel) = server(|| {});
    let handle = server.handle();
    // Sends only the first byte of a request. The server's loop then ends with an error.
    (&kernel).write_all(&[0]).unwrap();
    server.run().unwrap_err();
    is_rejected(&command(&handle));
    let thread = thread::spawn(move || server.run());
    let executed = |result: io::Result<()>| result.unwrap_err().kind() != io::ErrorKind::BrokenPipe;
    let until = std::time::Instant::now() + PATIENCE;
    while !executed(command(&handle).recv_timeout(PATIENCE).unwrap()) {
        assert!(std::time::Instant::now() < until);
    }
    handle.stop();
    thread.join().unwrap().unwrap();
}

#[test]
fn a_request_takes_no_memory() {
    let (device, _kernel) = UnixStream::pair().unwrap();
    let device = Device::of_file(OwnedFd::from(device).into());
    let mut driver = Driver::new(16, 0, false);
    let session = Session::with_queue(device, driver.memory().clone(), driver.device());
    let kick = session.queues[0].kick.clone().unwrap();
    let mut server = Server {
        session,
        backend: Disk::in_memory(1 << 20).unwrap(),
        waits: vec![Waits::Kick],
        chain: Chain::new(),
        lists: Lists::default(),
    };
    for round in 0..20 {
        let mut header = [0; 16];
        header[0] = round % 2;
        let data = [round; 4096];
        for _ in 0..3 {
            let (header, status) = (Buffer::Read(&header), Buffer::Write(1));
            let data = match round % 2 {
                0 => Buffer::Write(data.len()),
                _ => Buffer::Read(&data),
            };
            driver.send(&[header, data, status]);
        }
        kick.signal().unwrap();
        let allocations = allocation_counter::measure(|| server.turn().unwrap()).count_total;
        for _ in 0..3 {
            let (_, _, found) = driver.receive().expect("an answer");
            assert_eq!(found.last(), Some(&0));
        }
        // The first rounds make the lists and the disk's buffer as large as they need to be.
        assert!(round < 2 || allocations == 0, "{round}: {allocations}");
    }
}
