// SPDX-License-Identifier: GPL-2.0

//! Giving memory back: the bounce pages that nothing has used for a while, of all devices.

use super::{
    domain,
    registry::Registry, //
};
use crate::bindings::{
    bounce::pages_on_demand,
    lock::{
        new_spinlock_irqsave,
        SpinLockIrqSave, //
    },
    shrinker::{
        Registration,
        Shrink, //
    },
    ticker::{
        Tick,
        Ticker, //
    },
};
use kernel::{
    alloc::flags::GFP_KERNEL_ACCOUNT,
    prelude::*,
    sync::Arc,
    time::{
        Delta,
        Instant,
        Monotonic, //
    },
};

/// The time between two looks at all devices. A page is given back if it was not used from one look
/// at its device to the next.
const INTERVAL: Delta = Delta::from_secs(10);

/// The minimum time between two looks, however often the kernel asks for memory.
const MIN_INTERVAL: Delta = Delta::from_secs(1);

/// The number of devices that are looked at together. Looking at many takes hardly longer than
/// looking at one, if there is something to give back.
const TOGETHER: usize = 16;

/// The times of the last looks at the devices.
struct Looks {
    /// The last look at any device.
    any: Instant<Monotonic>,
    /// The last look at all devices.
    all: Instant<Monotonic>,
}

/// What looks at the devices.
#[pin_data]
struct Collector {
    registry: Arc<Registry>,
    #[pin]
    looks: SpinLockIrqSave<Looks>,
}

impl Tick for Collector {
    fn tick(&self) -> Delta {
        let is_for_all = {
            let mut looks = self.looks.lock();
            let now = Instant::now();
            let is_for_all = now - looks.all >= INTERVAL;

            looks.any = now;
            if is_for_all {
                looks.all = now;
            }
            is_for_all
        };

        // Not the devices, but only their domains are held: if a device is destroyed meanwhile, what
        // it has is dropped by whoever destroys it.
        let mut index = 0;
        loop {
            let mut domains = [const { None }; TOGETHER];
            for place in &mut domains {
                if let Some((found, domain)) = self.registry.next_domain(index) {
                    index = found + 1;
                    *place = Some(domain);
                }
            }
            if domains.iter().all(Option::is_none) {
                break;
            }

            // Without a reserve, a driver's request fails if a page that was given back cannot be
            // had again. So such devices do not give back pages as fast as others when memory is
            // short.
            let all = domains.iter().flatten();
            domain::give_back(all.filter(|domain| is_for_all || domain.bounce().has_reserve()));
        }

        INTERVAL
    }
}

impl Shrink for Ticker<Collector> {
    fn count(&self) -> usize {
        pages_on_demand()
    }

    fn shrink(&self) {
        let mut looks = self.data().looks.lock();

        if looks.any.elapsed() >= MIN_INTERVAL {
            // Further calls have no effect before the look begins.
            looks.any = Instant::now();
            self.expedite(Delta::ZERO);
        }
    }
}

/// Gives back bounce pages until it is dropped.
pub(crate) struct GivingBack {
    _shrinker: Registration<Ticker<Collector>>,
}

impl GivingBack {
    /// Begins to give back the pages of the devices of `registry`, from time to time, and when the
    /// kernel needs memory.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`] if memory is short.
    ///
    /// # Context
    ///
    /// May sleep.
    pub(crate) fn begin(registry: Arc<Registry>) -> Result<Self> {
        let ticker = Arc::pin_init(
            Ticker::new(pin_init!(Collector {
                registry,
                looks <- new_spinlock_irqsave!(Looks {
                    any: Instant::now(),
                    all: Instant::now(),
                }),
            })),
            GFP_KERNEL_ACCOUNT,
        )?;

        ticker.expedite(INTERVAL);

        Ok(Self {
            _shrinker: Registration::new(c"vduse", ticker)?,
        })
    }
}
