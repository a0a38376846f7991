// SPDX-License-Identifier: GPL-2.0

//! A daemon that serves a device correctly.

use std::fs::OpenOptions;
use std::sync::Arc;
use std::time::Duration;

use vduse::blk::Disk;
use vduse::server::{Backend, Server};
use vduse::virtqueue::Chain;
use vduse::Device;

use crate::fuzz::actor::Actor;
use crate::fuzz::controller::DISK;
use crate::fuzz::daemon::errors::{BROKEN, INVALID};
use crate::fuzz::records::Wait;

/// Returns the number of virtqueues of a device.
pub fn queues(device: &Device) -> u32 {
    let there = |&index: &u32| device.vq_info(index).is_ok();
    (0..=u32::from(u16::MAX)).take_while(there).count() as u32
}

/// Backend that returns each buffer to the driver without writing to it.
struct Sink;

impl Backend for Sink {
    fn serve(&mut self, _queue: u16, _chain: &Chain) -> u32 {
        0
    }
}

/// Serves a device correctly for a number of milliseconds.
pub fn serve(actor: &mut Actor, name: &str, device: Device, milliseconds: u64) {
    let count = queues(&device) as usize;
    if name.starts_with("fuzz-disk") {
        let path = actor.path(name);
        let open = || {
            let mut options = OpenOptions::new();
            let file = options.read(true).write(true).create(true).open(&path)?;
            file.set_len(DISK)?;
            Ok(file)
        };
        let Some(file) = actor.call("open the disk's file", Wait::Short, &[], open) else {
            return;
        };
        serve_with(
            actor,
            device,
            count,
            Disk::new(Arc::new(file)),
            milliseconds,
        );
    } else {
        serve_with(actor, device, count, Sink, milliseconds);
    }
}

fn serve_with<B: Backend>(
    actor: &mut Actor,
    device: Device,
    count: usize,
    backend: B,
    milliseconds: u64,
) {
    let begin = || Server::take_over(device, count, backend);
    let Some(mut server) = actor.call("take over", Wait::Short, &[BROKEN], begin) else {
        return;
    };
    let handle = server.handle();
    std::thread::scope(|scope| {
        let (sender, ended) = std::sync::mpsc::channel::<()>();
        scope.spawn(move || {
            let _ = ended.recv_timeout(Duration::from_millis(milliseconds));
            handle.stop();
        });
        actor.call("serve", Wait::Daemon, INVALID, || server.run());
        drop(sender);
    });
}
