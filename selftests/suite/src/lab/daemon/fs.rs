// SPDX-License-Identifier: GPL-2.0

//! A file system device (virtio 1.3, section 5.11) that exports a directory, and the kernel's
//! virtiofs on it.

use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::mount::{
    fsconfig_create, fsconfig_set_string, fsmount, fsopen, FsMountFlags, FsOpenFlags,
    MountAttrFlags,
};
use vduse::server::{Backend, Chain, Memory, Server};
use vduse::{blk, DeviceConfig};

use crate::lab::daemon::disk::Served;
use crate::lab::daemon::fuse::{Folder, MAX_REQUEST};
use crate::lab::device::bus::{Driver, OnBus};
use crate::lab::device::test_device::{id, unique_name, TestDevice};
use crate::lab::kernel::modules;
use crate::lab::run::report::skip;
use crate::lab::run::scratch::Scratch;

/// Number of request queues.
pub const REQUEST_QUEUES: u16 = 2;

/// Number of queues; the first queue is for high-priority requests, which must not wait for others.
pub const QUEUES: u16 = 1 + REQUEST_QUEUES;

/// Length of the tag in the configuration space.
const TAG: usize = 36;

/// Returns the configuration of a file system device. The tag for mounting is the device's name.
pub fn device_config(name: &str) -> DeviceConfig {
    let mut config = DeviceConfig::new(name, id::FS);
    // Only features of the transport.
    config.features = blk::FEATURES & !0xff_ffff;
    config.queues = QUEUES;
    config.space = name.as_bytes().to_vec();
    config.space.resize(TAG, 0);
    config
        .space
        .extend_from_slice(&u32::from(REQUEST_QUEUES).to_le_bytes());
    config
}

/// A received request: its queue and its operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// The virtqueue.
    pub queue: u16,
    /// The operation, one of [`op`](super::fuse::op).
    pub opcode: u32,
}

/// The requests received so far.
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

    /// Returns the number of matching requests.
    pub fn count(&self, which: impl Fn(Asked) -> bool) -> usize {
        self.lock().iter().filter(|&&asked| which(asked)).count()
    }

    /// Returns the number of requests for an operation.
    pub fn asked(&self, opcode: u32) -> usize {
        self.count(|asked| asked.opcode == opcode)
    }
}

/// A file system device's backend, which exports a directory.
#[derive(Debug)]
pub struct Files {
    folder: Folder,
    log: Log,
    request: Vec<u8>,
}

impl Files {
    /// Exports a directory.
    pub fn new(folder: &Path) -> Self {
        Self {
            folder: Folder::new(folder),
            log: Log::default(),
            request: Vec::new(),
        }
    }

    fn try_serve(&mut self, queue: u16, chain: Chain, memory: &Memory) -> io::Result<u32> {
        let mut input = chain.clone().reader(memory).map_err(io::Error::other)?;
        let mut output = chain.writer(memory).map_err(io::Error::other)?;
        // A longer request is truncated and so has a wrong length in its header.
        let len = input.available_bytes().min(MAX_REQUEST);
        self.request.resize(len, 0);
        input.read_exact(&mut self.request)?;
        if let Some(&[a, b, c, d]) = self.request.get(4..8) {
            let opcode = u32::from_le_bytes([a, b, c, d]);
            self.log.lock().push(Asked { queue, opcode });
        }
        let answer = self.folder.answer(&self.request, output.available_bytes());
        output.write_all(&answer)?;
        // An answer is shorter than the longest request.
        Ok(answer.len() as u32)
    }
}

impl Backend for Files {
    fn serve(&mut self, queue: u16, chain: Chain, memory: &Memory) -> u32 {
        self.try_serve(queue, chain, memory).unwrap_or(0)
    }
}

/// Skips the test if the kernel does not support virtiofs.
pub fn need_virtiofs() {
    // virtiofs may be loaded already or built in.
    let _ = modules::tool("modprobe", &["virtiofs"]);
    let all = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if !all.contains("\tvirtiofs\n") {
        skip("this kernel has no virtiofs");
    }
}

/// A mounted file system that is not attached to any directory, so that nothing is left of it when
/// a test is killed.
#[derive(Debug)]
pub struct Mount(OwnedFd);

impl Mount {
    /// Mounts the file system with this tag.
    pub fn new(tag: &str) -> io::Result<Self> {
        let context = fsopen("virtiofs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_set_string(&context, "source", tag)?;
        fsconfig_create(&context)?;
        let mount = fsmount(
            &context,
            FsMountFlags::FSMOUNT_CLOEXEC,
            MountAttrFlags::empty(),
        )?;
        Ok(Self(mount))
    }

    /// Returns the path of a file in the file system.
    pub fn path(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}/{name}", self.0.as_raw_fd()))
    }
}

/// A file system device bound to virtio-vdpa, and the exported directory. `S` is the value that
/// serves the device.
///
/// The fields are dropped in this order: the driver is removed while the device is still served.
#[derive(Debug)]
pub struct LiveFs<S> {
    /// The device on the bus.
    pub on_bus: OnBus,
    /// The value that serves the device.
    pub served: S,
    /// The created device.
    pub device: TestDevice,
    /// Contains the exported directory, `files`.
    scratch: Scratch,
}

impl<S> LiveFs<S> {
    /// Creates a device, has `serve` serve the device with an exported directory, and binds it. The
    /// device has `spaces` address spaces, which share the bounce area; 0 is version 0 of the API.
    #[track_caller]
    pub fn serve(spaces: u32, serve: impl FnOnce(&TestDevice, &Path) -> S) -> Self {
        need_virtiofs();
        let scratch = Scratch::new();
        let folder = scratch.path("files");
        std::fs::create_dir(&folder).expect("making a folder");
        let device = TestDevice::with_spaces(device_config(&unique_name()), spaces);
        let served = serve(&device, &folder);
        let on_bus = OnBus::add(device.name()).expect("adding the file system");
        on_bus
            .bind(Driver::Virtio)
            .expect("binding the file system");
        Self {
            on_bus,
            served,
            device,
            scratch,
        }
    }

    /// Returns the exported directory.
    pub fn folder(&self) -> PathBuf {
        self.scratch.path("files")
    }

    /// Returns the path of a file in the exported directory.
    pub fn behind(&self, name: &str) -> PathBuf {
        self.folder().join(name)
    }

    /// Mounts the file system.
    #[track_caller]
    pub fn mount(&self) -> Mount {
        Mount::new(self.device.name()).expect("mounting")
    }
}

impl LiveFs<(Served<Files>, Log)> {
    /// Creates a device that a thread of the test serves.
    #[track_caller]
    pub fn new() -> Self {
        Self::with_spaces(0)
    }

    /// Variant of [`new`](Self::new) with this number of address spaces; 0 is API version 0.
    #[track_caller]
    pub fn with_spaces(spaces: u32) -> Self {
        Self::serve(spaces, |device, folder| {
            let files = Files::new(folder);
            let log = files.log.clone();
            let sizes = [256; QUEUES as usize];
            let server = Server::new(device.open_nonblocking(), &sizes, files);
            (Served::run(server.expect("serving the files")), log)
        })
    }

    /// Returns the log of requests.
    pub fn log(&self) -> &Log {
        &self.served.1
    }
}
