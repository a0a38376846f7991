// SPDX-License-Identifier: GPL-2.0

//! The driver side of a device on the vDPA bus.
//!
//! The vDPA core calls the operations of [`DriverSide`] on behalf of the device's driver.
//! Operations that the daemon must know of are sent to the daemon as [messages](super::msg). Other
//! operations return what the daemon has set up, or record the driver's settings until the daemon
//! queries them.

use super::{
    device::{
        Attached,
        Dev, //
    },
    domain::Mappings,
    groups::VqTokens,
    msg::Suspending,
    shadow::Shadow,
    vq_state, //
};
use crate::{
    bindings::{
        atomic_cpumask::AtomicCpumask,
        chrdev::Node,
        vdpa::{
            status::{
                Phase,
                Step, //
            },
            BusDriver,
            Callbacks,
            Operations,
            Suspension,
            VqAddress,
            VqState, //
        },
        vhost_iotlb::Iotlb,
        virtio_map::Token,
    },
    uapi::{
        self,
        RequestBody, //
    },
};
use kernel::{
    alloc::flags::GFP_KERNEL_ACCOUNT,
    cpumask::Cpumask,
    prelude::*,
    sync::{
        atomic::{
            AtomicFlag,
            Relaxed, //
        },
        Arc, //
    },
};

/// The driver side of a device.
pub(crate) struct DriverSide {
    /// The mapping tokens of the virtqueues.
    tokens: VqTokens,
    /// The mapping token of the virtqueue that is [shadowed](super::shadow), if the device has a
    /// shadow. Boxed, as few devices have a shadow.
    shadowed_token: Option<KBox<Token<Mappings>>>,
    /// Whether the device was reset but the daemon did not acknowledge the reset.
    reset_refused: AtomicFlag,
    /// The device. This field is dropped last, as the device may be destroyed once it is dropped.
    dev: Attached,
}

impl DriverSide {
    /// Prepares a device for being added to the vDPA bus: creates address space 0 and the mapping
    /// tokens.
    ///
    /// # Context
    ///
    /// May sleep.
    ///
    /// # Errors
    ///
    /// - Those of [`Spaces::get_or_alloc`](super::spaces::Spaces::get_or_alloc).
    /// - [`ENOMEM`] if memory is short.
    pub(super) fn new(dev: Attached) -> Result<Self> {
        let space = &dev.spaces.get_or_alloc(0)?.domain;
        let tokens = VqTokens::new(dev.vqs(), space)?;
        let new_direct = |shadow: &Shadow| {
            let token = Token::new_direct(space.clone(), shadow.memory().clone());

            KBox::new(token, GFP_KERNEL_ACCOUNT)
        };
        let shadowed_token = dev.shadow().map(new_direct).transpose()?;

        Ok(Self {
            tokens,
            shadowed_token,
            reset_refused: AtomicFlag::new(false),
            dev,
        })
    }

    /// Returns the number of virtqueue groups and the number of address spaces.
    pub(super) fn counts(&self) -> (u32, u32) {
        // CAST: The number of address spaces comes from a `u32` of the device's configuration.
        (self.dev.ngroups, self.dev.spaces.len() as u32)
    }

    /// Returns whether the driver may suspend and resume the device.
    pub(super) fn suspension(&self) -> Suspension {
        self.dev.suspension()
    }

    /// Returns the driver's interrupt callbacks.
    pub(super) fn callbacks(&self) -> Arc<Callbacks> {
        self.dev.callbacks.clone()
    }

    /// Moves all groups back to address space 0, where drivers expect them after a reset.
    fn reset_groups(&self) {
        // Address space 0 was created before the device was put on the bus.
        if let Ok(handle) = self.dev.spaces.get(0) {
            self.tokens.reset(&self.dev.group_asids, &handle.domain);
        }
    }

    fn send(&self, kind: u32, body: RequestBody, driver: BusDriver) -> Result<uapi::DevResponse> {
        // When the machine suspends, the kernel takes the driver core's lock of every device. A
        // vhost process does not hold such a lock here, so it may be frozen. A task that binds or
        // unbinds a kernel driver holds such a lock, so it must not be frozen.
        let suspending = match driver {
            BusDriver::Vhost => Suspending::Freezes,
            BusDriver::Kernel | BusDriver::None => Suspending::GivesUp,
        };

        self.dev.messages.send(kind, body, suspending)
    }

    /// Tells the daemon that the device is reset. Records whether the daemon acknowledged the
    /// reset.
    fn tell_reset(&self, driver: BusDriver) -> Result {
        let told = self.send(uapi::SET_STATUS, RequestBody::from_status(0), driver);

        self.reset_refused.store(told.is_err(), Relaxed);
        told.map(drop)
    }

