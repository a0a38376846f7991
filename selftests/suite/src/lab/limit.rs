// SPDX-License-Identifier: GPL-2.0

//! Time limits that guard against a hang, and prove nothing.
//!
//! They were chosen for a machine that is emulated and has nothing else to do. A machine that is
//! slower, or whose CPUs are shared with others, needs as much longer for everything as it needs
//! for a piece of work that is measured now and then while a limit runs. So a limit is never too
//! short for a busy machine, and a hang is found as soon as before on an idle one.

use std::hint::black_box;
use std::time::{Duration, Instant};

/// How many rounds of arithmetic are measured. They take longer than one turn of a CPU that is
/// shared with others, so that the others' turns are measured with them.
const ROUNDS: u32 = 5_000_000;

/// How long so many rounds take on an idle machine: emulated (TCG) not much longer than otherwise.
const NOMINAL: Duration = Duration::from_millis(12);

/// How long until the machine is measured again: a fortieth of a CPU's time goes into that.
const BETWEEN: Duration = Duration::from_millis(500);

/// A machine is never taken for slower than this, so that a hang is always found.
const SLOWEST: f64 = 20.0;

/// How fast the machine has been since this was made.
#[derive(Clone, Debug)]
pub struct Pace {
    worked: Duration,
    measured: u32,
    next: Instant,
}

impl Pace {
    /// Begins. What is over in a moment is not measured at all.
    pub fn new() -> Self {
        Self {
            worked: Duration::ZERO,
            measured: 0,
            next: Instant::now() + BETWEEN,
        }
    }

    /// Measures, if it is time to do so again.
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

    /// So long on the machine that limits are chosen for, on this one.
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

/// Does a piece of work, and says how long that took.
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

/// A limit that runs.
#[derive(Clone, Debug)]
pub struct Limit {
    begin: Instant,
    limit: Duration,
    pace: Pace,
}

impl Limit {
    /// Begins.
    pub fn new(limit: Duration) -> Self {
        Self {
            begin: Instant::now(),
            limit,
            pace: Pace::new(),
        }
    }

    /// Whether it is over. To be asked several times in a second.
    pub fn is_over(&mut self) -> bool {
        self.pace.look();
        self.is_over_for(self.begin.elapsed())
    }

    /// Whether something took too long that took so long.
    fn is_over_for(&mut self, took: Duration) -> bool {
        if took < self.pace.stretch(self.limit) {
            return false;
        }
        // No limit is over on the word of one measurement, which others may have come between.
        while self.pace.measured < MEASUREMENTS {
            self.pace.measure();
        }
        took >= self.pace.stretch(self.limit)
    }
}

/// How often the machine is measured at least before it is said that something took too long.
const MEASUREMENTS: u32 = 8;

/// Does something that must not take longer than this, and returns what it returns. It is measured
/// only afterwards how fast the machine is: what never ends is ended by the test's own limit.
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
