// SPDX-License-Identifier: GPL-2.0

//! Two operations that are repeated at the same time.

use std::time::{Duration, Instant};

/// Runs `other` repeatedly in a thread, and `here` repeatedly in this one, for a while and until
/// both have run often enough to meet.
#[track_caller]
pub fn beside(other: impl Fn() + Sync, mut here: impl FnMut()) {
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
    const OFTEN: u32 = 100;
    let stop = AtomicBool::new(false);
    let others = AtomicU32::new(0);
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                other();
                others.fetch_add(1, Ordering::Relaxed);
            }
        });
        let end = Instant::now() + Duration::from_secs(2);
        let mut ours = 0;
        let enough = |ours| ours >= OFTEN && others.load(Ordering::Relaxed) >= OFTEN;
        // The other thread must end even if this one fails.
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            while Instant::now() < end || !enough(ours) && !thread.is_finished() {
                here();
                ours += 1;
            }
        }));
        stop.store(true, Ordering::Relaxed);
        if let Err(panic) = result {
            std::panic::resume_unwind(panic);
        }
    });
}
