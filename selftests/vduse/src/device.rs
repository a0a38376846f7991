// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The character device of a VDUSE device, `/dev/vduse/NAME`: its ioctls and its messages.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use rustix::fs::OFlags;
use vduse_uapi as uapi;

use crate::request::{Answer, Request};
use crate::sys;

/// An open device.
///
/// Only one program at a time can have a device open. Dropping a `Device` does not destroy the
/// device: the same or another program can open the device again and continue to serve it.
#[derive(Debug)]
pub struct Device {
    name: String,
    file: File,
}

/// An IOVA region, as [`Device::iotlb_fd`] returns it.
#[derive(Debug)]
pub struct Region {
    /// The file to map. Dropping the region closes the file. Mappings of the file stay.
    pub file: OwnedFd,
    /// Offset of the region in the file, in bytes.
    pub offset: u64,
    /// First IOVA of the region.
    pub first: u64,
    /// Last IOVA of the region.
    pub last: u64,
    /// Permissions of the region: [`ACCESS_RO`](uapi::ACCESS_RO),
    /// [`ACCESS_WO`](uapi::ACCESS_WO) or [`ACCESS_RW`](uapi::ACCESS_RW).
    pub access: u8,
}

impl Device {
    /// Returns the path of the character device of the device called `name`.
    pub fn path(name: &str) -> PathBuf {
        // The kernel replaces a slash with an exclamation mark.
        PathBuf::from("/dev/vduse").join(name.replace('/', "!"))
    }

    /// Opens a device in blocking mode, in which [`read_request`](Self::read_request) waits for a
    /// request.
    ///
    /// # Errors
    ///
    /// `ENOENT` when the device does not exist, `EBUSY` when another program has the device open.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use vduse::request::{Answer, Kind};
    /// use vduse::Device;
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let device = Device::open("disk0")?;
    /// device.vq_setup(0, 256)?;
    /// loop {
    ///     let request = device.read_request()?;
    ///     let answer = match request.kind {
    ///         Kind::GetVqState { index } => Answer::SplitState { index, next_avail: 0 },
    ///         Kind::Unknown(_) => Answer::Failed,
    ///         _ => Answer::Ok,
    ///     };
    ///     device.answer(&request, answer)?;
    /// }
    /// # }
    /// ```
    pub fn open(name: &str) -> io::Result<Self> {
        Self::open_with(name, OFlags::empty())
    }

    /// Opens a device in non-blocking mode, in which [`read_request`](Self::read_request) fails
    /// with `EAGAIN` when there is no request.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open).
    pub fn open_nonblocking(name: &str) -> io::Result<Self> {
        Self::open_with(name, OFlags::NONBLOCK)
    }

    fn open_with(name: &str, flags: OFlags) -> io::Result<Self> {
        OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(flags.bits() as i32)
            .open(Self::path(name))
            .map(|file| Self {
                name: name.to_owned(),
                file,
            })
    }

    /// Returns a device whose messages are read from and written to `file`, for tests without a
    /// kernel. Every ioctl fails.
    #[cfg(test)]
    pub(crate) fn of_file(file: File) -> Self {
        Self {
            name: "test".to_owned(),
            file,
        }
    }

    /// Returns the device's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Reads the virtio feature bits that the driver has accepted.
    ///
    /// # Errors
    ///
    /// `EPERM` when the kernel has marked the device broken.
    pub fn features(&self) -> io::Result<u64> {
        let mut features = 0;
        sys::exchange(&self.file, uapi::ioctl::DEV_GET_FEATURES, &mut features)?;
        Ok(features)
    }

