// SPDX-License-Identifier: GPL-2.0

//! The state of a VDUSE device, which its daemon and its driver share.
//!
//! # Lock order
//!
//! The lock of the [usage](super::usage), then the mutex of the [message queue](super::msg) or of
//! the [shadow](super::shadow), then the lock of a callback slot or of a virtqueue.

use super::{
    config_space::ConfigSpace,
    groups::GroupAsids,
    msg::MessageQueue,
    quirks::{
        self,
        ControlVq,
        KernelView,
        RequestLimits, //
    },
    shadow::{
        self,
        Shadow, //
    },
    spaces::Spaces,
    umem,
    usage::Usage,
    validate,
    virtio::{
        device_id,
        feature, //
    },
    vq::Vq, //
};
use crate::{
    bindings::{
        iova,
        nospec::get_nospec,
        page::PAGE_SHIFT,
        pm::SuspendWatch,
        vdpa::{
            status,
            Callbacks,
            Suspension, //
        },
        workqueue,
    },
    uapi::{
        extension,
        DevConfig,
        DevRequest,
        VqConfig,
        API_VERSION_1,
        F_QUEUE_READY,
        F_SUSPEND,
        SET_STATUS,
        SET_VQ_READY,
        SUSPEND, //
    },
};
use kernel::{
    alloc::flags::GFP_KERNEL_ACCOUNT,
    fmt,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            AtomicFlag,
            Relaxed, //
        },
        Arc, //
    },
    time::Delta,
};

/// Returns the size of the reserve of a device's bounce area, in pages.
///
/// Only disks have a reserve: memory is freed by writing to disks. The size is the most for which a
/// disk takes less than 256 KiB while it is idle, and so decides how large a request can be
/// ([`RequestLimits`]). Other devices cannot use a reserve: the buffers in which a network card
/// receives stay mapped until something arrives, so the reserve would never be free again.
fn reserved_pages(device_id: u32) -> usize {
    match device_id {
        device_id::BLOCK => 53,
        _ => 0,
    }
}

/// The resources that all devices share.
pub(crate) struct Shared {
    /// The caches from which address spaces allocate I/O virtual addresses (IOVAs).
    pub(super) iova_cache: Arc<iova::Cache>,
    /// The watch that records whether the machine is being suspended.
    pub(super) suspend_watch: Arc<SuspendWatch>,
    /// The workqueue that runs deferred kicks, and interrupts that are sent to another CPU.
    pub(super) queue: workqueue::FlushOnDrop,
    /// Maximum number of mappings of an address space.
    pub(super) max_iotlb_entries: usize,
    /// Maximum time that a kernel driver waits for the daemon to carry out a command of a control
    /// virtqueue. If this is 0 or less, kernel drivers are not offered a control virtqueue.
    pub(super) control_timeout: Delta,
}

/// The API version, features and extensions that a client has negotiated for the devices that it
/// creates.
#[derive(Clone, Copy, Default)]
pub(super) struct Negotiated {
    /// The API version.
    pub(super) api_version: u64,
    /// The VDUSE features: any of [`F_QUEUE_READY`] and [`F_SUSPEND`].
    pub(super) features: u64,
    /// The extensions: [`F_RESUME`](extension::F_RESUME) or 0.
    pub(super) extensions: u64,
}

/// A network card's control virtqueue, and its shadow.
struct Control {
    vq: ControlVq,
    shadow: Pin<KBox<Shadow>>,
}

impl Control {
    /// Returns the control virtqueue of a device and a shadow for it, or [`None`] if the device has
    /// no control virtqueue or `timeout` is 0 or less.
    fn new(config: &DevConfig, space: &[u8], timeout: Delta) -> Result<Option<Self>> {
        if timeout <= Delta::ZERO {
            return Ok(None);
        }
        let vq = ControlVq::of(config.device_id, config.features, config.vq_num, space);

        vq.map(|vq| {
            Ok(Self {
                vq,
                shadow: KBox::pin_init(
                    Shadow::new(vq.max_pairs.unwrap_or(1), timeout),
                    GFP_KERNEL_ACCOUNT,
                )?,
            })
        })
        .transpose()
    }
}

