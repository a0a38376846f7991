// SPDX-License-Identifier: GPL-2.0

//! A device's own node, `/dev/vduse/NAME`, through which the daemon serves the device.
//!
//! An ioctl's argument is copied in and checked before anything is done. The result is copied out
//! last, except that a file descriptor is installed after that.

use super::{
    dev::Dev,
    registry::Registry,
    user::Argument, //
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
        PackedState,
        VqConfig,
        VqEventfd,
        VqInfo,
        VqStateUnion,
        EVENTFD_DEASSIGN,
        SET_STATUS, //
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
        aref::ARef,
        poll::PollTable,
        Arc,
        ArcBorrow, //
    },
    transmute::{
        AsBytes,
        FromBytes, //
    },
};

/// A daemon's use of a device, from opening it to closing it.
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
        dev.messages.complete(response, |request| {
            // The daemon may interrupt the driver from here on, so the status takes effect here.
            if request.kind == SET_STATUS {
                dev.set_status(request.body.status());
            }
        })?;

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
            cmd::COMPAT_IOTLB_GET_FD => compat_iotlb_get_fd(dev, arg),
            cmd::COMPAT_VQ_GET_INFO => compat_vq_get_info(dev, arg),
            _ => dispatch(dev, cmd, arg),
        }
    }
}

fn dispatch(dev: &Dev, cmd: u32, arg: Argument) -> Result<isize> {
    match cmd {
        cmd::IOTLB_GET_FD => return iotlb_get_fd(dev, arg),
        cmd::IOTLB_GET_FD2 if dev.is_v1() => return iotlb_get_fd2(dev, arg),
        cmd::DEV_GET_FEATURES => arg.write(&dev.driver_features())?,
        cmd::DEV_SET_CONFIG => set_config(dev, arg)?,
        cmd::DEV_INJECT_CONFIG_IRQ => inject_config_irq(dev)?,
        cmd::VQ_SETUP => dev.set_up_vq(&arg.read::<VqConfig>()?)?,
        cmd::VQ_GET_INFO => arg.write(&vq_info(dev, arg.read::<VqInfo>()?)?)?,
        cmd::VQ_SETUP_KICKFD => setup_kickfd(dev, arg.read()?)?,
        cmd::VQ_INJECT_IRQ => inject_vq_irq(dev, arg.read()?)?,
        cmd::IOTLB_REG_UMEM => {
            let umem = umem(arg)?;
            dev.spaces
                .reg_umem(umem.asid, umem.iova, umem.uaddr, umem.size)?
        }
        cmd::IOTLB_DEREG_UMEM => {
            let umem = umem(arg)?;
            dev.spaces.dereg_umem(umem.asid, umem.iova, umem.size)?
        }
        cmd::IOTLB_GET_INFO => iotlb_get_info(dev, arg)?,
        _ => return Err(ENOTTY),
    }

    Ok(0)
}

/// The file that holds the memory of a mapping, and the entry that describes the mapping.
struct MappedFile {
    file: ARef<File>,
    entry: IotlbEntry,
}

impl MappedFile {
    /// Returns the first mapping of an address space that contains an address from `start` to
    /// `last`.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if there is no such mapping or address space, or if `start` is above `last`.
    fn find(dev: &Dev, asid: u32, start: u64, last: u64) -> Result<Self> {
        let open = dev.spaces.get(asid)?;
        if start > last {
            return Err(EINVAL);
        }
        let found = open.domain.owner().find(start, last).ok_or(EINVAL)?;

        Ok(Self {
            file: found.file.unwrap_or_else(|| open.file.clone()),
            entry: IotlbEntry {
                offset: found.offset,
                start: found.start,
                last: found.last,
                perm: found.perm,
                padding: [0; 7],
            },
        })
    }

    fn install(self) -> Result<isize> {
        Ok(fd::receive(&self.file)? as isize)
    }
}

fn iotlb_get_fd(dev: &Dev, arg: Argument) -> Result<isize> {
    let entry: IotlbEntry = arg.read()?;
    let mapped = MappedFile::find(dev, 0, entry.start, entry.last)?;

    arg.write(&mapped.entry)?;
    mapped.install()
}

