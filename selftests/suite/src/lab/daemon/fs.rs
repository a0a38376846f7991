// SPDX-License-Identifier: GPL-2.0

//! A file system device (virtio 1.3, section 5.11) that exports a directory.

use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vduse::server::Backend;
use vduse::virtqueue::Chain;
use vduse::{blk, DeviceConfig};

use crate::lab::daemon::fuse::{Directory, MAX_REQUEST};
use crate::lab::device::virtio::id;

/// Number of request queues.
pub const REQUEST_QUEUES: u16 = 2;

/// Number of virtqueues. The first one is for high-priority requests, which must not wait for other
/// requests.
pub const QUEUES: u16 = 1 + REQUEST_QUEUES;

/// Length in bytes of the tag in the configuration space.
const TAG: usize = 36;

/// Returns the configuration of a file system device. A mount finds the device by its tag, which is
/// the device's name.
pub fn device_config(name: &str) -> DeviceConfig {
    let mut config = DeviceConfig::new(name, id::FS);
    // Bits 0 to 23 of `blk::FEATURES` are specific to disks, so this device does not offer them.
    // The other bits are features of the transport.
    config.features = blk::FEATURES & !0xff_ffff;
    config.queues = QUEUES;
    config.space = name.as_bytes().to_vec();
    config.space.resize(TAG, 0);
    config
        .space
        .extend_from_slice(&u32::from(REQUEST_QUEUES).to_le_bytes());
    config
}

/// A received request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Index of the virtqueue on which the request arrived.
    pub queue: u16,
    /// Code of the operation, one of [`op`](super::fuse::op).
    pub opcode: u32,
}

/// The requests that the backend has received so far.
#[derive(Clone, Debug, Default)]
pub struct Log(Arc<Mutex<Vec<Asked>>>);

impl Log {
    fn lock(&self) -> MutexGuard<'_, Vec<Asked>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Clears the log.
    pub fn clear(&self) {
        self.lock().clear();
    }

    /// Returns the number of logged requests for which `which` returns true.
    pub fn count(&self, which: impl Fn(Asked) -> bool) -> usize {
        self.lock().iter().filter(|&&asked| which(asked)).count()
    }

    /// Returns the number of logged requests for the operation `opcode`.
    pub fn asked(&self, opcode: u32) -> usize {
        self.count(|asked| asked.opcode == opcode)
    }
}

/// Backend of a file system device, which exports a directory.
#[derive(Debug)]
pub struct Files {
    directory: Directory,
    log: Log,
    request: Vec<u8>,
}

impl Files {
    /// Creates a backend that exports a directory.
    pub fn new(directory: &Path) -> Self {
        Self {
            directory: Directory::new(directory),
            log: Log::default(),
            request: Vec::new(),
        }
    }

    /// Returns the log of received requests.
    pub fn log(&self) -> &Log {
        &self.log
    }

    fn try_serve(&mut self, queue: u16, chain: &Chain) -> io::Result<u32> {
        let (mut input, mut output) = (chain.reader(), chain.writer());
        // A request longer than `MAX_REQUEST` is truncated. The length in its header is then wrong,
        // so the answer is an error.
        let len = input.available_bytes().min(MAX_REQUEST);
        self.request.resize(len, 0);
        input.read_exact(&mut self.request)?;
        if let Some(&[a, b, c, d]) = self.request.get(4..8) {
            let opcode = u32::from_le_bytes([a, b, c, d]);
            self.log.lock().push(Asked { queue, opcode });
        }
        let answer = self
            .directory
            .answer(&self.request, output.available_bytes());
        output.write_all(&answer)?;
        // CAST: An answer is shorter than `MAX_REQUEST`.
        Ok(answer.len() as u32)
    }
}

impl Backend for Files {
    fn serve(&mut self, queue: u16, chain: &Chain) -> u32 {
        self.try_serve(queue, chain).unwrap_or(0)
    }
}
