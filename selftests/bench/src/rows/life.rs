// SPDX-License-Identifier: GPL-2.0

//! Measurements of a device's life cycle: creating, opening, setting up, adding to the bus,
//! deleting from the bus and destroying a device.

use vduse_selftests::lab::device::bus::OnBus;

use crate::measurement::{Bench, Row};
use crate::null::Shape;
use crate::{clock, profile};

fn live(shape: Shape) {
    let device = shape.create();
    let file = device.open_ready(shape.queues);
    let on_bus = OnBus::add(device.name()).expect("adding a device");
    on_bus.delete().expect("deleting a device");
    drop(file);
    device.destroy().expect("destroying a device");
}

/// Returns the measurements of a device's life cycle.
pub fn benches() -> Vec<Bench> {
    let bench = |(spaces, times): (u32, u64)| {
        let name = format!("create, add, delete, destroy; {spaces} address spaces");
        let rows = vec![Row::lower(&name, "us", 0.8)];
        let shape = Shape {
            spaces,
            ..Shape::default()
        };
        Bench::new(rows, move || {
            live(shape);
            let took = clock::time(|| {
                profile::watch(&name, times as usize, || {
                    (0..times).for_each(|_| live(shape))
                });
            });
            vec![took as f64 / 1000.0 / times as f64]
        })
    };
    [(1, 100), (16, 60), (256, 20)].map(bench).into()
}
