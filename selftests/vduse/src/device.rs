// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A device's own file: its ioctls and its messages.

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
/// Only one program at a time can have a device open. Dropping it does not destroy the device:
/// another program, or this one again, can open it and go on.
#[derive(Debug)]
pub struct Device {
    file: File,
}

/// An IOVA region that [`Device::iotlb_fd`] found.
#[derive(Debug)]
pub struct Region {
    /// The file to map. Closed with the region; mappings made before stay.
    pub file: OwnedFd,
    /// Where in the file the region starts, in bytes.
    pub offset: u64,
    /// First IOVA of the region.
    pub first: u64,
    /// Last IOVA of the region.
    pub last: u64,
    /// [`ACCESS_RO`](uapi::ACCESS_RO), [`ACCESS_WO`](uapi::ACCESS_WO) or
    /// [`ACCESS_RW`](uapi::ACCESS_RW).
    pub access: u8,
}

impl Device {
    /// Where the node of a device is.
    pub fn path(name: &str) -> PathBuf {
        // The kernel turns a slash into an exclamation mark.
        PathBuf::from("/dev/vduse").join(name.replace('/', "!"))
    }

    /// Opens a device. Reads wait for a request.
    ///
    /// # Errors
    ///
    /// `ENOENT` when there is no such device, `EBUSY` when another program has it open.
    pub fn open(name: &str) -> io::Result<Self> {
        Self::open_with(name, OFlags::empty())
    }

