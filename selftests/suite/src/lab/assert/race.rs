// SPDX-License-Identifier: GPL-2.0

//! Two operations that threads repeat at the same time.

use std::time::{Duration, Instant};

/// Repeats `other` in a new thread and `here` in this thread, at the same time. Stops after two
/// seconds, or later if one of the two operations has not run 100 times by then.
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
        // If `here` panics, the other thread must still be stopped.
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
