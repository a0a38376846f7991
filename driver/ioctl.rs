// SPDX-License-Identifier: GPL-2.0

//! A device's own node, `/dev/vduse/NAME`, through which the daemon serves the device.
//!
//! Each ioctl first copies in and checks its argument, and copies out its result last. Only an
//! ioctl that returns a file descriptor does more after that: it installs the descriptor.

use super::{
    device::Dev,
    domain::Region,
    registry::Registry,
    umem,
    user::Argument,
    vq_state, //
};
#[cfg(CONFIG_COMPAT)]
use crate::uapi::{
    CompatIotlbEntry,
    CompatU64,
    CompatVqInfo, //
};
use crate::{
    bindings::{
        chrdev::CharDevice,
        eventfd::EventFd,
        fd,
        file_ops::{
            must_not_block,
            Events,
            FileOperations, //
        },
    },
    uapi::{
        ioctl as cmd,
        ConfigData,
        DevResponse,
        IotlbEntry,
        IotlbEntryV2,
        IovaInfo,
        IovaUmem,
        VqConfig,
        VqEventfd,
        VqInfo,
        EVENTFD_DEASSIGN, //
    },
};
use kernel::{
    fs::{
        File,
        Kiocb, //
    },
    iov::{
        IovIterDest,
        IovIterSource, //
    },
    prelude::*,
    sync::{
        poll::PollTable,
        Arc,
        ArcBorrow, //
    },
    transmute::{
        AsBytes,
        FromBytes, //
    },
};

/// A daemon's use of a device, from opening the device to closing it.
pub(super) struct Session(Arc<Dev>);

