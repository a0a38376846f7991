// SPDX-License-Identifier: GPL-2.0

//! A device: what it is, and who uses it.
//!
//! # Lock order
//!
//! [`Dev::usage`], then a virtqueue's lock or the mutex of the messages. The mutex of the
//! configuration space has nothing below it.

use super::{
    config,
    msg::MessageQueue,
    quirks,
    spaces::Spaces,
    vq::Vq, //
};
use crate::{
    bindings::{
        iova,
        nospec::get_nospec,
        page::PAGE_SHIFT,
        pm::SuspendWatch,
        sched,
        vdpa::{
            status,
            Callbacks, //
        },
        workqueue,
    },
    uapi::{
        DevConfig,
        VqConfig,
        API_VERSION_1, //
    },
};
use kernel::{
    alloc::flags::GFP_KERNEL_ACCOUNT,
    new_mutex,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            AtomicFlag,
            Relaxed, //
        },
        Arc,
        Mutex, //
    },
    time::{
        Delta,
        Instant,
        Monotonic, //
    },
};

/// The least time between two writes to a configuration space, in which a driver can read all of it
/// that belongs together: some tens of bytes, one by one.
const CONFIG_PAUSE: Delta = Delta::from_millis(5);

/// The resources that all devices share.
pub(crate) struct Shared {
    /// The caches that address spaces allocate addresses from.
    pub(super) iova_cache: Arc<iova::Cache>,
    /// Whether the machine suspends.
    pub(super) suspend_watch: Arc<SuspendWatch>,
    /// The workqueue that interrupts are sent to other CPUs by.
    pub(super) queue: workqueue::FlushOnDrop,
    /// The most mappings that an address space can have.
    pub(super) max_iotlb_entries: usize,
}

/// How a device is used.
#[derive(Default)]
struct Usage {
    /// A daemon has it open.
    open: bool,
    /// It is on the vDPA bus.
    attached: bool,
    /// It was destroyed.
    destroyed: bool,
}

/// A configuration space.
struct ConfigSpace {
    bytes: KVVec<u8>,
    /// When it was last written to.
    written: Option<Instant<Monotonic>>,
}

/// A device.
#[pin_data]
pub(crate) struct Dev {
    /// The version of the API that it was created with.
    pub(super) api_version: u64,
    /// What it can do.
    features: u64,
    pub(super) device_id: u32,
    pub(super) vendor_id: u32,
    /// In bytes.
    pub(super) vq_align: u32,
    /// How many virtqueue groups there are.
    pub(super) ngroups: u32,
    vqs: KVVec<Arc<Vq>>,
    /// The driver's interrupt callbacks.
    pub(super) callbacks: Arc<Callbacks>,
    /// Requests to the daemon.
    #[pin]
    pub(super) messages: MessageQueue,
    /// What it can reach of the driver side's memory.
    #[pin]
    pub(super) spaces: Spaces,
    #[pin]
    usage: Mutex<Usage>,
    /// The configuration space.
    #[pin]
    config: Mutex<ConfigSpace>,
    /// Changes whenever the configuration space may have changed.
    generation: Atomic<u32>,
    /// The device status, 8 bits.
    status: Atomic<u32>,
    /// A kernel driver set `DRIVER_OK`, and the daemon did not acknowledge it.
    driver_ok_refused: AtomicFlag,
    /// The features that the driver has accepted.
    driver_features: Atomic<u64>,
}

impl Dev {
    /// Makes a device. The configuration must be [valid](config::is_valid), and `space` the
    /// configuration space.
    ///
    /// May sleep.
    pub(super) fn new(
        config: &DevConfig,
        space: KVVec<u8>,
        api_version: u64,
        shared: &Shared,
    ) -> Result<Arc<Self>> {
        let (ngroups, nas) = if api_version < API_VERSION_1 {
            (1, 1)
        } else {
            (config.ngroups, config.nas)
        };
        let callbacks = Callbacks::new(config.vq_num as usize)?;
        let mut vqs = KVVec::with_capacity(callbacks.vqs().len(), GFP_KERNEL_ACCOUNT)?;
        for callback in callbacks.vqs() {
            vqs.push(
                Vq::new(callback.clone(), shared.queue.queue().clone())?,
                GFP_KERNEL_ACCOUNT,
            )?;
        }

        Arc::pin_init(
            try_pin_init!(Self {
                api_version,
                features: config.features,
                device_id: config.device_id,
                vendor_id: config.vendor_id,
                vq_align: config.vq_align,
                ngroups,
                vqs,
                callbacks,
                messages <- MessageQueue::new(shared.suspend_watch.clone()),
                spaces <- Spaces::new(
                    nas as usize,
                    shared.iova_cache.clone(),
                    shared.max_iotlb_entries,
                ),
                usage <- new_mutex!(Usage::default()),
                config <- new_mutex!(ConfigSpace { bytes: space, written: None }),
                generation: Atomic::new(0),
                status: Atomic::new(0),
                driver_ok_refused: AtomicFlag::new(false),
                driver_features: Atomic::new(0),
            }),
            GFP_KERNEL_ACCOUNT,
        )
    }

