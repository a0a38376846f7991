// SPDX-License-Identifier: GPL-2.0

//! A budget of time that is regained slowly.
//!
//! This module uses no kernel facilities, so that `selftests/driver-logic` can compile and test it
//! on the host as well.

/// How much of the time that passes is regained: one part in this many.
const REGAINED: i64 = 10;

/// The time that someone may still spend. All times are in nanoseconds.
///
/// In any period of `t` that begins with a full budget of `full`, no more than `full + t / 10` can
/// be spent, apart from what the last spending takes too much.
pub(crate) struct Budget {
    full: i64,
    left: i64,
    /// The time at which `left` was what it is.
    at: i64,
}

impl Budget {
    /// Returns a full budget at the time `now`.
    pub(crate) fn new(full: i64, now: i64) -> Self {
        Self {
            full,
            left: full,
            at: now,
        }
    }

    /// Returns what is left at the time `now`. Nothing is left if the result is 0 or less: more has
    /// been spent than there was, which is not forgotten.
    pub(crate) fn left(&mut self, now: i64) -> i64 {
        let passed = now.saturating_sub(self.at).max(0);

        self.left = self.left.saturating_add(passed / REGAINED).min(self.full);
        // What is left over from the division is regained later.
        self.at = self.at.saturating_add(passed - passed % REGAINED);
        self.left
    }

    /// Spends the time from `start` to `end`. None of that time is regained.
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
        // Spends whatever there is as soon as there is any, and in portions.
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
