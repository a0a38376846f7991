// SPDX-License-Identifier: GPL-2.0

//! A time budget that refills slowly.
//!
//! This module uses no kernel facilities, so that `selftests/driver-logic` can compile and test it
//! on the host as well.

/// The number of nanoseconds that must pass for a budget to regain one nanosecond.
const REGAINED: i64 = 10;

/// A time budget. It refills by one nanosecond for every [`REGAINED`] nanoseconds that pass. All
/// times are in nanoseconds.
///
/// Suppose that time is spent only while the budget is above 0. Then the time that is spent in any
/// period of length `t` is at most `full + t / 10`, plus the amount by which the last call of
/// [`spend`](Self::spend) overdraws the budget.
pub(crate) struct Budget {
    full: i64,
    left: i64,
    /// The point in time at which `left` nanoseconds were left.
    at: i64,
}

impl Budget {
    /// Returns a budget that is full at the time `now`.
    pub(crate) fn new(full: i64, now: i64) -> Self {
        Self {
            full,
            left: full,
            at: now,
        }
    }

    /// Returns how many nanoseconds are left in the budget at the time `now`. A negative result
    /// means that the budget is overdrawn by that amount, which must be regained before any time is
    /// left.
    pub(crate) fn left(&mut self, now: i64) -> i64 {
        let passed = now.saturating_sub(self.at).max(0);

        self.left = self.left.saturating_add(passed / REGAINED).min(self.full);
        // The remainder of the division is regained in a later call.
        self.at = self.at.saturating_add(passed - passed % REGAINED);
        self.left
    }

    /// Subtracts the time from `start` to `end` from the budget. The budget does not refill between
    /// `start` and `end`.
    pub(crate) fn spend(&mut self, start: i64, end: i64) {
        let left = self.left(start);

        self.left = left.saturating_sub(end.saturating_sub(start).max(0));
        self.at = self.at.max(end);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenth_of_the_time_is_regained() {
        let mut budget = Budget::new(1000, 5);
        assert_eq!(budget.left(5), 1000);
        budget.spend(5, 805);
        assert_eq!(budget.left(805), 200);
        assert_eq!(budget.left(1004), 219);
        assert_eq!(budget.left(1805), 300);
        assert_eq!(budget.left(1_000_000), 1000);
    }

    #[test]
    fn no_part_of_a_unit_is_lost_by_asking_often() {
        let mut budget = Budget::new(1000, 0);
        budget.spend(0, 1000);
        for now in 1000..2000 {
            budget.left(now);
        }
        assert_eq!(budget.left(2000), 100);
    }

    #[test]
    fn what_was_spent_too_much_has_to_be_regained() {
        let mut budget = Budget::new(1000, 0);
        budget.spend(0, 1500);
        assert_eq!(budget.left(1500), -500);
        assert_eq!(budget.left(6500), 0);
        assert_eq!(budget.left(6600), 10);
    }

    #[test]
    fn no_pattern_of_spending_exceeds_the_bound() {
        // Spends the budget in portions, each as soon as the budget is above 0.
        for portion in [1, 7, 50, 999] {
            let mut budget = Budget::new(1000, 0);
            let (mut now, mut spent) = (0, 0);
            while now < 1_000_000 {
                let left = budget.left(now);
                if left > 0 {
                    let time = left.min(portion);
                    budget.spend(now, now + time);
                    now += time;
                    spent += time;
                    assert!(spent <= 1000 + now / 10, "{spent} after {now}");
                } else {
                    now += 1;
                }
            }
        }
    }

    #[test]
    fn a_clock_that_goes_back_does_no_harm() {
        let mut budget = Budget::new(1000, 500);
        assert_eq!(budget.left(0), 1000);
        budget.spend(400, 300);
        assert_eq!(budget.left(i64::MAX), 1000);
        budget.spend(i64::MIN, i64::MAX);
        assert!(budget.left(i64::MAX) < 0);
    }
}