    /// Whether it speaks version 1 of the API.
    pub(super) fn is_v1(&self) -> bool {
        self.api_version >= API_VERSION_1
    }

    /// A daemon opens it. Errors: [`EBUSY`] if another one has it open, [`ENODEV`] if it was destroyed.
    pub(super) fn open(&self) -> Result {
        let mut usage = self.usage.lock();
        if usage.destroyed {
            return Err(ENODEV);
        }
        if usage.open {
            return Err(EBUSY);
        }

        usage.open = true;
        self.messages.daemon_opened();

        Ok(())
    }

    /// The daemon has closed it, or has died. Makes what it left ready for the next one.
    pub(super) fn close(&self) {
        self.spaces.dereg_all_umem();
        for vq in &self.vqs {
            vq.abandon_kickfd();
        }
        self.messages.daemon_closed();
        self.usage.lock().open = false;
    }

    /// Puts it on the bus, until the returned [`Attached`] is dropped.
    ///
    /// Errors: [`EEXIST`] if it is there already, [`EINVAL`] if not all virtqueues are set up or if
    /// it was destroyed.
    pub(super) fn attach(self: &Arc<Self>) -> Result<Attached> {
        let mut usage = self.usage.lock();
        if usage.attached {
            return Err(EEXIST);
        }
        self.settle_vq_sizes();
        if usage.destroyed || self.vqs.iter().any(|vq| vq.max_size() == 0) {
            return Err(EINVAL);
        }

        usage.attached = true;
        self.messages.attach();

        Ok(Attached(self.clone()))
    }

    /// Marks it as destroyed. Errors: [`EBUSY`] if it is open or on the bus.
    pub(super) fn destroy(&self) -> Result {
        let mut usage = self.usage.lock();
        if usage.open || usage.attached {
            return Err(EBUSY);
        }

        usage.destroyed = true;

        Ok(())
    }

    /// The virtqueue of an index that userspace has sent. Errors: [`EINVAL`].
    pub(super) fn vq(&self, index: u32) -> Result<&Arc<Vq>> {
        get_nospec(&self.vqs, index as usize).ok_or(EINVAL)
    }

    /// All virtqueues.
    pub(super) fn vqs(&self) -> &[Arc<Vq>] {
        &self.vqs
    }

    /// Sets a virtqueue up.
    ///
    /// Errors: [`EINVAL`] if there is no such virtqueue or group, or a reserved field is not 0; on the
    /// bus, if it would be no virtqueue any more, or, for version 1, another one than it is.
    pub(super) fn set_up_vq(&self, config: &VqConfig) -> Result {
        let vq = self.vq(config.index)?;

        if config.group >= self.ngroups
            || config.reserved1 != 0
            || config.reserved2.iter().any(|&word| word != 0)
        {
            return Err(EINVAL);
        }

        // Holding this keeps the device from getting on the bus meanwhile.
        let usage = self.usage.lock();
        if !usage.attached {
            vq.set_up(config);
        } else if self.is_v1() {
            if !vq.is_set_up_as(config) {
                return Err(EINVAL);
            }
        } else if config.max_size != 0 {
            // The driver that has it now knows of another size, and sees that to its end. There is
            // one group only.
            vq.set_next_max_size(config.max_size);
        } else {
            return Err(EINVAL);
        }

        Ok(())
    }

    /// Applies pending `VQ_SETUP` sizes. Must be called only while no driver uses the virtqueues.
    pub(super) fn settle_vq_sizes(&self) {
        for vq in &self.vqs {
            vq.settle_max_size();
        }
    }

    /// The size of the configuration space in bytes.
    pub(super) fn config_size(&self) -> usize {
        self.config.lock().bytes.len()
    }

    /// Whether a range is within the configuration space, whose size never changes.
    pub(super) fn has_config(&self, offset: usize, len: usize) -> bool {
        offset
            .checked_add(len)
            .is_some_and(|end| end <= self.config_size())
    }

    /// Reads from the configuration space, for a kernel driver (`to_kernel`) or another reader. Bytes
    /// beyond its end are left as they are.
    pub(super) fn read_config(&self, offset: usize, buf: &mut [u8], to_kernel: bool) {
        {
            let config = self.config.lock();

            if let Some(from) = config.bytes.get(offset..) {
                for (to, from) in buf.iter_mut().zip(from) {
                    *to = *from;
                }
            }
        }

        if to_kernel {
            quirks::hide_from_kernel(self.device_id, || self.request_limits(), offset, buf);
        }
    }

