// SPDX-License-Identifier: GPL-2.0

//! Time limits that only guard against hangs.
//!
//! The limits are chosen for an emulated machine without any other load. While a limit runs,
//! [`Pace`] repeatedly measures how long a fixed piece of work takes. The work may take longer than
//! on an idle machine, because this machine is slower or other processes use its CPUs. If the work
//! takes three times as long, for example, the limit becomes three times as long, too. So a limit
//! is not too short on a busy machine, and is not extended on an idle one.

use std::hint::black_box;
use std::time::{Duration, Instant};

/// Number of rounds of arithmetic in one measurement. A measurement takes longer than a time slice
/// on a shared CPU, so that it includes the time slices of other processes.
const ROUNDS: u32 = 5_000_000;

/// Time that [`ROUNDS`] rounds take on an idle machine. Emulation (TCG) does not take much longer.
const NOMINAL: Duration = Duration::from_millis(12);

/// Interval between measurements. With this interval, measurements take about a fortieth of a CPU's
/// time.
const BETWEEN: Duration = Duration::from_millis(500);

/// Maximum factor by which a limit is extended, so that a hang is always detected.
const SLOWEST: f64 = 20.0;

/// Measured speed of the machine since this value was created.
#[derive(Clone, Debug)]
pub struct Pace {
    worked: Duration,
    measured: u32,
    next: Instant,
}

impl Pace {
    /// Creates a value without measurements. The first measurement is due after [`BETWEEN`], so no
    /// measurement takes place during a shorter operation.
    pub fn new() -> Self {
        Self {
            worked: Duration::ZERO,
            measured: 0,
            next: Instant::now() + BETWEEN,
        }
    }

    /// Measures the machine's speed now, and returns a value with these measurements. Used for an
    /// operation that has already ended.
    pub fn measured() -> Self {
        let mut pace = Self::new();
        for _ in 0..MEASUREMENTS {
            pace.measure();
        }
        pace
    }

    /// Measures the machine's speed if the next measurement is due.
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

    /// Multiplies a time limit by the measured slowness of this machine, which is at least 1 and at
    /// most `SLOWEST`.
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

/// Performs the fixed piece of work that is measured. Returns the time that the work took.
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
    /// Starts a time limit.
    pub fn new(limit: Duration) -> Self {
        Self {
            begin: Instant::now(),
            limit,
            pace: Pace::new(),
        }
    }

    /// Returns whether the limit has passed. The caller should call this several times a second.
    pub fn is_over(&mut self) -> bool {
        self.pace.look();
        self.is_over_for(self.begin.elapsed())
    }

    /// Returns whether an operation that took the time `took` has exceeded the limit.
    fn is_over_for(&mut self, took: Duration) -> bool {
        if took < self.pace.stretch(self.limit) {
            return false;
        }
        // A few measurements are not enough, because another process may have disturbed them.
        while self.pace.measured < MEASUREMENTS {
            self.pace.measure();
        }
        took >= self.pace.stretch(self.limit)
    }
}

/// Minimum number of measurements before an operation can count as too slow.
const MEASUREMENTS: u32 = 8;

/// Calls `act` and returns its result. Panics if `act` takes longer than `limit`, which is extended
/// on a slow machine. The machine's speed is measured only after `act` has returned. If `act` never
/// returns, the test's own time limit ends the test.
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
