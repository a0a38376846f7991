// SPDX-License-Identifier: GPL-2.0

//! Mounts of a VDUSE file system device with the kernel's virtiofs.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::mount::{
    fsconfig_create, fsconfig_set_string, fsmount, fsopen, FsMountFlags, FsOpenFlags,
    MountAttrFlags,
};
use vduse::server::Server;

use crate::lab::daemon::disk::Served;
use crate::lab::daemon::fs::{device_config, Files, Log, QUEUES};
use crate::lab::device::bus::{Driver, OnBus};
use crate::lab::device::test_device::{unique_name, TestDevice};
use crate::lab::kernel::modules;
use crate::lab::run::report::skip;
use crate::lab::run::scratch::Scratch;

/// Skips the test if the kernel does not support virtiofs.
pub fn need_virtiofs() {
    // `modprobe` may fail if virtiofs is built into the kernel. The check below decides.
    let _ = modules::tool("modprobe", &["virtiofs"]);
    let all = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if !all.contains("\tvirtiofs\n") {
        skip("this kernel has no virtiofs");
    }
}

/// A mounted file system that is not attached to any directory. The kernel unmounts the file system
/// when the test ends, even if the test is killed.
#[derive(Debug)]
pub struct Mount(OwnedFd);

impl Mount {
    /// Mounts the file system of the device with the tag `tag`.
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

/// A file system device that is bound to virtio-vdpa, and the exported directory. `S` is the type
/// of the value that serves the device.
///
/// The fields are dropped in declaration order, so that the device is still served while the driver
/// is removed.
#[derive(Debug)]
pub struct LiveFs<S> {
    /// The device on the bus.
    pub on_bus: OnBus,
    /// The value that serves the device.
    pub served: S,
    /// The created device.
    pub device: TestDevice,
    /// The temporary directory that contains the exported directory, `files`.
    scratch: Scratch,
}

impl<S> LiveFs<S> {
    /// Creates a device, calls `serve` to start serving the exported directory, and binds the
    /// device to virtio-vdpa. The device has `spaces` address spaces, which share the bounce area.
    /// If `spaces` is 0, the device has API version 0.
    #[track_caller]
    pub fn serve(spaces: u32, serve: impl FnOnce(&TestDevice, &Path) -> S) -> Self {
        need_virtiofs();
        let scratch = Scratch::new();
        let directory = scratch.path("files");
        std::fs::create_dir(&directory).expect("making a directory");
        let device = TestDevice::with_spaces(device_config(&unique_name()), spaces);
        let served = serve(&device, &directory);
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
    pub fn directory(&self) -> PathBuf {
        self.scratch.path("files")
    }

    /// Returns the path of the file `name` in the exported directory.
    pub fn behind(&self, name: &str) -> PathBuf {
        self.directory().join(name)
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

    /// Variant of [`new`](Self::new) with `spaces` address spaces. If `spaces` is 0, the device has
    /// API version 0.
    #[track_caller]
    pub fn with_spaces(spaces: u32) -> Self {
        Self::serve(spaces, |device, directory| {
            let files = Files::new(directory);
            let log = files.log().clone();
            let sizes = [256; QUEUES as usize];
            let server = Server::new(device.open_nonblocking(), &sizes, files);
            (Served::run(server.expect("serving the files")), log)
        })
    }

    /// Returns the log of the requests that the backend has received.
    pub fn log(&self) -> &Log {
        &self.served.1
    }
}
