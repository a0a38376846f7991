// SPDX-License-Identifier: GPL-2.0

//! A device's last program: it answers all there is to answer with errors, so that the device can
//! be taken away.

use std::thread::JoinHandle;

use vduse::server::{Backend, Chain, Handle, Memory, Server};
use vduse::Device;

/// Fails every request of a disk; the last byte of a request is its status.
struct Refuse;

impl Backend for Refuse {
    fn serve(&mut self, _queue: u16, chain: Chain, memory: &Memory) -> u32 {
        use std::io::Write;
        let Ok(mut output) = chain.writer(memory) else {
            return 0;
        };
        let Some(before) = output.available_bytes().checked_sub(1) else {
            return 0;
        };
        let Ok(mut status) = output.split_at(before) else {
            return 0;
        };
        let _ = status.write_all(&[1]);
        1
    }
}

/// Serves a device that nobody serves, until it is dropped.
#[derive(Debug)]
pub struct Rescuer {
    running: Option<(Handle, JoinHandle<()>)>,
}

impl Rescuer {
    /// Opens a device if it can be opened.
    pub fn start(name: &str) -> Self {
        Self {
            running: Self::try_start(name),
        }
    }

    fn try_start(name: &str) -> Option<(Handle, JoinHandle<()>)> {
        let device = Device::open_nonblocking(name).ok()?;
        let queues = (0..=u16::MAX)
            .take_while(|&index| device.vq_info(index.into()).is_ok())
            .count();
        let mut server = Server::new(device, &vec![256; queues], Refuse).ok()?;
        let handle = server.handle();
        let thread = std::thread::spawn(move || {
            let _ = server.run();
        });
        Some((handle, thread))
    }
}

impl Drop for Rescuer {
    fn drop(&mut self) {
        if let Some((handle, thread)) = self.running.take() {
            handle.stop();
            drop(handle);
            let _ = thread.join();
        }
    }
}