    /// Opens a device. Reads end with `EAGAIN` when there is no request.
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
            .map(|file| Self { file })
    }

    /// Reads the features that the driver accepted.
    pub fn features(&self) -> io::Result<u64> {
        let mut features = 0;
        sys::exchange(&self.file, uapi::ioctl::DEV_GET_FEATURES, &mut features)?;
        Ok(features)
    }

    /// Writes to the configuration space. The driver learns of it with
    /// [`inject_config_irq`](Self::inject_config_irq).
    ///
    /// # Errors
    ///
    /// `EINVAL` for no data, or beyond the end of the space.
    pub fn set_config(&self, offset: u32, data: &[u8]) -> io::Result<()> {
        let length = u32::try_from(data.len())
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "configuration too long"))?;
        let head = uapi::ConfigData { offset, length };
        sys::send_with_tail(&self.file, uapi::ioctl::DEV_SET_CONFIG, &head, data)
    }

    /// Tells the driver that the configuration space has changed.
    ///
    /// # Errors
    ///
    /// `EINVAL` before the driver said `DRIVER_OK`.
    pub fn inject_config_irq(&self) -> io::Result<()> {
        sys::signal(&self.file, uapi::ioctl::DEV_INJECT_CONFIG_IRQ)
    }

    /// Sets a virtqueue up. A device whose queues are not all set up cannot go on the vDPA bus.
    ///
    /// # Errors
    ///
    /// `EINVAL` when there is no such queue.
    pub fn vq_setup(&self, index: u16, max_size: u16) -> io::Result<()> {
        self.vq_setup_raw(&uapi::VqConfig {
            index: index.into(),
            max_size,
            ..Default::default()
        })
    }

    /// Sets a virtqueue up from the ABI's own structure.
    ///
    /// # Errors
    ///
    /// `EINVAL` for anything that the driver does not allow.
    pub fn vq_setup_raw(&self, config: &uapi::VqConfig) -> io::Result<()> {
        sys::send(&self.file, uapi::ioctl::VQ_SETUP, config)
    }

    /// Reads what the driver made of a virtqueue.
    ///
    /// # Errors
    ///
    /// `EINVAL` when there is no such queue.
    pub fn vq_info(&self, index: u32) -> io::Result<uapi::VqInfo> {
        let mut info = uapi::VqInfo {
            index,
            ..Default::default()
        };
        sys::exchange(&self.file, uapi::ioctl::VQ_GET_INFO, &mut info)?;
        Ok(info)
    }

    /// Sets the eventfd that the driver's kicks of a virtqueue are written to. A kick that came
    /// while there was none is delivered at once.
    ///
    /// # Errors
    ///
    /// `EINVAL` when there is no such queue or the descriptor is no eventfd.
    pub fn set_kick(&self, index: u16, eventfd: BorrowedFd<'_>) -> io::Result<()> {
        use std::os::fd::AsRawFd;
        self.set_kick_raw(&uapi::VqEventfd {
            index: index.into(),
            fd: eventfd.as_raw_fd(),
        })
    }

    /// Takes the kick eventfd of a virtqueue away.
    ///
    /// # Errors
    ///
    /// `EINVAL` when there is no such queue.
    pub fn clear_kick(&self, index: u16) -> io::Result<()> {
        self.set_kick_raw(&uapi::VqEventfd {
            index: index.into(),
            fd: uapi::EVENTFD_DEASSIGN,
        })
    }

    /// Sets the kick eventfd from the ABI's own structure.
    ///
    /// # Errors
    ///
    /// Whatever the driver says to the values.
    pub fn set_kick_raw(&self, eventfd: &uapi::VqEventfd) -> io::Result<()> {
        sys::send(&self.file, uapi::ioctl::VQ_SETUP_KICKFD, eventfd)
    }

    /// Interrupts the driver on behalf of a virtqueue.
    ///
    /// # Errors
    ///
    /// `EINVAL` when there is no such queue, or before the driver said `DRIVER_OK`.
    pub fn inject_vq_irq(&self, index: u32) -> io::Result<()> {
        sys::send(&self.file, uapi::ioctl::VQ_INJECT_IRQ, &index)
    }

    /// Finds the first IOVA region that has to do with the IOVAs from `first` to `last`.
    ///
    /// # Errors
    ///
    /// `EINVAL` when there is none.
    pub fn iotlb_fd(&self, first: u64, last: u64) -> io::Result<Region> {
        let mut entry = uapi::IotlbEntry {
            start: first,
            last,
            ..Default::default()
        };
        let fd = sys::exchange(&self.file, uapi::ioctl::IOTLB_GET_FD, &mut entry)?;
        Ok(Region {
            // SAFETY: The ioctl returns a descriptor made for this call, which nobody else has.
            file: unsafe { OwnedFd::from_raw_fd(fd) },
            offset: entry.offset,
            first: entry.start,
            last: entry.last,
            access: entry.perm,
        })
    }

    /// As [`iotlb_fd`](Self::iotlb_fd), in an address space of a version 1 device.
    ///
    /// # Errors
    ///
    /// As there, and `ENOTTY` on a device of version 0.
    pub fn iotlb_fd2(&self, asid: u32, first: u64, last: u64) -> io::Result<Region> {
        let mut entry = uapi::IotlbEntryV2 {
            start: first,
            last,
            asid,
            ..Default::default()
        };
        let fd = sys::exchange(&self.file, uapi::ioctl::IOTLB_GET_FD2, &mut entry)?;
        Ok(Region {
            // SAFETY: The ioctl returns a descriptor made for this call, which nobody else has.
            file: unsafe { OwnedFd::from_raw_fd(fd) },
            offset: entry.offset,
            first: entry.start,
            last: entry.last,
            access: entry.perm,
        })
    }

    /// Finds the first IOVA region that has to do with those of `info`, and says what it can do.
    ///
    /// # Errors
    ///
    /// `EINVAL` when there is none.
    pub fn iotlb_info(&self, mut info: uapi::IovaInfo) -> io::Result<uapi::IovaInfo> {
        sys::exchange(&self.file, uapi::ioctl::IOTLB_GET_INFO, &mut info)?;
        Ok(info)
    }

    /// Backs an IOVA region with memory of the caller, which stays pinned until it is deregistered
    /// or the device is closed. The driver reads and writes that memory from then on.
    ///
    /// # Safety
    ///
    /// `umem` names memory that may be read and written at any time by another, that Rust has no
    /// references to, until it is deregistered.
    ///
    /// # Errors
    ///
    /// `EEXIST` when there is some already, `ENOMEM` beyond the limit of locked memory, `EINVAL`
    /// when the region cannot be backed so.
    pub unsafe fn register_umem(&self, umem: &uapi::IovaUmem) -> io::Result<()> {
        sys::send(&self.file, uapi::ioctl::IOTLB_REG_UMEM, umem)
    }

    /// Takes the memory of the caller back from an IOVA region.
    ///
    /// # Errors
    ///
    /// `ENOENT` when there is none, `EINVAL` when it is not that region.
    pub fn deregister_umem(&self, umem: &uapi::IovaUmem) -> io::Result<()> {
        sys::send(&self.file, uapi::ioctl::IOTLB_DEREG_UMEM, umem)
    }

    /// Reads the next request of the driver side.
    ///
    /// # Errors
    ///
    /// `EAGAIN` on a device opened not to wait, `EPERM` when the device has been given up because
    /// an earlier request was not answered in time.
    pub fn read_request(&self) -> io::Result<Request> {
        self.read_raw().map(Request::from)
    }

    /// Reads the next request as the ABI has it.
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
    /// `ENOENT` when nobody waits for the answer (any more).
    pub fn answer(&self, request: &Request, answer: Answer) -> io::Result<()> {
        self.write_raw(&answer.to_abi(request.id))
    }

    /// Answers with the ABI's own structure.
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
