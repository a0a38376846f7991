// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Memory of the device's own that the driver's data is copied through.

use std::io;
use std::sync::Arc;

use vduse_uapi as uapi;

use crate::{Device, Mapping};

/// Memory registered with [`Device::register_umem`], taken back on drop.
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
    /// `EINVAL` while the driver has mapped nothing yet, `EEXIST` when there is some already,
    /// `ENOMEM` beyond the limit of locked memory.
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
        // SAFETY: There is only volatile access to a mapping. Were it unmapped while it is
        // registered, the pages would stay pinned: they are nobody else's.
        unsafe { device.register_umem(&region) }?;
        Ok(Self {
            device,
            mapping,
            region,
            registered: true,
        })
    }

    /// The memory.
    pub fn memory(&self) -> &Arc<Mapping> {
        &self.mapping
    }

    /// Takes the memory back.
    ///
    /// # Errors
    ///
    /// `EPERM` when the driver side has given the device up.
    pub fn deregister(mut self) -> io::Result<()> {
        self.registered = false;
        self.device.deregister_umem(&self.region)
    }

    /// What was registered.
    pub fn region(&self) -> &uapi::IovaUmem {
        &self.region
    }
}

impl Drop for Umem {
    fn drop(&mut self) {
        if self.registered {
            // A device that was given up refuses; closing it takes the memory back too.
            let _ = self.device.deregister_umem(&self.region);
        }
    }
}
