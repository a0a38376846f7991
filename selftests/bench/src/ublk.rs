// SPDX-License-Identifier: GPL-2.0

//! A null disk served by ublk, to compare VDUSE with. ublk is another way to serve a disk from a
//! process: each request is an entry of an io_uring. Like the null disk on VDUSE, this disk has one
//! queue with its own thread, and completes requests without accessing their data. The kernel
//! copies the data to and from the thread's buffers.
//!
//! C header: `include/uapi/linux/ublk_cmd.h`

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use io_uring::squeue::{Entry, Entry128};
use io_uring::{opcode, types, IoUring};
use rustix::fs::{open, Mode, OFlags};
use rustix::mm::{madvise, Advice};
use vduse::Mapping;
use vduse_selftests::lab::assert::timing::soon;
use vduse_selftests::lab::kernel::modules;
use vm_memory::{ByteValued, Bytes};

use crate::null::CAPACITY;

/// Maximum number of requests in flight.
const DEPTH: u16 = 128;

/// Maximum length of a request in bytes.
const LONGEST: usize = 1 << 20;

const SECTOR_SHIFT: u8 = 9;

// Commands to the control device (ADD to SET_PARAMETERS) and to a disk's own device (FETCH and
// COMMIT_AND_FETCH).
const ADD: u32 = command(0x04, size_of::<Control>());
const DELETE: u32 = command(0x05, size_of::<Control>());
const START: u32 = command(0x06, size_of::<Control>());
const STOP: u32 = command(0x07, size_of::<Control>());
const SET_PARAMETERS: u32 = command(0x08, size_of::<Control>());
const FETCH: u32 = command(0x20, size_of::<Io>());
const COMMIT_AND_FETCH: u32 = command(0x21, size_of::<Io>());

/// Returns `_IOWR('u', number, ...)` for an argument of `size` bytes.
const fn command(number: u32, size: usize) -> u32 {
    3 << 30 | (size as u32) << 16 | (b'u' as u32) << 8 | number
}

/// Flag: the numbers of commands are encoded like those of ioctls.
const IOCTL_ENCODE: u64 = 1 << 6;

/// Flag: the kernel does not scan for partitions when the disk starts.
const NO_AUTO_PART_SCAN: u64 = 1 << 18;

/// Flag of [`Parameters::types`]: the basic parameters, which every disk has
/// (`struct ublk_param_basic`).
const BASIC: u32 = 1 << 0;

/// `struct ublksrv_ctrl_cmd`
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Control {
    device: u32,
    queue: u16,
    len: u16,
    address: u64,
    data: u64,
    path_len: u16,
    pad: u16,
    reserved: u32,
}

// SAFETY: The structure has numbers only, and no padding.
unsafe impl ByteValued for Control {}

/// `struct ublksrv_ctrl_dev_info`
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Info {
    queues: u16,
    depth: u16,
    state: u16,
    pad0: u16,
    longest: u32,
    device: u32,
    server: i32,
    pad1: u32,
    flags: u64,
    server_flags: u64,
    uid: u32,
    gid: u32,
    reserved: [u64; 2],
}

/// `struct ublk_params`, up to and including `struct ublk_param_basic`.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Parameters {
    len: u32,
    types: u32,
    attributes: u32,
    logical_block: u8,
    physical_block: u8,
    best_io: u8,
    least_io: u8,
    most_sectors: u32,
    chunk_sectors: u32,
    sectors: u64,
    boundary: u64,
}

/// `struct ublksrv_io_desc`
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Request {
    what: u32,
    sectors: u32,
    first: u64,
    address: u64,
}

// SAFETY: The structure has numbers only, and no padding.
unsafe impl ByteValued for Request {}

/// `struct ublksrv_io_cmd`
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Io {
    queue: u16,
    tag: u16,
    result: i32,
    address: u64,
}

// SAFETY: The structure has numbers only, and no padding.
unsafe impl ByteValued for Io {}

/// ublk's control device, and the io_uring for its commands.
struct Commander {
    ring: IoUring<Entry128>,
    file: OwnedFd,
}

impl Commander {
    fn new() -> io::Result<Self> {
        Ok(Self {
            ring: IoUring::builder().build(4)?,
            file: open_device(Path::new("/dev/ublk-control"))?,
        })
    }

