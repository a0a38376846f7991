// SPDX-License-Identifier: GPL-2.0

//! A device served by a thread of the test.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use vduse::server::{Backend, Handle, Server};
use vduse::Device;

/// A device's thread, which ends when this is dropped.
#[derive(Debug)]
pub struct Serving<B> {
    handle: Option<Handle>,
    thread: Option<JoinHandle<(io::Result<()>, B)>>,
}

impl<B: Backend + Send + 'static> Serving<B> {
    /// Runs a server.
    pub fn run(mut server: Server<B>) -> Self {
        let handle = server.handle();
        let thread = std::thread::spawn(move || {
            let result = server.run();
            (result, server.into_backend())
        });
        Self {
            handle: Some(handle),
            thread: Some(thread),
        }
    }
}

impl<B> Serving<B> {
    /// The device.
    pub fn device(&self) -> &Arc<Device> {
        self.handle().device()
    }

    /// The server's handle.
    pub fn handle(&self) -> &Handle {
        self.handle.as_ref().expect("a running server")
    }

    /// Ends the server, closes the device, and gives back what served it.
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