    /// Calls `f` with the virtqueue `index`. The vDPA core and the device use the same indexes.
    fn vq<R>(&self, index: u16, f: impl FnOnce(&Arc<super::vq::Vq>) -> R) -> Result<R> {
        self.dev.vq(index.into()).map(f)
    }
}

impl Operations for DriverSide {
    type SpaceOwner = Mappings;

    type Parent = Arc<Node<Dev>>;

    fn set_vq_address(&self, index: u16, address: VqAddress) -> Result {
        let vq = self.dev.vq(index.into())?;
        let Some(shadow) = self.dev.shadow_at(index.into()) else {
            vq.set_address(address);
            return Ok(());
        };
        let mut mac = [0; 6];
        self.dev.read_config(0, &mut mac, true);

        // The daemon gets the address of the shadow's own virtqueue. The daemon never sees the
        // address of the driver's virtqueue, which is a physical address.
        let (num, address) = shadow.begin(
            vq.snapshot().num,
            address,
            vq.max_size(),
            self.dev.driver_features(),
            mac,
            &self.dev.spaces.get(0)?.domain,
        )?;
        vq.set_num(num);
        vq.set_address(address);

        Ok(())
    }

    fn set_vq_num(&self, vq: u16, num: u32) {
        let _ = self.vq(vq, |vq| vq.set_num(num));
    }

    fn kick_vq(&self, index: u16) {
        let _ = self.vq(index, |vq| match self.dev.shadow_at(index.into()) {
            None => vq.kick(),
            Some(shadow) => shadow.serve(vq),
        });
    }

    fn set_vq_ready(&self, index: u16, ready: bool, driver: BusDriver) {
        let _ = self.vq(index, |vq| {
            if !self.dev.asks_for_ready() {
                vq.set_ready(ready);
                return;
            }

            let is_kernel = driver != BusDriver::Vhost;
            self.dev.messages.ask_for_ready(vq, index, ready, is_kernel);
        });
        if !ready {
            if let Some(shadow) = self.dev.shadow_at(index.into()) {
                shadow.end();
            }
        }
    }

    fn vq_ready(&self, vq: u16) -> bool {
        self.vq(vq, |vq| vq.is_ready()).unwrap_or(false)
    }

    fn set_vq_state(&self, vq: u16, state: VqState) -> Result {
        self.vq(vq, |vq| vq.set_state(state))
    }

    fn vq_state(&self, vq: u16, driver: BusDriver) -> Result<VqState> {
        let body = RequestBody::from_vq_index(vq.into());
        let answer = self.send(uapi::GET_VQ_STATE, body, driver)?;
        let (_, state) = answer.body.vq_state();

        Ok(vq_state::from_abi(state, self.dev.is_packed()))
    }

    fn vq_size(&self, vq: u16, driver: BusDriver) -> u16 {
        self.dev
            .vq_size(vq.into(), driver == BusDriver::Kernel)
            .unwrap_or(0)
    }

    fn vq_group(&self, vq: u16) -> u32 {
        self.vq(vq, |vq| vq.group()).unwrap_or(0)
    }

    fn vq_token(&self, vq: u16) -> Option<&Token<Mappings>> {
        match self.dev.shadow_at(vq.into()) {
            None => self.tokens.get(vq),
            Some(_) => self.shadowed_token.as_deref(),
        }
    }

    fn vq_affinity(&self, vq: u16) -> Option<&AtomicCpumask> {
        self.dev.vqs().get(usize::from(vq))?.affinity()
    }

    fn set_vq_affinity(&self, vq: u16, mask: Option<&Cpumask>) -> Result {
        self.vq(vq, |vq| vq.set_affinity(mask))?
    }

    fn vq_align(&self) -> u32 {
        self.dev.vq_align
    }

    fn vq_num_max(&self) -> u16 {
        let sizes = self.dev.vqs().iter().map(|vq| vq.max_size());

        sizes.max().unwrap_or(0)
    }

    fn device_id(&self) -> u32 {
        self.dev.device_id
    }

    fn vendor_id(&self) -> u32 {
        self.dev.vendor_id
    }

    fn device_features(&self, driver: BusDriver) -> u64 {
        // Features are hidden from kernel drivers only. If the device has no driver, the caller is
        // netlink, which gets all features.
        self.dev.offered(driver == BusDriver::Kernel)
    }

    fn driver_features(&self) -> u64 {
        self.dev.driver_features()
    }