/// A VDUSE device.
#[pin_data]
pub(crate) struct Dev {
    /// The API version, features and extensions that were negotiated for the device.
    pub(super) negotiated: Negotiated,
    /// The virtio feature bits that the daemon gave the device.
    features: u64,
    pub(super) device_id: u32,
    pub(super) vendor_id: u32,
    /// The alignment of a virtqueue's parts, in bytes.
    pub(super) vq_align: u32,
    /// The number of virtqueue groups.
    pub(super) ngroups: u32,
    vqs: KVVec<Arc<Vq>>,
    /// The address space of each virtqueue group.
    pub(super) group_asids: GroupAsids,
    /// The control virtqueue and its shadow, if the device has a control virtqueue that kernel
    /// drivers may use.
    control: Option<Control>,
    /// The driver's interrupt callbacks.
    pub(super) callbacks: Arc<Callbacks>,
    /// The queue of requests to the daemon.
    #[pin]
    pub(super) messages: MessageQueue,
    /// The address spaces, through which the daemon accesses the driver's memory.
    #[pin]
    pub(super) spaces: Spaces,
    #[pin]
    usage: Usage,
    /// The configuration space, as the daemon has written it.
    #[pin]
    pub(super) config: ConfigSpace,
    /// The device status, in the low 8 bits.
    status: Atomic<u32>,
    /// Whether a kernel driver set `DRIVER_OK` but the daemon did not acknowledge that bit.
    driver_ok_refused: AtomicFlag,
    /// The features that the driver accepted.
    driver_features: Atomic<u64>,
    /// Whether the device is suspended. Changes only under the message queue's mutex, or in a
    /// reset.
    suspended: AtomicFlag,
    /// Whether the features that are hidden from kernel drivers have been logged.
    hidden_logged: AtomicFlag,
}