    /// The limits of one request of a kernel driver. May sleep.
    fn request_limits(&self) -> quirks::RequestLimits {
        let shortest = self.vqs.iter().map(|vq| vq.size()).min();
        let area = self.spaces.get(0).map(|open| open.domain.bounce());

        quirks::RequestLimits {
            pages: area.map_or(0, |area| area.size() >> PAGE_SHIFT),
            mappings: area.map_or(0, |area| area.max_mappings()),
            shortest_vq: shortest.unwrap_or(0),
            indirect: self.features & config::feature::INDIRECT_DESC != 0,
        }
    }

    /// The size of a virtqueue, the one chosen or else the largest, as a kernel driver
    /// (`to_kernel`) or another one is told. Errors: [`EINVAL`] if there is no such virtqueue. May sleep.
    pub(super) fn vq_size(&self, index: u32, to_kernel: bool) -> Result<u16> {
        let size = self.vq(index)?.size();

        Ok(if to_kernel {
            self.request_limits().vq_size(self.device_id, size)
        } else {
            size
        })
    }

    /// Writes to the configuration space, on behalf of the daemon, some time after it was last
    /// written to. May sleep. Errors: [`EINVAL`] if not all of it is within the space, [`EINTR`] if the
    /// task is killed.
    pub(super) fn write_config(&self, offset: usize, buf: &[u8]) -> Result {
        // Drivers read what they need once more if it has changed meanwhile, for as long as it takes,
        // and nothing ends that but this.
        loop {
            let mut config = self.config.lock();
            let ConfigSpace { bytes, written } = &mut *config;
            let to = bytes
                .get_mut(offset..)
                .and_then(|space| space.get_mut(..buf.len()))
                .ok_or(EINVAL)?;

            if written.is_none_or(|written| written.elapsed() >= CONFIG_PAUSE) {
                to.copy_from_slice(buf);
                *written = Some(Instant::now());
                let _ = self.generation.fetch_add(1, Relaxed);
                return Ok(());
            }
            drop(config);
            sched::sleep_killable(CONFIG_PAUSE)?;
        }
    }

    /// A number that changes whenever the configuration space may have changed.
    pub(super) fn generation(&self) -> u32 {
        self.generation.load(Relaxed)
    }

    /// The device status.
    pub(super) fn status(&self) -> u8 {
        // It is set from 8 bits.
        self.status.load(Relaxed) as u8
    }

    /// Sets the device status: the daemon has agreed to it.
    pub(super) fn set_status(&self, status: u8) {
        self.status.store(status.into(), Relaxed);
    }

    /// Records whether a kernel driver set `DRIVER_OK` but the daemon did not acknowledge it.
    ///
    /// Such drivers do not look whether they are ready: virtio_blk waits for its first requests. So
    /// they are ready in so far as another daemon can end what they wait for.
    pub(super) fn set_driver_ok_refused(&self, driver_ok_refused: bool) {
        self.driver_ok_refused.store(driver_ok_refused, Relaxed);
    }

    /// Whether a driver can be interrupted: `DRIVER_OK` is set, or was and was not acknowledged.
    pub(super) fn is_driven(&self) -> bool {
        self.status() & status::DRIVER_OK != 0 || self.driver_ok_refused.load(Relaxed)
    }

    /// The features that the driver has accepted.
    pub(super) fn driver_features(&self) -> u64 {
        self.driver_features.load(Relaxed)
    }

    /// The features that it offers to a kernel driver (`to_kernel`), or to another one.
    pub(super) fn offered(&self, to_kernel: bool) -> u64 {
        if to_kernel {
            self.features & !quirks::hidden_from_kernel(self.device_id, self.features)
        } else {
            self.features
        }
    }

    /// The driver, which was offered `offered`, accepts features. Errors: [`EINVAL`] if some were
    /// not offered.
    pub(super) fn set_driver_features(&self, features: u64, offered: u64) -> Result {
        if features & !offered != 0 {
            return Err(EINVAL);
        }

        self.driver_features.store(features, Relaxed);

        Ok(())
    }

    /// Whether the virtqueues have the packed layout.
    pub(super) fn is_packed(&self) -> bool {
        self.driver_features() & config::feature::RING_PACKED != 0
    }

    /// Resets the device: forgets all that its driver has set.
    ///
    /// vhost's callbacks are forgotten after this, those of a driver of the kernel before.
    pub(super) fn reset(&self) {
        self.spaces.reset();
        self.set_status(0);
        self.set_driver_ok_refused(false);
        self.driver_features.store(0, Relaxed);
        let _ = self.generation.fetch_add(1, Relaxed);
        for vq in &self.vqs {
            vq.reset();
        }
    }
}

/// A device that is on the vDPA bus.
pub(super) struct Attached(Arc<Dev>);

impl core::ops::Deref for Attached {
    type Target = Arc<Dev>;

    fn deref(&self) -> &Arc<Dev> {
        &self.0
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.0.usage.lock().attached = false;
    }
}