    /// Writes to the configuration space. Use [`inject_config_irq`](Self::inject_config_irq) to
    /// notify the driver of the change.
    ///
    /// # Errors
    ///
    /// `EINVAL` when `data` is empty or extends beyond the end of the configuration space.
    pub fn set_config(&self, offset: u32, data: &[u8]) -> io::Result<()> {
        let length = u32::try_from(data.len())
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "configuration too long"))?;
        let head = uapi::ConfigData { offset, length };
        sys::send_with_tail(&self.file, uapi::ioctl::DEV_SET_CONFIG, &head, data)
    }

    /// Notifies the driver that the configuration space has changed.
    ///
    /// # Errors
    ///
    /// `EINVAL` before the driver has set `DRIVER_OK`.
    pub fn inject_config_irq(&self) -> io::Result<()> {
        sys::signal(&self.file, uapi::ioctl::DEV_INJECT_CONFIG_IRQ)
    }

    /// Sets up a virtqueue. A device cannot be put on the vDPA bus before all of its virtqueues are
    /// set up.
    ///
    /// # Errors
    ///
    /// `EINVAL` when there is no such virtqueue.
    pub fn vq_setup(&self, index: u16, max_size: u16) -> io::Result<()> {
        self.vq_setup_raw(&uapi::VqConfig {
            index: index.into(),
            max_size,
            ..Default::default()
        })
    }

    /// Variant of [`vq_setup`](Self::vq_setup) that takes the ABI's structure.
    ///
    /// # Errors
    ///
    /// `EINVAL` when the kernel rejects a value.
    pub fn vq_setup_raw(&self, config: &uapi::VqConfig) -> io::Result<()> {
        sys::send(&self.file, uapi::ioctl::VQ_SETUP, config)
    }

    /// Reads the size, the addresses, the position and the ready flag that the driver has set for a
    /// virtqueue.
    ///
    /// # Errors
    ///
    /// `EINVAL` when there is no such virtqueue.
    pub fn vq_info(&self, index: u32) -> io::Result<uapi::VqInfo> {
        let mut info = uapi::VqInfo {
            index,
            ..Default::default()
        };
        sys::exchange(&self.file, uapi::ioctl::VQ_GET_INFO, &mut info)?;
        Ok(info)
    }

    /// Sets the eventfd that is signalled when the driver kicks a virtqueue. A kick that arrived
    /// while no eventfd was set is delivered at once.
    ///
    /// # Errors
    ///
    /// `EINVAL` when there is no such virtqueue or the descriptor is not an eventfd.
    pub fn set_kick(&self, index: u16, eventfd: BorrowedFd<'_>) -> io::Result<()> {
        use std::os::fd::AsRawFd;
        self.set_kick_raw(&uapi::VqEventfd {
            index: index.into(),
            fd: eventfd.as_raw_fd(),
        })
    }

    /// Removes the kick eventfd of a virtqueue.
    ///
    /// # Errors
    ///
    /// `EINVAL` when there is no such virtqueue.
    pub fn clear_kick(&self, index: u16) -> io::Result<()> {
        self.set_kick_raw(&uapi::VqEventfd {
            index: index.into(),
            fd: uapi::EVENTFD_DEASSIGN,
        })
    }

    /// Variant of [`set_kick`](Self::set_kick) that takes the ABI's structure.
    ///
    /// # Errors
    ///
    /// Returns the error with which the kernel rejects the values.
    pub fn set_kick_raw(&self, eventfd: &uapi::VqEventfd) -> io::Result<()> {
        sys::send(&self.file, uapi::ioctl::VQ_SETUP_KICKFD, eventfd)
    }

    /// Interrupts the driver on behalf of a virtqueue.
    ///
    /// # Errors
    ///
    /// `EINVAL` when there is no such virtqueue, or before the driver has set `DRIVER_OK`.
    pub fn inject_vq_irq(&self, index: u32) -> io::Result<()> {
        sys::send(&self.file, uapi::ioctl::VQ_INJECT_IRQ, &index)
    }

    /// Finds the first IOVA region that overlaps the IOVAs from `first` to `last`.
    ///
    /// # Errors
    ///
    /// `EINVAL` when no region overlaps the range.
    pub fn iotlb_fd(&self, first: u64, last: u64) -> io::Result<Region> {
        let mut entry = uapi::IotlbEntry {
            start: first,
            last,
            ..Default::default()
        };
        let fd = sys::exchange(&self.file, uapi::ioctl::IOTLB_GET_FD, &mut entry)?;
        Ok(Region {
            // SAFETY: The ioctl returns a new descriptor, which nothing else owns.
            file: unsafe { OwnedFd::from_raw_fd(fd) },
            offset: entry.offset,
            first: entry.start,
            last: entry.last,
            access: entry.perm,
        })
    }

    /// Variant of [`iotlb_fd`](Self::iotlb_fd) that searches address space `asid` of a version 1
    /// device.
    ///
    /// # Errors
    ///
    /// As [`iotlb_fd`](Self::iotlb_fd), and `ENOTTY` on a device of version 0.
    pub fn iotlb_fd2(&self, asid: u32, first: u64, last: u64) -> io::Result<Region> {
        let mut entry = uapi::IotlbEntryV2 {
            start: first,
            last,
            asid,
            ..Default::default()
        };
        let fd = sys::exchange(&self.file, uapi::ioctl::IOTLB_GET_FD2, &mut entry)?;
        Ok(Region {
            // SAFETY: The ioctl returns a new descriptor, which nothing else owns.
            file: unsafe { OwnedFd::from_raw_fd(fd) },
            offset: entry.offset,
            first: entry.start,
            last: entry.last,
            access: entry.perm,
        })
    }

    /// Finds the first IOVA region that overlaps the range in `info`, and returns its bounds and
    /// capabilities.
    ///
    /// # Errors
    ///
    /// `EINVAL` when no region overlaps the range.
    pub fn iotlb_info(&self, mut info: uapi::IovaInfo) -> io::Result<uapi::IovaInfo> {
        sys::exchange(&self.file, uapi::ioctl::IOTLB_GET_INFO, &mut info)?;
        Ok(info)
    }

    /// Registers memory of the caller as an IOVA region (umem). From then on, the kernel copies the
    /// driver's data through that memory. The memory stays pinned until it is deregistered or the
    /// device is closed.
    ///
    /// # Safety
    ///
    /// Until the memory given in `umem` is deregistered, the kernel may read and write it at any
    /// time, and no Rust reference to the memory may exist.
    ///
    /// # Errors
    ///
    /// `EEXIST` when memory is registered already, `ENOMEM` when the size exceeds the limit of
    /// locked memory (`RLIMIT_MEMLOCK`), `EINVAL` when the region cannot be backed by user memory.
    pub unsafe fn register_umem(&self, umem: &uapi::IovaUmem) -> io::Result<()> {
        sys::send(&self.file, uapi::ioctl::IOTLB_REG_UMEM, umem)
    }

    /// Deregisters the memory that backs an IOVA region.
    ///
    /// # Errors
    ///
    /// `ENOENT` when no memory is registered, `EINVAL` when `umem` does not describe the registered
    /// memory.
    pub fn deregister_umem(&self, umem: &uapi::IovaUmem) -> io::Result<()> {
        sys::send(&self.file, uapi::ioctl::IOTLB_DEREG_UMEM, umem)
    }

    /// Reads the kernel's next request to the device.
    ///
    /// # Errors
    ///
    /// `EAGAIN` when there is no request and the device was opened with
    /// [`open_nonblocking`](Self::open_nonblocking), `EPERM` when the kernel has marked the device
    /// broken because an earlier request was not answered in time.
    pub fn read_request(&self) -> io::Result<Request> {
        self.read_raw().map(Request::from)
    }

    /// Variant of [`read_request`](Self::read_request) that returns the ABI's structure.
    ///
    /// # Errors
    ///
    /// As [`read_request`](Self::read_request).
    pub fn read_raw(&self) -> io::Result<uapi::DevRequest> {
        let mut request = uapi::DevRequest::default();
        let n = (&self.file).read(sys::bytes_of_mut(&mut request))?;
        if n != size_of::<uapi::DevRequest>() {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the driver gave a part of a request",
            ));
        }
        Ok(request)
    }

    /// Answers a request.
    ///
    /// # Errors
    ///
    /// `ENOENT` when no request with this id is waiting for an answer, for instance because the
    /// request has timed out.
    pub fn answer(&self, request: &Request, answer: Answer) -> io::Result<()> {
        self.write_raw(&answer.to_abi(request.id))
    }

    /// Variant of [`answer`](Self::answer) that takes the ABI's structure.
    ///
    /// # Errors
    ///
    /// As [`answer`](Self::answer), and `EINVAL` when a reserved field is not 0.
    pub fn write_raw(&self, response: &uapi::DevResponse) -> io::Result<()> {
        let n = (&self.file).write(sys::bytes_of(response))?;
        if n != size_of::<uapi::DevResponse>() {
            return Err(io::Error::new(
                io::ErrorKind::WriteZero,
                "the driver took a part of an answer",
            ));
        }
        Ok(())
    }
}

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
