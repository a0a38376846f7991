// SPDX-License-Identifier: GPL-2.0

//! The real device, on which the test performs the operations.

use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

use rustix::io::Errno;
use vduse::request::Answer;
use vduse::{Control, Device, Mapping};
use vduse_uapi::ACCESS_RW;
use vduse_uapi::{IovaInfo, IovaUmem, VqConfig, F_QUEUE_READY, F_SUSPEND};

use crate::lab::daemon::answered::agree;
use crate::lab::daemon::regions;
use crate::lab::daemon::responder::Responder;
use crate::lab::device::bus::{self, Driver, OnBus};
use crate::lab::device::spaces;
use crate::lab::device::test_device::TestDevice;
use crate::lab::driver::vhost::{RingAddress, Vhost};
use crate::lab::kernel::memory::{self, PAGE};
use crate::tests::model::operation::{Op, Outcome, Support, FILES, GROUPS, QUEUES, SPACES};

/// The real device. The fields are dropped in declaration order.
pub(super) struct Real {
    vhost: Option<Vhost>,
    on_bus: Option<OnBus>,
    responder: Responder,
    refuse: Arc<AtomicBool>,
    file: Arc<Device>,
    device: TestDevice,
    config: vduse::DeviceConfig,
    /// The optional features that the kernel supports.
    pub(super) support: Support,
}

/// The files that the client maps. Each file is identified by its inode number, and has mappings of
/// 1, 2 and 3 pages.
pub(super) struct Files {
    inodes: Vec<u64>,
    mappings: Vec<[Mapping; 3]>,
}

impl Files {
    #[track_caller]
    pub(super) fn new() -> Self {
        let files: Vec<_> = (0..FILES).map(|_| memory::file(3 * PAGE)).collect();
        let map = |file: &std::fs::File, pages: u64| {
            Mapping::of_file(file.as_fd(), 0, pages * PAGE, ACCESS_RW).expect("mapping")
        };
        Self {
            inodes: files
                .iter()
                .map(|file| rustix::fs::fstat(file).expect("a file").st_ino)
                .collect(),
            mappings: files
                .iter()
                .map(|file| [1, 2, 3].map(|pages| map(file, pages)))
                .collect(),
        }
    }
}

impl Real {
    #[track_caller]
    pub(super) fn new() -> Self {
        let config = spaces::config(QUEUES as u16, GROUPS, SPACES);
        let control = Control::open_v1().expect("the control device");
        let features = control.offer_all().expect("the features");
        let support = Support {
            queue_ready: features & F_QUEUE_READY != 0,
            suspend: features & F_SUSPEND != 0,
            resume: control.supported_extensions().is_ok(),
        };
        control.create(&config).expect("creating");
        let device = TestDevice::adopt(&config.name);
        let file = Arc::new(device.open_nonblocking());
        let refuse = Arc::new(AtomicBool::new(false));
        let theirs = refuse.clone();
        let responder = Responder::new(&file, move |request| {
            if theirs.load(Ordering::Relaxed) {
                return Some(Answer::Failed);
            }
            agree(request)
        });
        Self {
            vhost: None,
            on_bus: None,
            responder,
            refuse,
            file,
            device,
            config,
            support,
        }
    }

    pub(super) fn apply(&mut self, op: &Op, files: &Files) -> Outcome {
        let answer = self.answer(op, files);
        let answer = answer.map_err(|error| {
            Errno::from_io_error(&error).unwrap_or_else(|| panic!("{op:?}: {error}"))
        });
        Outcome {
            answer,
            requests: self.responder.take_kinds(),
        }
    }

    fn region(region: vduse::device::Region, files: &Files) -> io::Result<Vec<u64>> {
        let inode = rustix::fs::fstat(&region.file)?.st_ino;
        let file = files.inodes.iter().position(|&known| known == inode);
        Ok(vec![
            region.first,
            region.last,
            region.offset,
            region.access.into(),
            file.map_or(u64::MAX, |file| file as u64),
        ])
    }

