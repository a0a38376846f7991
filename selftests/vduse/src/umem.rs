// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Memory of the device's own through which the driver's data is copied.

use std::io;
use std::sync::Arc;

use vduse_uapi as uapi;

use crate::{Device, Mapping};

/// Memory registered with [`Device::register_umem`], deregistered on drop.
#[derive(Debug)]
pub struct Umem {
    device: Arc<Device>,
    mapping: Arc<Mapping>,
    region: uapi::IovaUmem,
    registered: bool,
}

impl Umem {
    /// Backs the bounce area of a device, which is the region at IOVA 0, with new memory.
    ///
    /// # Errors
    ///
    /// `EINVAL` while the driver has mapped nothing yet, `EEXIST` when memory is registered
    /// already, `ENOMEM` beyond the limit of locked memory, `Unsupported` when the region at IOVA 0
    /// cannot be backed by user memory.
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
        // SAFETY: This program accesses a mapping only as volatile memory. If a registered mapping
        // were unmapped, its pages would stay pinned and would not be given to anything else.
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

    /// Returns the region as it was registered.
    pub fn region(&self) -> &uapi::IovaUmem {
        &self.region
    }
}

impl Drop for Umem {
    fn drop(&mut self) {
        if self.registered {
            // On a device marked broken the ioctl fails; closing the device deregisters the memory
            // too.
            let _ = self.device.deregister_umem(&self.region);
        }
    }
}