    fn set_driver_features(&self, features: u64, driver: BusDriver) -> Result {
        self.dev
            .set_driver_features(features, self.device_features(driver))?;
        if driver == BusDriver::Kernel {
            self.dev.fill_reserve()?;
        }
        if let Some(shadow) = self.dev.shadow() {
            shadow.select(if driver == BusDriver::Kernel {
                features
            } else {
                0
            });
        }

        Ok(())
    }

    fn status(&self) -> u8 {
        self.dev.status()
    }

    fn set_status(&self, step: Step, driver: BusDriver) {
        let is_kernel = driver != BusDriver::Vhost;
        if step.begins && is_kernel {
            // The previous driver has reset the device. A kernel driver does not check whether the
            // daemon acknowledged that reset. A daemon that missed the reset still uses the
            // previous driver's rings, so the code below tells the daemon of the reset again.
            self.dev.settle_vq_sizes();
            if self.reset_refused.load(Relaxed) {
                let _ = self.tell_reset(driver);
            }
        }

        // If the daemon agrees, the status changes before this function returns. The driver reads
        // the status back to find out whether the daemon has agreed.
        let body = RequestBody::from_status(step.status);
        let told = if step.phase == Phase::Ready && is_kernel {
            // A kernel driver does not check whether the daemon agreed to `DRIVER_OK`. The driver
            // sends its first requests, and waits until the daemon has served them. A daemon that
            // missed `DRIVER_OK` does not serve any requests. So the machine does not suspend
            // before the wait for the daemon's answer to `DRIVER_OK` has ended.
            let messages = &self.dev.messages;

            messages.send(uapi::SET_STATUS, body, Suspending::Waits)
        } else {
            self.send(uapi::SET_STATUS, body, driver)
        };

        self.dev
            .set_driver_ok_refused(step.phase == Phase::Ready && told.is_err() && is_kernel);
        // If the daemon opened the device after the virtqueues were set up, the daemon may lack
        // settings of the driver. Once the driver is ready, the shadow restores these settings.
        if let Some((vq, shadow)) = self.dev.shadowed() {
            shadow.advance(vq, self.dev.is_driven());
        }
    }

    fn reset(&self, driver: BusDriver) -> Result {
        let told = self.tell_reset(driver);

        // The device is reset whatever the daemon answers, as the driver is going to free its
        // memory.
        self.dev.reset();
        self.reset_groups();
        if let Some(shadow) = self.dev.shadow() {
            shadow.end();
            shadow.select(0);
        }
        told
    }

    fn begin_delete(&self) {
        self.dev.messages.begin_delete();
    }

    fn suspend(&self, driver: BusDriver) -> Result {
        self.send(uapi::SUSPEND, RequestBody::default(), driver)?;

        Ok(())
    }

    fn resume(&self, driver: BusDriver) -> Result {
        // vhost also calls this for a device that is not suspended.
        if self.dev.is_suspended() {
            self.send(uapi::extension::RESUME, RequestBody::default(), driver)?;
        }

        Ok(())
    }

    fn config_size(&self) -> usize {
        self.dev.config.size()
    }

    fn get_config(&self, offset: usize, buf: &mut [u8], driver: BusDriver) {
        self.dev
            .read_config(offset, buf, driver == BusDriver::Kernel);
    }

    fn set_config(&self, _offset: usize, _buf: &[u8]) {
        // A driver's write is ignored: the daemon owns the configuration space, and there is no
        // message that tells the daemon of a write.
    }

    fn generation(&self) -> u32 {
        self.dev.config.generation()
    }

    fn set_map(&self, asid: u32, iotlb: &Iotlb, driver: BusDriver) -> Result {
        let body = if self.dev.is_v1() {
            RequestBody::from_iova_range_v2(0, u64::MAX, asid)
        } else {
            RequestBody::from_iova_range(0, u64::MAX)
        };

        self.dev.spaces.set_map(asid, iotlb, || {
            self.send(uapi::UPDATE_IOTLB, body, driver).map(drop)
        })
    }

    fn reset_map(&self, asid: u32) -> Result {
        // The process that owned the mappings is gone. The daemon needs no message about this,
        // because the device was reset before, and the daemon was told of that reset.
        self.dev.spaces.reset_map(asid);

        Ok(())
    }

    fn set_group_asid(&self, group: u32, asid: u32, driver: BusDriver) -> Result {
        if !self.dev.is_v1() {
            return Err(EINVAL);
        }

        if group >= self.dev.ngroups {
            return Err(EINVAL);
        }

        let space = &self.dev.spaces.get_or_alloc(asid)?.domain;
        let asids = &self.dev.group_asids;

        self.tokens.set_asid(asids, group, asid, space, || {
            let body = RequestBody::from_group_asid(group, asid);

            self.send(uapi::SET_VQ_GROUP_ASID, body, driver).map(drop)
        })
    }
}