    fn answer(&mut self, op: &Op, files: &Files) -> io::Result<Vec<u64>> {
        let none = |()| Vec::new();
        let file = &self.file;
        let vhost = || self.vhost.as_ref().expect("a client");
        match *op {
            Op::CreateAgain => Control::open_v1()?.create(&self.config).map(none),
            Op::CreateBad {
                groups,
                spaces,
                version,
            } => {
                let mut config = spaces::config(1, groups, spaces);
                if version == 0 && groups == 0 && spaces == 0 {
                    config.groups = 1;
                }
                let control = Control::open()?;
                control.set_api_version(version)?;
                control.create(&config).map(none)
            }
            Op::Destroy => Control::open()?.destroy(self.device.name()).map(none),
            Op::Renew => {
                self.refuse.store(false, Ordering::Relaxed);
                self.vhost = None;
                self.on_bus = None;
                *self = Self::new();
                Ok(Vec::new())
            }
            Op::OpenAgain => Device::open(self.device.name()).map(|_| Vec::new()),
            Op::SetUp {
                queue,
                size,
                group,
                reserved,
            } => {
                let mut config = VqConfig {
                    index: queue,
                    max_size: size,
                    group,
                    ..Default::default()
                };
                config.reserved2[4] = reserved.into();
                file.vq_setup_raw(&config).map(none)
            }
            Op::QueueInfo { queue } => {
                let info = file.vq_info(queue)?;
                Ok(vec![
                    info.num.into(),
                    info.desc_addr,
                    info.state.split().into(),
                    info.ready.into(),
                ])
            }
            Op::Features => Ok(vec![file.features()?]),
            Op::Interrupt { queue } => file.inject_vq_irq(queue).map(none),
            Op::Find {
                asid,
                first,
                last,
                reserved,
            } => {
                let found = if reserved {
                    regions::find_reserved(file, asid, first, last)
                } else {
                    file.iotlb_fd2(asid, first, last)
                };
                Self::region(found?, files)
            }
            Op::FindOld { first, last } => Self::region(file.iotlb_fd(first, last)?, files),
            Op::Info { asid, first, last } => {
                let info = file.iotlb_info(IovaInfo {
                    start: first,
                    last,
                    asid,
                    ..Default::default()
                })?;
                Ok(vec![info.start, info.last, info.capability])
            }
            Op::Register { asid } => {
                let umem = umem(asid);
                // SAFETY: The driver refuses the registration, because the device has no bounce
                // area.
                unsafe { file.register_umem(&umem) }.map(none)
            }
            Op::Deregister { asid } => file.deregister_umem(&umem(asid)).map(none),
            Op::Refuse(refuse) => {
                self.refuse.store(refuse, Ordering::Relaxed);
                Ok(Vec::new())
            }
            Op::Attach => {
                let on_bus = OnBus::add(self.device.name())?;
                on_bus.bind(Driver::Vhost)?;
                self.on_bus = Some(on_bus);
                Ok(Vec::new())
            }
            Op::Open => {
                let path = bus::vhost_path(self.device.name()).expect("a node");
                let vhost = Vhost::open(&path)?;
                self.vhost = Some(vhost);
                Ok(Vec::new())
            }
            Op::Close => {
                self.vhost = None;
                Ok(Vec::new())
            }
            Op::Own => vhost().set_owner().map(none),
            Op::Backend => vhost().set_backend_features_asid().map(none),
            Op::Group { queue } => Ok(vec![vhost().group_of(queue)?.into()]),
            Op::Move { group, asid } => vhost().set_group_asid(group, asid).map(none),
            Op::Map {
                asid,
                iova,
                file,
                pages,
                access,
            } => {
                let mapping = &files.mappings[file][pages as usize - 1];
                vhost().map_in(asid, iova, mapping, access).map(none)
            }
            Op::Unmap { asid, iova, pages } => vhost().unmap_in(asid, iova, pages * PAGE).map(none),
            Op::Begin { asid } => vhost().batch_begin(asid).map(none),
            Op::End { asid } => vhost().batch_end(asid).map(none),
            Op::Status(status) => {
                vhost().set_status(status)?;
                Ok(vec![vhost().status()?.into()])
            }
            Op::SetFeatures(features) => vhost().set_features(features).map(none),
            Op::Size { queue, size } => vhost().set_queue_size(queue, size).map(none),
            Op::Address { queue, at } => {
                let address = RingAddress {
                    desc: at,
                    avail: at,
                    used: at,
                };
                vhost().set_queue_address(queue, address).map(none)
            }
            Op::Base { queue, base } => vhost().set_queue_base(queue, base).map(none),
            Op::State { queue } => Ok(vec![vhost().queue_base(queue)?.into()]),
            Op::Enable { queue, ready } => if ready {
                vhost().enable_queue(queue)
            } else {
                vhost().disable_queue(queue)
            }
            .map(none),
            Op::Suspend => vhost().suspend().map(none),
            Op::Resume => vhost().resume().map(none),
        }
    }
}

fn umem(asid: u32) -> IovaUmem {
    IovaUmem {
        size: PAGE,
        asid,
        ..Default::default()
    }
}
