// SPDX-License-Identifier: GPL-2.0

//! A model of the protocol, which predicts the result of each call, message and bus operation in a
//! random sequence.

mod choice;
mod expected;
mod operation;
mod real;

use std::collections::{HashSet, VecDeque};
use std::time::Instant;

use crate::differences;
use crate::lab::assert::random::Random;
use crate::lab::kernel::rcu::Expedited;
use crate::lab::run::report::note;
use crate::lab::run::settings::{driver, seed};
use crate::tests::model::expected::Model;
use crate::tests::model::real::{Files, Real};

tests![random_operations_answer_as_the_model_says => 60];

/// The number of operations.
const OPERATIONS: usize = 5000;

fn random_operations_answer_as_the_model_says() {
    let _expedited = Expedited::new();
    let mut random = Random::new(seed());
    let files = Files::new();
    let mut real = Real::new();
    let mut model = Model::new(driver() == differences::Driver::C, real.support);
    let mut last = VecDeque::new();
    let mut kinds = HashSet::new();
    let mut good = 0;
    let begin = Instant::now();
    for number in 0..OPERATIONS {
        let op = model.choose(&mut random);
        let found = real.apply(&op, &files);
        let before = format!("{model:?}");
        let expected = model.apply(&op);
        last.push_back(format!("{number}: {op:?} -> {found:?}"));
        if last.len() > 12 {
            last.pop_front();
        }
        if found != expected {
            let history: Vec<_> = last.into();
            panic!(
                "operation {number} was to answer {expected:?}; the last ones:\n{}\nbefore it:\n{before}",
                history.join("\n")
            );
        }
        good += u32::from(found.answer.is_ok());
        kinds.insert(std::mem::discriminant(&op));
    }
    note(format_args!(
        "{OPERATIONS} operations of {} kinds, {good} of them carried out, in {:?}",
        kinds.len(),
        begin.elapsed()
    ));
}
