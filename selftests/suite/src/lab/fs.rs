// SPDX-License-Identifier: GPL-2.0

//! A file system (virtio 1.3, section 5.11) that shows a folder, and the kernel's virtiofs on it.

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

use crate::lab::bus::{Driver, OnBus};
use crate::lab::device::{id, unique_name, TestDevice};
use crate::lab::disk::Served;
use crate::lab::fuse::{Folder, MAX_REQUEST};
use crate::lab::scratch::Scratch;
use crate::lab::skip;
use crate::modules;

/// How many queues there are that requests go through.
pub const REQUEST_QUEUES: u16 = 2;

/// How many queues there are; the first one is for what must not wait behind other requests.
pub const QUEUES: u16 = 1 + REQUEST_QUEUES;

/// The length of a tag in the configuration space.
const TAG: usize = 36;

/// What the file system of a device is to be. Its tag, by which it is mounted, is the device's
/// name.
pub fn device_config(name: &str) -> DeviceConfig {
    let mut config = DeviceConfig::new(name, id::FS);
    // No more than the transport's own features.
    config.features = blk::FEATURES & !0xff_ffff;
    config.queues = QUEUES;
    config.space = name.as_bytes().to_vec();
    config.space.resize(TAG, 0);
    config
        .space
        .extend_from_slice(&u32::from(REQUEST_QUEUES).to_le_bytes());
    config
}

/// A request as it came: through which queue, and what was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// The virtqueue.
    pub queue: u16,
    /// The operation, one of [`op`](super::fuse::op).
    pub opcode: u32,
}

/// What was asked so far.
#[derive(Clone, Debug, Default)]
pub struct Log(Arc<Mutex<Vec<Asked>>>);

impl Log {
    fn lock(&self) -> MutexGuard<'_, Vec<Asked>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets what was asked so far.
    pub fn clear(&self) {
        self.lock().clear();
    }

    /// How many requests there were of this kind.
    pub fn count(&self, which: impl Fn(Asked) -> bool) -> usize {
        self.lock().iter().filter(|&&asked| which(asked)).count()
    }

    /// How often this was asked.
    pub fn asked(&self, opcode: u32) -> usize {
        self.count(|asked| asked.opcode == opcode)
    }
}

/// The device: a folder behind virtqueues.
#[derive(Debug)]
pub struct Files {
    folder: Folder,
    log: Log,
    request: Vec<u8>,
}

impl Files {
    /// Shows a folder.
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
        // Of one that is longer, the length that it says is wrong.
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

/// Ends the test where the kernel has no virtiofs.
pub fn need_virtiofs() {
    // It may be there already, or built in.
    let _ = modules::tool("modprobe", &["virtiofs"]);
    let all = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if !all.contains("\tvirtiofs\n") {
        skip("this kernel has no virtiofs");
    }
}

/// A file system that is mounted, in no folder: what is left of it when a test is killed is
/// nothing.
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

    /// The path of a file there.
    pub fn path(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}/{name}", self.0.as_raw_fd()))
    }
}

/// A file system's device, bound to virtio-vdpa, and the folder behind it. Who serves it is `S`.
///
/// The fields are dropped in this order: the driver goes while the device still answers.
#[derive(Debug)]
pub struct LiveFs<S> {
    /// On the bus.
    pub on_bus: OnBus,
    /// Served.
    pub served: S,
    /// Created.
    pub device: TestDevice,
    /// The folder, `files` in here.
    scratch: Scratch,
}

impl<S> LiveFs<S> {
    /// Has a file system served as `serve` says of a device and a folder, and binds it. With other than
    /// 0 `spaces`, it has so many address spaces, which share the bounce area.
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

    /// The folder behind the file system.
    pub fn folder(&self) -> PathBuf {
        self.scratch.path("files")
    }

    /// The file of this name, as the folder has it.
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
    /// One that a thread of the test serves.
    #[track_caller]
    pub fn new() -> Self {
        Self::with_spaces(0)
    }

    /// The same, with so many address spaces; 0 is version 0 of the API.
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

    /// What was asked so far.
    pub fn log(&self) -> &Log {
        &self.served.1
    }
}