impl Dev {
    /// Creates a device. `config` must be [valid](validate::device_is_valid). `space` is the initial
    /// content of the configuration space.
    ///
    /// # Context
    ///
    /// May sleep.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`] if memory is short.
    pub(super) fn new(
        config: &DevConfig,
        space: KVVec<u8>,
        negotiated: Negotiated,
        shared: &Shared,
    ) -> Result<Arc<Self>> {
        let (ngroups, nas) = if negotiated.api_version < API_VERSION_1 {
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

        let group_asids = GroupAsids::new(ngroups)?;
        let control = Control::new(config, &space, shared.control_timeout)?;

        Arc::pin_init(
            try_pin_init!(Self {
                negotiated,
                features: config.features,
                device_id: config.device_id,
                vendor_id: config.vendor_id,
                vq_align: config.vq_align,
                ngroups,
                vqs,
                group_asids,
                control,
                callbacks,
                messages <- MessageQueue::new(shared.suspend_watch.clone()),
                spaces <- Spaces::new(
                    nas as usize,
                    shared.iova_cache.clone(),
                    reserved_pages(config.device_id),
                    shared.max_iotlb_entries,
                ),
                usage <- Usage::new(),
                config <- ConfigSpace::new(space),
                status: Atomic::new(0),
                driver_ok_refused: AtomicFlag::new(false),
                driver_features: Atomic::new(0),
                suspended: AtomicFlag::new(false),
                hidden_logged: AtomicFlag::new(false),
            }),
            GFP_KERNEL_ACCOUNT,
        )
    }

    /// Returns whether the device was created with version 1 of the API.
    pub(super) fn is_v1(&self) -> bool {
        self.negotiated.api_version >= API_VERSION_1
    }

    /// Marks the device as opened by a daemon.
    ///
    /// # Errors
    ///
    /// Those of [`Usage::open`].
    pub(super) fn open(&self) -> Result {
        self.usage.open(|| {
            self.messages.daemon_opened(|| {
                for vq in &self.vqs {
                    vq.settle_ready();
                }
            });
            if let Some(control) = &self.control {
                control.shadow.opened();
            }
        })
    }

    /// Marks the device as closed, after its daemon has closed the device or died. Deregisters user
    /// pages, removes the kick eventfds, and queues unanswered requests again for the next daemon.
    pub(super) fn close(&self) {
        umem::deregister_all(&self.spaces);
        for vq in &self.vqs {
            vq.abandon_kickfd();
        }
        self.messages.daemon_closed();
        if let Some(control) = &self.control {
            control.shadow.closed();
        }
        self.usage.close();
    }

    /// Marks the device as being on the vDPA bus, until the returned [`Attached`] is dropped.
    ///
    /// # Errors
    ///
    /// - Those of [`Usage::attach`].
    /// - [`EINVAL`] if not all virtqueues are set up.
    pub(super) fn attach(self: &Arc<Self>) -> Result<Attached> {
        self.usage.attach(|| {
            self.settle_vq_sizes();
            if self.vqs.iter().any(|vq| vq.max_size() == 0) {
                return Err(EINVAL);
            }

            self.messages.attach();

            Ok(())
        })?;

        Ok(Attached(self.clone()))
    }

    /// Marks the device as destroyed.
    ///
    /// # Errors
    ///
    /// Those of [`Usage::destroy`].
    pub(super) fn destroy(&self) -> Result {
        self.usage.destroy()
    }

    /// Returns the virtqueue with the given index, which may come from userspace, or [`EINVAL`] if
    /// there is no such virtqueue.
    pub(super) fn vq(&self, index: u32) -> Result<&Arc<Vq>> {
        get_nospec(&self.vqs, index as usize).ok_or(EINVAL)
    }

    /// Returns all virtqueues.
    pub(super) fn vqs(&self) -> &[Arc<Vq>] {
        &self.vqs
    }

    /// Sets up a virtqueue.
    ///
    /// # Errors
    ///
    /// - [`EINVAL`] if there is no such virtqueue, or if `config` is not
    ///   [valid](validate::vq_is_valid).
    /// - Those of [`Vq::change_setup`], if the device is on the bus.
    pub(super) fn set_up_vq(&self, config: &VqConfig) -> Result {
        let vq = self.vq(config.index)?;

        if !validate::vq_is_valid(config, self.ngroups) {
            return Err(EINVAL);
        }

        self.usage.with_attached(|attached| {
            if attached {
                vq.change_setup(config, self.is_v1())
            } else {
                vq.set_up(config);
                Ok(())
            }
        })
    }

    /// Puts into effect the maximum sizes that [`set_up_vq`](Self::set_up_vq) has recorded for the
    /// next driver. Must be called only while no driver uses the virtqueues.
    pub(super) fn settle_vq_sizes(&self) {
        for vq in &self.vqs {
            vq.settle_max_size();
        }
    }

    /// Reads the configuration space from byte `offset` on. If `to_kernel` is set, the reader is a
    /// kernel driver, and values that kernel drivers cannot handle are replaced. Bytes of `buf`
    /// beyond the end of the configuration space are left unchanged.
    pub(super) fn read_config(&self, offset: usize, buf: &mut [u8], to_kernel: bool) {
        self.config.read(offset, buf);

        if to_kernel {
            quirks::hide_from_kernel(self.device_id, self, offset, buf);
        }
    }

    /// Returns the size of a virtqueue, in descriptors: the size that the driver chose or, before
    /// that, the largest size.
    ///
    /// If `to_kernel` is set, the result is the size that a kernel driver must see. For a virtqueue
    /// that is shadowed now, this is [`shadow::SIZE`]. For any other virtqueue, it is the size that
    /// [`RequestLimits::vq_size`] allows, or 0 if kernel drivers cannot use the virtqueue.
    ///
    /// # Context
    ///
    /// May sleep.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if there is no such virtqueue.
    pub(super) fn vq_size(&self, index: u32, to_kernel: bool) -> Result<u16> {
        let size = self.vq(index)?.size();

        Ok(if to_kernel && self.shadow_at(index).is_some() {
            shadow::SIZE
        } else if to_kernel {
            self.request_limits().vq_size(self.device_id, size)
        } else {
            size
        })
    }

    /// Returns the device status.
    pub(super) fn status(&self) -> u8 {
        // `set_status` stores 8 bits only.
        self.status.load(Relaxed) as u8
    }

    /// Sets the device status, after the daemon has agreed to that status or in a reset.
    pub(super) fn set_status(&self, status: u8) {
        self.status.store(status.into(), Relaxed);
    }

    /// Records whether a kernel driver set `DRIVER_OK` but the daemon did not acknowledge that bit.
    ///
    /// Kernel drivers do not check whether the daemon acknowledged `DRIVER_OK`: virtio_blk, for
    /// example, sends its first requests and waits for them. So [`is_driven`](Self::is_driven)
    /// returns true for such a driver, and another daemon can complete the requests for which the
    /// driver waits.
    pub(super) fn set_driver_ok_refused(&self, driver_ok_refused: bool) {
        self.driver_ok_refused.store(driver_ok_refused, Relaxed);
    }

    /// Returns whether the driver can be interrupted: either `DRIVER_OK` is set, or a kernel driver
    /// set `DRIVER_OK` but the daemon did not acknowledge that bit.
    pub(super) fn is_driven(&self) -> bool {
        self.status() & status::DRIVER_OK != 0 || self.driver_ok_refused.load(Relaxed)
    }

    /// Returns the features that the driver accepted.
    pub(super) fn driver_features(&self) -> u64 {
        self.driver_features.load(Relaxed)
    }

    /// Returns the features that the device offers. If `to_kernel` is set, the features that are
    /// hidden from kernel drivers are left out.
    pub(super) fn offered(&self, to_kernel: bool) -> u64 {
        if to_kernel {
            self.features & !self.hidden()
        } else {
            self.features
        }
    }

    /// Returns the features of the device that are hidden from kernel drivers.
    fn hidden(&self) -> u64 {
        self.features & quirks::hidden_from_kernel(self.device_id, self.features, self.control())
    }

    /// Logs which of the device's features are hidden from kernel drivers, and why. Logs one line,
    /// and only once. Without that line, it would be hard to find out why a card lacks a feature
    /// that its daemon offers.
    pub(super) fn log_hidden(&self, name: &CStr) {
        let hidden = self.hidden();

        if hidden != 0 && !self.hidden_logged.xchg(true, Relaxed) {
            let reasons = Reasons(self);

            pr_info!("{name}: features hidden from drivers of this kernel: {reasons}\n");
        }
    }

    /// Returns the shadow of the control virtqueue, or [`None`] if the device has none.
    pub(super) fn shadow(&self) -> Option<&Shadow> {
        Some(&self.control.as_ref()?.shadow)
    }

    /// Returns the virtqueue that is shadowed now and its shadow, or [`None`] if no virtqueue is
    /// shadowed now.
    pub(super) fn shadowed(&self) -> Option<(&Arc<Vq>, &Shadow)> {
        let shadow = self.shadow()?;

        Some((self.vq(shadow.index()?).ok()?, shadow))
    }

    /// Returns the shadow of the virtqueue `index`, or [`None`] if that virtqueue is not shadowed
    /// now.
    #[inline]
    pub(super) fn shadow_at(&self, index: u32) -> Option<&Shadow> {
        self.shadow().filter(|shadow| shadow.is_at(index))
    }

    /// Records the features that the driver accepts. `offered` are the features that the device
    /// offers to the driver.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if a feature was not offered.
    pub(super) fn set_driver_features(&self, features: u64, offered: u64) -> Result {
        if features & !offered != 0 {
            return Err(EINVAL);
        }

        self.driver_features.store(features, Relaxed);

        Ok(())
    }

    /// Allocates the pages of the bounce area's reserve, for a kernel driver, until the next reset. A
    /// vhost client does not use the bounce area, so the reserve takes no memory until a kernel
    /// driver comes.
    ///
    /// # Context
    ///
    /// May sleep.
    ///
    /// # Errors
    ///
    /// - [`EINVAL`] if the device has never been on the vDPA bus.
    /// - [`ENOMEM`] if memory is short.
    pub(super) fn fill_reserve(&self) -> Result {
        self.spaces
            .get(0)?
            .domain
            .bounce()
            .fill_reserve(self.vqs.len())
    }

    /// Returns whether the virtqueues have the packed layout.
    pub(super) fn is_packed(&self) -> bool {
        self.driver_features() & feature::RING_PACKED != 0
    }

    /// Returns whether [`F_QUEUE_READY`] was negotiated. If so, the daemon gets a [`SET_VQ_READY`]
    /// request before a virtqueue becomes ready or ceases to be ready.
    pub(super) fn asks_for_ready(&self) -> bool {
        self.negotiated.features & F_QUEUE_READY != 0
    }

    /// Returns whether a driver may suspend and resume the device.
    pub(super) fn suspension(&self) -> Suspension {
        if self.negotiated.features & F_SUSPEND == 0 {
            Suspension::None
        } else if self.negotiated.extensions & extension::F_RESUME == 0 {
            Suspension::Suspend
        } else {
            Suspension::SuspendAndResume
        }
    }

    /// Returns whether the device is suspended.
    pub(super) fn is_suspended(&self) -> bool {
        self.suspended.load(Relaxed)
    }

    /// Puts into effect a request to which the daemon has agreed. Must be called before the sender
    /// of the request is woken and before the daemon's `write(2)` of the response returns, as both
    /// the sender and the daemon rely on the effect from then on.
    ///
    /// # Context
    ///
    /// Process context, with the message queue's mutex held.
    pub(super) fn agreed(&self, request: &DevRequest) {
        match request.kind {
            SET_STATUS => self.set_status(request.body.status()),
            SET_VQ_READY => {
                let (index, ready) = request.body.vq_ready();

                if let Ok(vq) = self.vq(index) {
                    vq.set_ready(ready);
                }
            }
            SUSPEND => {
                self.callbacks.suspend();
                for vq in &self.vqs {
                    vq.suspend();
                }
                self.suspended.store(true, Relaxed);
            }
            extension::RESUME => {
                self.suspended.store(false, Relaxed);
                self.callbacks.resume();
                for vq in &self.vqs {
                    vq.resume();
                }
            }
            _ => (),
        }
    }

    /// Resets the device: discards everything that its driver has set.
    ///
    /// The caller clears a kernel driver's callbacks before this call, and vhost's callbacks after
    /// it.
    pub(super) fn reset(&self) {
        self.spaces.reset();
        self.set_status(0);
        self.set_driver_ok_refused(false);
        self.driver_features.store(0, Relaxed);
        self.config.change_generation();
        for vq in &self.vqs {
            vq.reset();
        }
        self.suspended.store(false, Relaxed);
    }
}

/// The features of a device that are hidden from kernel drivers, formatted for the log, each with
/// the reason.
struct Reasons<'a>(&'a Dev);

