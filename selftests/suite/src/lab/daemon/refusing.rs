// SPDX-License-Identifier: GPL-2.0

//! A daemon that answers every VDUSE request and makes every I/O request fail, so that the kernel
//! can remove the device.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use vduse::server::{Backend, Handle, Server};
use vduse::virtqueue::Chain;
use vduse::Device;

/// Backend that makes every request to a disk fail. It writes an error to the last device-writable
/// byte of the request, which is the request's status.
struct Refuse;

impl Backend for Refuse {
    fn serve(&mut self, _queue: u16, chain: &Chain) -> u32 {
        u32::from(chain.write_last(1))
    }
}

/// A thread that serves a device until this value is dropped. If serving ends earlier for any
/// reason, the thread opens the device again as soon as possible.
#[derive(Debug)]
pub struct RefusingDaemon {
    stop: Arc<AtomicBool>,
    handle: Arc<Mutex<Option<Handle>>>,
    thread: Option<JoinHandle<()>>,
}

impl RefusingDaemon {
    /// Starts to serve a device. If the device cannot be opened now, the daemon tries again later.
    pub fn start(name: &str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let handle = Arc::new(Mutex::new(None));
        let thread = std::thread::spawn({
            let (name, stop, handle) = (name.to_owned(), stop.clone(), handle.clone());
            move || {
                while !stop.load(Ordering::Acquire) {
                    // `serve` fails if the device is gone, broken, or open elsewhere. The next
                    // attempt may succeed.
                    let _ = serve(&name, &handle, &stop);
                    std::thread::sleep(Duration::from_millis(10));
                }
            }
        });
        Self {
            stop,
            handle,
            thread: Some(thread),
        }
    }
}

/// Serves a device until the device breaks or `stop` is set.
fn serve(name: &str, current: &Mutex<Option<Handle>>, stop: &AtomicBool) -> io::Result<()> {
    let device = Device::open_nonblocking(name)?;
    let queues = (0..=u16::MAX)
        .take_while(|&index| device.vq_info(index.into()).is_ok())
        .count();
    let mut server = Server::take_over(device, queues, Refuse)?;
    *lock(current) = Some(server.handle());
    // `RefusingDaemon::drop` sets `stop` first, and then stops the server if `current` has a
    // handle. So either this check finds `stop` set, or `drop` finds the handle.
    let result = if stop.load(Ordering::SeqCst) {
        Ok(())
    } else {
        server.run()
    };
    *lock(current) = None;
    result
}

fn lock(handle: &Mutex<Option<Handle>>) -> MutexGuard<'_, Option<Handle>> {
    handle.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for RefusingDaemon {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(handle) = &*lock(&self.handle) {
            handle.stop();
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