    /// Sends the command `what` about a device, and waits until the command is complete. `about` is
    /// the command's argument or result: the kernel reads or writes it.
    fn say<T>(&mut self, what: u32, device: u32, data: u64, about: &mut T) -> io::Result<()> {
        let control = Control {
            device,
            queue: u16::MAX,
            len: size_of::<T>() as u16,
            address: (&raw mut *about) as u64,
            data,
            ..Control::default()
        };
        let mut bytes = [0; 80];
        bytes[..size_of::<Control>()].copy_from_slice(control.as_slice());
        let file = types::Fd(self.file.as_raw_fd());
        let entry = opcode::UringCmd80::new(file, what).cmd(bytes).build();
        // SAFETY: `about` is as long as the command says. The kernel uses `about` only until the
        // command is complete, and this function waits for that.
        unsafe { self.ring.submission().push(&entry) }.map_err(io::Error::other)?;
        self.ring.submit_and_wait(1)?;
        let done = self.ring.completion().next().map(|entry| entry.result());
        match done {
            Some(0..) => Ok(()),
            Some(error) => Err(io::Error::from_raw_os_error(-error)),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

fn open_device(path: &Path) -> io::Result<OwnedFd> {
    Ok(open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?)
}

/// A null disk served by ublk.
pub struct UblkDisk {
    commander: Commander,
    device: u32,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl UblkDisk {
    /// Creates a disk and serves it.
    pub fn new() -> Self {
        modules::tool("modprobe", &["ublk_drv"]).expect("the kernel's ublk_drv");
        Self::try_new().expect("a ublk disk")
    }

    fn try_new() -> io::Result<Self> {
        let mut commander = Commander::new()?;
        let mut info = Info {
            queues: 1,
            depth: DEPTH,
            longest: LONGEST as u32,
            device: u32::MAX,
            flags: IOCTL_ENCODE | NO_AUTO_PART_SCAN,
            ..Info::default()
        };
        commander.say(ADD, u32::MAX, 0, &mut info)?;
        let device = info.device;
        let mut parameters = Parameters {
            len: size_of::<Parameters>() as u32,
            types: BASIC,
            logical_block: SECTOR_SHIFT,
            physical_block: SECTOR_SHIFT,
            best_io: SECTOR_SHIFT,
            least_io: SECTOR_SHIFT,
            most_sectors: (LONGEST >> SECTOR_SHIFT) as u32,
            sectors: CAPACITY >> SECTOR_SHIFT,
            ..Parameters::default()
        };
        commander.say(SET_PARAMETERS, device, 0, &mut parameters)?;
        let path = PathBuf::from(format!("/dev/ublkc{device}"));
        soon("the ublk device appears", || path.exists());
        let queue = Queue::new(open_device(&path)?)?;
        let thread = std::thread::spawn(move || queue.run());
        let pid = rustix::process::getpid().as_raw_nonzero().get();
        commander.say(START, device, pid as u64, &mut ())?;
        Ok(Self {
            commander,
            device,
            thread: Some(thread),
        })
    }

    /// Returns the name of the disk's block device.
    pub fn block(&self) -> String {
        format!("ublkb{}", self.device)
    }
}

impl Drop for UblkDisk {
    fn drop(&mut self) {
        let stopped = self.commander.say(STOP, self.device, 0, &mut ());
        // The thread ends when the kernel has completed all of the thread's commands.
        let served = self.thread.take().map(JoinHandle::join);
        let deleted = self.commander.say(DELETE, self.device, 0, &mut ());
        if !std::thread::panicking() {
            stopped.expect("stopping a ublk disk");
            let served = served.expect("a thread").expect("the queue's thread");
            served.expect("serving a ublk disk");
            deleted.expect("deleting a ublk disk");
        }
    }
}

/// The data that the queue's thread owns.
struct Queue {
    file: OwnedFd,
    requests: Mapping,
    buffers: Mapping,
}

impl Queue {
    fn new(file: OwnedFd) -> io::Result<Self> {
        let bytes = usize::from(DEPTH) * size_of::<Request>();
        let requests = Mapping::of_file(file.as_fd(), 0, bytes as u64, vduse::uapi::ACCESS_RO)?;
        let buffers = Mapping::anonymous(usize::from(DEPTH) * LONGEST)?;
        // Populate all buffers in advance, so that no request has to allocate pages. This is like
        // VDUSE, which keeps bounce pages that have been used, and uses them for any later request.
        let start = buffers.address().cast();
        // SAFETY: The advice does not change the contents of the memory.
        unsafe { madvise(start, buffers.len(), Advice::LinuxPopulateWrite) }?;
        Ok(Self {
            file,
            requests,
            buffers,
        })
    }

    fn entry(&self, what: u32, tag: u16, result: i32) -> Entry {
        let buffer = usize::from(tag) * LONGEST;
        let io = Io {
            queue: 0,
            tag,
            result,
            address: self.buffers.address().wrapping_add(buffer) as u64,
        };
        let mut bytes = [0; size_of::<Io>()];
        bytes.copy_from_slice(io.as_slice());
        opcode::UringCmd16::new(types::Fd(self.file.as_raw_fd()), what)
            .cmd(bytes)
            .build()
            .user_data(tag.into())
    }

    /// Serves requests until the disk is stopped.
    fn run(self) -> io::Result<()> {
        let mut ring: IoUring = IoUring::builder()
            .setup_single_issuer()
            .build(DEPTH.into())?;
        let (submitter, mut submission, mut completion) = ring.split();
        for tag in 0..DEPTH {
            let entry = self.entry(FETCH, tag, 0);
            // SAFETY: The buffer was created before the ring, and is freed after the ring.
            unsafe { submission.push(&entry) }.map_err(io::Error::other)?;
        }
        let mut left = DEPTH;
        while left != 0 {
            // Pass the pushed submissions and the consumed completions to the kernel. After the
            // wait, fetch the kernel's changes to both queues.
            submission.sync();
            completion.sync();
            submitter.submit_and_wait(1)?;
            submission.sync();
            completion.sync();
            for done in &mut completion {
                let tag = done.user_data() as u16;
                if done.result() != 0 {
                    left -= 1;
                    continue;
                }
                let at = usize::from(tag) * size_of::<Request>();
                let request: Request = self
                    .requests
                    .bytes()
                    .read_obj(at)
                    .map_err(io::Error::other)?;
                let bytes = (request.sectors << SECTOR_SHIFT) as i32;
                let entry = self.entry(COMMIT_AND_FETCH, tag, bytes);
                // SAFETY: The buffer was created before the ring, and is freed after the ring.
                unsafe { submission.push(&entry) }.map_err(io::Error::other)?;
            }
        }
        Ok(())
    }
}
