// SPDX-License-Identifier: Apache-2.0 OR MIT

//! User memory (umem): memory that a daemon registers as the bounce area of a device.

use std::io;
use std::sync::Arc;

use vduse_uapi as uapi;

use crate::{Device, Mapping};

/// Memory registered with [`Device::register_umem`]. Dropping a `Umem` deregisters the memory.
#[derive(Debug)]
pub struct Umem {
    device: Arc<Device>,
    mapping: Arc<Mapping>,
    region: uapi::IovaUmem,
    registered: bool,
}

impl Umem {
    /// Allocates memory and registers it as a device's bounce area, which is the region at IOVA 0.
    ///
    /// # Errors
    ///
    /// `EINVAL` before the driver has mapped any memory, `EEXIST` when memory is registered
    /// already, `ENOMEM` when the size exceeds the limit of locked memory (`RLIMIT_MEMLOCK`),
    /// `Unsupported` when the region at IOVA 0 cannot be backed by user memory.
    pub fn register(device: Arc<Device>) -> io::Result<Self> {
        let info = device.iotlb_info(uapi::IovaInfo::default())?;
        if info.capability & uapi::IOVA_CAP_UMEM == 0 {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let size = info.last - info.start + 1;
        let len = usize::try_from(size).map_err(|_| io::ErrorKind::OutOfMemory)?;
        let mapping = Arc::new(Mapping::anonymous(len)?);
        let region = uapi::IovaUmem {
            uaddr: mapping.address() as u64,
            iova: info.start,
            size,
            ..Default::default()
        };
        // SAFETY: This library accesses a mapping only as volatile memory, without references. If a
        // registered mapping is unmapped, its pages stay pinned, so the kernel does not reuse them.
        unsafe { device.register_umem(&region) }?;
        Ok(Self {
            device,
            mapping,
            region,
            registered: true,
        })
    }

    /// Returns the registered memory.
    pub fn memory(&self) -> &Arc<Mapping> {
        &self.mapping
    }

    /// Deregisters the memory.
    ///
    /// # Errors
    ///
    /// `EPERM` when the kernel has marked the device broken.
    pub fn deregister(mut self) -> io::Result<()> {
        self.registered = false;
        self.device.deregister_umem(&self.region)
    }

    /// Returns the registered region.
    pub fn region(&self) -> &uapi::IovaUmem {
        &self.region
    }
}

impl Drop for Umem {
    fn drop(&mut self) {
        if self.registered {
            // The ioctl fails on a device that is marked broken. Closing the device deregisters the
            // memory as well.
            let _ = self.device.deregister_umem(&self.region);
        }
    }
}
