// SPDX-License-Identifier: GPL-2.0

//! A thread of the test that serves a device.

use std::io;
use std::sync::{mpsc, Arc};
use std::thread::JoinHandle;
use std::time::Duration;

use vduse::server::{Backend, Handle, Server};
use vduse::Device;

use crate::lab::assert::timing::soon;

/// A thread that serves a device. The thread ends on drop.
#[derive(Debug)]
pub struct Serving<B> {
    handle: Option<Handle>,
    thread: Option<JoinHandle<(io::Result<()>, B)>>,
    /// ID of the thread.
    tid: i32,
}

impl<B: Backend + Send + 'static> Serving<B> {
    /// Runs a server in a new thread.
    pub fn run(mut server: Server<B>) -> Self {
        let handle = server.handle();
        let (sender, tid) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let _ = sender.send(rustix::thread::gettid().as_raw_nonzero().get());
            let result = server.run();
            (result, server.into_backend())
        });
        Self {
            handle: Some(handle),
            thread: Some(thread),
            tid: tid.recv().expect("a thread"),
        }
    }
}

impl<B> Serving<B> {
    /// Returns the device that the thread serves.
    pub fn device(&self) -> &Arc<Device> {
        self.handle().device()
    }

    /// Returns the server's handle.
    pub fn handle(&self) -> &Handle {
        self.handle.as_ref().expect("a running server")
    }

    /// Waits until the thread has slept for 300 milliseconds without waking up.
    #[track_caller]
    pub fn falls_asleep(&self) {
        soon("the thread sleeps", || {
            let before = self.sleeping();
            std::thread::sleep(Duration::from_millis(300));
            before.is_some() && self.sleeping() == before
        });
    }

    /// Returns the lines of the thread's status that count its context switches, or `None` if the
    /// thread does not sleep.
    fn sleeping(&self) -> Option<Vec<String>> {
        let path = format!("/proc/self/task/{}/status", self.tid);
        let status = std::fs::read_to_string(path).expect("the thread's status");
        let lines = |key| status.lines().filter(move |line| line.contains(key));
        lines("State:").find(|line| line.contains("S (sleeping)"))?;
        Some(lines("ctxt_switches:").map(str::to_owned).collect())
    }

    /// Stops the server and closes the device. Returns the backend.
    #[track_caller]
    pub fn stop(mut self) -> B {
        let (result, backend) = self.end().expect("a running server");
        result.expect("serving the device");
        backend
    }

    fn end(&mut self) -> Option<(io::Result<()>, B)> {
        if let Some(handle) = self.handle.take() {
            handle.stop();
        }
        self.thread.take()?.join().ok()
    }
}

impl<B> Drop for Serving<B> {
    fn drop(&mut self) {
        self.end();
    }
}