fn iotlb_get_fd2(dev: &Dev, arg: Argument) -> Result<isize> {
    let entry: IotlbEntryV2 = arg.read()?;
    if entry.reserved.iter().any(|&word| word != 0) {
        return Err(EINVAL);
    }
    let mapped = MappedFile::find(dev, entry.asid, entry.start, entry.last)?;

    arg.write(&IotlbEntryV2 {
        offset: mapped.entry.offset,
        start: mapped.entry.start,
        last: mapped.entry.last,
        perm: mapped.entry.perm,
        ..entry
    })?;
    mapped.install()
}

#[cfg(CONFIG_COMPAT)]
fn compat_iotlb_get_fd(dev: &Dev, arg: Argument) -> Result<isize> {
    let entry: CompatIotlbEntry = arg.read()?;
    let mapped = MappedFile::find(dev, 0, entry.start.get(), entry.last.get())?;

    arg.write(&CompatIotlbEntry {
        offset: CompatU64::new(mapped.entry.offset),
        start: CompatU64::new(mapped.entry.start),
        last: CompatU64::new(mapped.entry.last),
        perm: mapped.entry.perm,
        padding: [0; 3],
    })?;
    mapped.install()
}

fn iotlb_get_info(dev: &Dev, arg: Argument) -> Result {
    let info: IovaInfo = arg.read()?;
    if info.reserved.iter().any(|&word| word != 0) || info.start > info.last {
        return Err(EINVAL);
    }
    let open = dev.spaces.get(info.asid)?;
    let found = open
        .domain
        .owner()
        .find(info.start, info.last)
        .ok_or(EINVAL)?;

    arg.write(&IovaInfo {
        start: found.start,
        last: found.last,
        capability: found.capability,
        ..info
    })
}

fn umem(arg: Argument) -> Result<IovaUmem> {
    let umem: IovaUmem = arg.read()?;
    if umem.reserved.iter().any(|&word| word != 0) {
        return Err(EINVAL);
    }

    Ok(umem)
}

fn set_config(dev: &Dev, arg: Argument) -> Result {
    let header: ConfigData = arg.read()?;
    let (offset, length) = (header.offset as usize, header.length as usize);
    // Checked before the bytes are copied in, so that no more is copied than the configuration
    // space can hold, and so that a wrong range is reported in preference to a bad address. Writing
    // checks the range again.
    if length == 0 || !dev.has_config(offset, length) {
        return Err(EINVAL);
    }

    dev.write_config(offset, &arg.read_after::<ConfigData>(length)?)
}

fn inject_config_irq(dev: &Dev) -> Result {
    if !dev.is_driven() {
        return Err(EINVAL);
    }

    dev.callbacks.config().call();

    Ok(())
}

fn inject_vq_irq(dev: &Dev, index: u32) -> Result {
    let vq = dev.vq(index)?;
    if !dev.is_driven() {
        return Err(EINVAL);
    }

    vq.inject();

    Ok(())
}

fn setup_kickfd(dev: &Dev, config: VqEventfd) -> Result {
    let vq = dev.vq(config.index)?;
    let kickfd = match config.fd {
        EVENTFD_DEASSIGN => None,
        ..0 => return Err(EINVAL),
        fd => Some(EventFd::from_fd(fd)?),
    };

    vq.set_kickfd(kickfd);

    Ok(())
}

fn vq_info(dev: &Dev, info: VqInfo) -> Result<VqInfo> {
    let snapshot = dev.vq(info.index)?.snapshot();
    let state = if dev.is_packed() {
        let packed = snapshot.state.packed();

        VqStateUnion::from_packed(PackedState {
            last_avail_counter: packed.last_avail_counter,
            last_avail_idx: packed.last_avail_idx,
            last_used_counter: packed.last_used_counter,
            last_used_idx: packed.last_used_idx,
        })
    } else {
        VqStateUnion::from_split(snapshot.state.split())
    };

    Ok(VqInfo {
        index: info.index,
        num: snapshot.num,
        desc_addr: snapshot.address.desc,
        driver_addr: snapshot.address.driver,
        device_addr: snapshot.address.device,
        state,
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