impl Session {
    fn open(dev: Arc<Dev>) -> Result<Self> {
        dev.open()?;

        Ok(Self(dev))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// The file operations of a device's node.
pub(super) struct DevFile;

impl CharDevice for DevFile {
    type Context = Arc<Registry>;

    fn open(registry: &Arc<Registry>, index: u32, _file: &File) -> Result<Arc<Session>> {
        let session = Session::open(registry.dev(index).ok_or(ENODEV)?)?;

        Ok(Arc::new(session, GFP_KERNEL)?)
    }
}

#[vtable]
impl FileOperations for DevFile {
    type Data = Arc<Session>;

    fn read_iter(kiocb: Kiocb<'_, Arc<Session>>, iov: &mut IovIterDest<'_>) -> Result<usize> {
        const LEN: usize = size_of::<crate::uapi::DevRequest>();
        if iov.len() < LEN {
            return Err(EINVAL);
        }

        kiocb
            .file()
            .0
            .messages
            .read(must_not_block(&kiocb), |request| {
                if iov.copy_to_iter(request.as_bytes()) == LEN {
                    Ok(())
                } else {
                    Err(EFAULT)
                }
            })?;

        Ok(LEN)
    }

    fn write_iter(kiocb: Kiocb<'_, Arc<Session>>, iov: &mut IovIterSource<'_>) -> Result<usize> {
        let mut bytes = [0; size_of::<DevResponse>()];
        if iov.copy_from_iter(&mut bytes) != bytes.len() {
            return Err(EINVAL);
        }
        let response = DevResponse::from_bytes_copy(&bytes).ok_or(EINVAL)?;
        if response.reserved.iter().any(|&word| word != 0) {
            return Err(EINVAL);
        }

        let dev = &kiocb.file().0;
        dev.messages
            .complete(response, |request| dev.agreed(request))?;

        Ok(bytes.len())
    }

    fn poll(session: ArcBorrow<'_, Session>, file: &File, table: PollTable<'_>) -> Events {
        session.0.messages.poll(file, table)
    }

    fn ioctl(session: ArcBorrow<'_, Session>, _file: &File, cmd: u32, arg: usize) -> Result<isize> {
        let dev = &session.0;
        if dev.messages.is_broken() {
            return Err(EPERM);
        }

        dispatch(dev, cmd, Argument::new(arg))
    }

    #[cfg(CONFIG_COMPAT)]
    fn compat_ioctl(
        session: ArcBorrow<'_, Session>,
        _file: &File,
        cmd: u32,
        arg: usize,
    ) -> Result<isize> {
        let dev = &session.0;
        if dev.messages.is_broken() {
            return Err(EPERM);
        }

        let arg = Argument::new_compat(arg);
        match cmd {
            cmd::COMPAT_IOTLB_GET_FD => iotlb_get_fd::<CompatIotlbEntry>(dev, arg),
            cmd::COMPAT_VQ_GET_INFO => compat_vq_get_info(dev, arg),
            _ => dispatch(dev, cmd, arg),
        }
    }
}

fn dispatch(dev: &Dev, cmd: u32, arg: Argument) -> Result<isize> {
    match cmd {
        cmd::IOTLB_GET_FD => return iotlb_get_fd::<IotlbEntry>(dev, arg),
        cmd::IOTLB_GET_FD2 if dev.is_v1() => return iotlb_get_fd::<IotlbEntryV2>(dev, arg),
        cmd::DEV_GET_FEATURES => arg.write(&dev.driver_features())?,
        cmd::DEV_SET_CONFIG => set_config(dev, arg)?,
        cmd::DEV_INJECT_CONFIG_IRQ => inject_config_irq(dev)?,
        cmd::VQ_SETUP => dev.set_up_vq(&arg.read::<VqConfig>()?)?,
        cmd::VQ_GET_INFO => arg.write(&vq_info(dev, arg.read::<VqInfo>()?)?)?,
        cmd::VQ_SETUP_KICKFD => setup_kickfd(dev, arg.read()?)?,
        cmd::VQ_INJECT_IRQ => inject_vq_irq(dev, arg.read()?)?,
        cmd::IOTLB_REG_UMEM => {
            let IovaUmem {
                asid,
                iova,
                uaddr,
                size,
                ..
            } = read_umem(arg)?;
            umem::register(&dev.spaces, asid, iova, uaddr, size)?
        }
        cmd::IOTLB_DEREG_UMEM => {
            let IovaUmem {
                asid, iova, size, ..
            } = read_umem(arg)?;
            umem::deregister(&dev.spaces, asid, iova, size)?
        }
        cmd::IOTLB_GET_INFO => iotlb_get_info(dev, arg)?,
        _ => return Err(ENOTTY),
    }

    Ok(0)
}

/// An argument structure of `IOTLB_GET_FD` or `IOTLB_GET_FD2`.
trait GetFd: AsBytes + FromBytes {
    /// Returns the address space, and the first and the last IOVA of the range to search.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if a reserved field is not 0.
    fn query(&self) -> Result<(u32, u64, u64)>;

    /// Returns the argument to copy out, which describes `region`.
    fn with(self, region: &Region) -> Self;
}

impl GetFd for IotlbEntry {
    fn query(&self) -> Result<(u32, u64, u64)> {
        Ok((0, self.start, self.last))
    }

    fn with(self, region: &Region) -> Self {
        Self {
            offset: region.offset,
            start: region.start,
            last: region.last,
            perm: region.perm,
            padding: [0; 7],
        }
    }
}

impl GetFd for IotlbEntryV2 {
    fn query(&self) -> Result<(u32, u64, u64)> {
        if self.reserved.iter().any(|&word| word != 0) {
            return Err(EINVAL);
        }

        Ok((self.asid, self.start, self.last))
    }

    fn with(self, region: &Region) -> Self {
        Self {
            offset: region.offset,
            start: region.start,
            last: region.last,
            perm: region.perm,
            ..self
        }
    }
}

#[cfg(CONFIG_COMPAT)]
impl GetFd for CompatIotlbEntry {
    fn query(&self) -> Result<(u32, u64, u64)> {
        Ok((0, self.start.get(), self.last.get()))
    }

    fn with(self, region: &Region) -> Self {
        Self {
            offset: CompatU64::new(region.offset),
            start: CompatU64::new(region.start),
            last: CompatU64::new(region.last),
            perm: region.perm,
            padding: [0; 3],
        }
    }
}

/// Finds the first region that contains an IOVA of the range in `arg`. Writes a description of the
/// region to `arg`, and returns a file descriptor of the file that holds the region's memory.
///
/// # Errors
///
/// - [`EINVAL`] if there is no such region or address space, if the range ends before its start, or
///   if a reserved field is not 0.
/// - [`EFAULT`] if `arg` cannot be read or written.
/// - Those of [`fd::receive`].
fn iotlb_get_fd<T: GetFd>(dev: &Dev, arg: Argument) -> Result<isize> {
    let entry: T = arg.read()?;
    let (asid, start, last) = entry.query()?;
    let space = dev.spaces.get(asid)?;
    if start > last {
        return Err(EINVAL);
    }
    let region = space.domain.owner().find(start, last).ok_or(EINVAL)?;

    arg.write(&entry.with(&region))?;

    Ok(fd::receive(region.file.as_ref().unwrap_or(&space.file))? as isize)
}

fn iotlb_get_info(dev: &Dev, arg: Argument) -> Result {
    let info: IovaInfo = arg.read()?;
    if info.reserved.iter().any(|&word| word != 0) || info.start > info.last {
        return Err(EINVAL);
    }
    let space = dev.spaces.get(info.asid)?;
    let region = space
        .domain
        .owner()
        .find(info.start, info.last)
        .ok_or(EINVAL)?;

    arg.write(&IovaInfo {
        start: region.start,
        last: region.last,
        capability: region.capability,
        ..info
    })
}

fn read_umem(arg: Argument) -> Result<IovaUmem> {
    let umem: IovaUmem = arg.read()?;
    if umem.reserved.iter().any(|&word| word != 0) {
        return Err(EINVAL);
    }

    Ok(umem)
}

fn set_config(dev: &Dev, arg: Argument) -> Result {
    let header: ConfigData = arg.read()?;
    let (offset, length) = (header.offset as usize, header.length as usize);
    // The range is checked before the bytes are copied in, for two reasons: no more bytes are
    // copied than the configuration space can hold, and a wrong range is reported even if the
    // address of the bytes is bad as well. `write` checks the range again.
    if length == 0 || !dev.config.has(offset, length) {
        return Err(EINVAL);
    }

    dev.config
        .write(offset, &arg.read_after::<ConfigData>(length)?)
}

fn inject_config_irq(dev: &Dev) -> Result {
    if !dev.is_driven() {
        return Err(EINVAL);
    }

    dev.callbacks.config().call().map_err(|_| EINVAL)?;

    Ok(())
}

fn inject_vq_irq(dev: &Dev, index: u32) -> Result {
    let vq = dev.vq(index)?;
    if !dev.is_driven() {
        return Err(EINVAL);
    }

    match dev.shadow_at(index) {
        None => vq.inject().map_err(|_| EINVAL),
        Some(shadow) => {
            shadow.advance(vq, true);
            Ok(())
        }
    }
}

fn setup_kickfd(dev: &Dev, config: VqEventfd) -> Result {
    let vq = dev.vq(config.index)?;
    let kickfd = match config.fd {
        EVENTFD_DEASSIGN => None,
        ..0 => return Err(EINVAL),
        fd => Some(EventFd::from_fd(fd)?),
    };

    vq.set_kickfd(kickfd);
    if let Some(shadow) = dev.shadow_at(config.index) {
        shadow.advance(vq, dev.is_driven());
    }

    Ok(())
}

fn vq_info(dev: &Dev, info: VqInfo) -> Result<VqInfo> {
    let snapshot = dev.vq(info.index)?.snapshot();

    Ok(VqInfo {
        index: info.index,
        num: snapshot.num,
        desc_addr: snapshot.address.desc,
        driver_addr: snapshot.address.driver,
        device_addr: snapshot.address.device,
        state: vq_state::to_abi(snapshot.state, dev.is_packed()),
        ready: snapshot.ready.into(),
        padding: [0; 7],
    })
}

#[cfg(CONFIG_COMPAT)]
fn compat_vq_get_info(dev: &Dev, arg: Argument) -> Result<isize> {
    let info: CompatVqInfo = arg.read()?;
    let info = vq_info(
        dev,
        VqInfo {
            index: info.index,
            ..VqInfo::default()
        },
    )?;

    arg.write(&CompatVqInfo {
        index: info.index,
        num: info.num,
        desc_addr: CompatU64::new(info.desc_addr),
        driver_addr: CompatU64::new(info.driver_addr),
        device_addr: CompatU64::new(info.device_addr),
        state: info.state,
        ready: info.ready,
        padding: [0; 3],
    })?;

    Ok(0)
}
