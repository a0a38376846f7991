// SPDX-License-Identifier: GPL-2.0

//! Time limits that only guard against hangs.
//!
//! The limits were chosen for an emulated machine without any other load. While a limit runs, the
//! time for a fixed piece of work is measured now and then. If the work takes longer, because the
//! machine is slower or shares its CPUs with others, the limit is extended by the same factor. So a
//! limit is never too short on a busy machine, and a hang on an idle machine is detected as early
//! as before.

use std::hint::black_box;
use std::time::{Duration, Instant};

/// Number of measured rounds of arithmetic. The rounds take longer than a time slice on a shared
/// CPU, so that the measurement includes the time slices of others.
const ROUNDS: u32 = 5_000_000;

/// Time for that number of rounds on an idle machine; emulation (TCG) does not take much longer.
const NOMINAL: Duration = Duration::from_millis(12);

/// Interval between measurements, which take up a fortieth of a CPU's time.
const BETWEEN: Duration = Duration::from_millis(500);

/// Upper limit for the slowness of a machine, so that a hang is always detected.
const SLOWEST: f64 = 20.0;

/// Measured speed of the machine since this value was created.
#[derive(Clone, Debug)]
pub struct Pace {
    worked: Duration,
    measured: u32,
    next: Instant,
}

impl Pace {
    /// Starts without a measurement. The first one is due only after [`BETWEEN`], so an operation that
    /// is shorter is never measured.
    pub fn new() -> Self {
        Self {
            worked: Duration::ZERO,
            measured: 0,
            next: Instant::now() + BETWEEN,
        }
    }

    /// Measures the speed now, for an operation that has ended.
    pub fn measured() -> Self {
        let mut pace = Self::new();
        for _ in 0..MEASUREMENTS {
            pace.measure();
        }
        pace
    }

    /// Measures the speed, if the next measurement is due.
    pub fn look(&mut self) {
        if Instant::now() >= self.next {
            self.measure();
        }
    }

    fn measure(&mut self) {
        self.worked += work();
        self.measured += 1;
        self.next = Instant::now() + BETWEEN;
    }

    /// Converts a time on the machine for which limits were chosen to a time on this machine.
    pub fn stretch(&self, time: Duration) -> Duration {
        let nominal = NOMINAL * self.measured.max(1);
        let slowness = self.worked.as_secs_f64() / nominal.as_secs_f64();
        time.mul_f64(slowness.clamp(1.0, SLOWEST))
    }
}

impl Default for Pace {
    fn default() -> Self {
        Self::new()
    }
}

/// Performs a piece of work. Returns the time it took.
fn work() -> Duration {
    let begin = Instant::now();
    let mut number = black_box(0x9e37_79b9_7f4a_7c15_u64);
    for _ in 0..ROUNDS {
        number ^= number << 13;
        number ^= number >> 7;
        number ^= number << 17;
    }
    black_box(number);
    begin.elapsed()
}

/// A running time limit.
#[derive(Clone, Debug)]
pub struct Limit {
    begin: Instant,
    limit: Duration,
    pace: Pace,
}

impl Limit {
    /// Starts the limit.
    pub fn new(limit: Duration) -> Self {
        Self {
            begin: Instant::now(),
            limit,
            pace: Pace::new(),
        }
    }

    /// Returns whether the limit has passed. Should be called several times a second.
    pub fn is_over(&mut self) -> bool {
        self.pace.look();
        self.is_over_for(self.begin.elapsed())
    }

    /// Returns whether an operation that took this long has exceeded the limit.
    fn is_over_for(&mut self, took: Duration) -> bool {
        if took < self.pace.stretch(self.limit) {
            return false;
        }
        // A single measurement is not enough, as other processes may have disturbed it.
        while self.pace.measured < MEASUREMENTS {
            self.pace.measure();
        }
        took >= self.pace.stretch(self.limit)
    }
}

/// Minimum number of measurements before an operation counts as too slow.
const MEASUREMENTS: u32 = 8;

/// Calls `act`, which must not take longer than `limit`, and returns its result. The machine's
/// speed is measured only afterwards; an operation that never ends is ended by the test's own time
/// limit.
#[track_caller]
pub fn in_time<T>(limit: Duration, what: &str, act: impl FnOnce() -> T) -> T {
    let mut running = Limit::new(limit);
    let result = act();
    let took = running.begin.elapsed();
    assert!(
        !running.is_over_for(took),
        "not within {limit:?}, but {took:?}: {what}"
    );
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pace(worked: u64, measured: u32) -> Pace {
        Pace {
            worked: Duration::from_millis(worked),
            measured,
            next: Instant::now() + Duration::from_secs(1000),
        }
    }

    #[test]
    fn limits_are_longer_on_a_slow_machine_and_never_shorter() {
        let second = Duration::from_secs(1);
        assert_eq!(pace(0, 0).stretch(second), second);
        assert_eq!(pace(20, 8).stretch(second), second);
        assert_eq!(pace(96, 8).stretch(second), second);
        assert_eq!(pace(288, 8).stretch(second), 3 * second);
        assert_eq!(pace(1 << 30, 8).stretch(second), 20 * second);
    }

    #[test]
    fn a_limit_is_over_when_a_slow_machine_has_had_its_time() {
        let mut limit = Limit {
            begin: Instant::now(),
            limit: Duration::from_secs(1),
            pace: pace(288, 8),
        };
        assert!(!limit.is_over_for(Duration::from_millis(2900)));
        assert!(limit.is_over_for(Duration::from_millis(3000)));
    }
}