impl fmt::Display for Reasons<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";

        for (features, reason) in quirks::reasons(self.0.hidden(), self.0.control()) {
            write!(f, "{separator}{features:#x} ({reason})")?;
            separator = ", ";
        }

        Ok(())
    }
}

impl KernelView for Dev {
    /// Returns the limits of one request of a kernel driver. May sleep.
    fn request_limits(&self) -> RequestLimits {
        let shortest = self.vqs.iter().map(|vq| vq.size()).min();
        let area = self.spaces.get(0).map(|handle| handle.domain.bounce());

        RequestLimits {
            pages: area.map_or(0, |area| area.size() >> PAGE_SHIFT),
            mappings: area.map_or(0, |area| area.sure_mappings()),
            shortest_vq: shortest.unwrap_or(0),
            indirect: self.features & feature::INDIRECT_DESC != 0,
        }
    }

    fn control(&self) -> Option<&ControlVq> {
        let control = &self.control.as_ref()?.vq;
        // In the virtqueue that the daemon sees, a command takes two descriptors. While a driver
        // uses the device, the maximum sizes do not change, so `control` returns the same.
        let is_long_enough = |index| self.vq(index).is_ok_and(|vq| vq.max_size() >= 2);

        control.indexes().all(is_long_enough).then_some(control)
    }
}

/// The proof that a device is on the vDPA bus. Dropping the proof marks the device as no longer on
/// the bus.
pub(super) struct Attached(Arc<Dev>);

impl core::ops::Deref for Attached {
    type Target = Arc<Dev>;

    fn deref(&self) -> &Arc<Dev> {
        &self.0
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.0.usage.detach();
    }
}
